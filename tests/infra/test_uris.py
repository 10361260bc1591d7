import re
from pathlib import Path

import pytest

from segmint.infra.errors import UsageError
from segmint.infra.uris import (
    TarMember,
    UriNotAllowedError,
    base_name,
    child,
    fit_to_keep,
    has_unusual_bucket,
    is_below,
    join,
    local_path,
    only_path,
    parent,
    plain_form,
    plain_forms,
    redact,
    relative_to,
    scheme,
    split_bucket,
    split_member,
)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://bkt/k", "s3"),
        ("S3://bkt/k", "s3"),
        ("file:///x", "file"),
        ("/x/y", "file"),
        ("x/a:b.jpg", "file"),
        ("gs://b/k", "gs"),
        ("abfs://container@account.dfs.core.windows.net/k", "abfs"),
    ],
)
def test_scheme_of_what_is_allowed(uri: str, expected: str) -> None:
    assert scheme(uri) == expected


@pytest.mark.parametrize(
    "uri",
    [
        "http://h/x",
        "https://h/x",
        "ftp://h/x",
        "memory://x",
        "hdfs://namenode:8020/x",
        "zip://a::s3://bkt/k",
        "simplecache::s3://bkt/k",
        "",
        "a\0b",
    ],
)
def test_scheme_refuses_what_is_not_on_the_list(uri: str) -> None:
    with pytest.raises(UriNotAllowedError):
        scheme(uri)


def test_a_uri_with_credentials_is_refused_without_repeating_them() -> None:
    with pytest.raises(UriNotAllowedError) as caught:
        scheme("s3://AKIAIOSFODNN7EXAMPLE:hunter2@bucket/key")
    assert "hunter2" not in str(caught.value)
    assert "AKIA" not in str(caught.value)


def test_redact_hides_user_parts_signatures_and_key_ids() -> None:
    text = redact("GET https://u:p@h/x?X-Amz-Signature=abc123&a=1 by AKIAIOSFODNN7EXAMPLE, token=t0k")
    assert text == "GET https://[redacted]@h/x?X-Amz-Signature=[redacted]&a=1 by [redacted], token=[redacted]"


def test_join_parent_and_name() -> None:
    assert join("s3://bkt", "a/", "/c.json") == "s3://bkt/a/c.json"
    assert join("s3://bkt/", "a") == "s3://bkt/a"
    assert join("/", "a") == "/a"
    assert join("folder", "a") == "folder/a"
    assert parent("s3://bkt/a/c.json") == "s3://bkt/a"
    assert parent("s3://bkt/a") == parent("s3://bkt") == "s3://bkt"
    assert (parent("/a/b"), parent("/a"), parent("a")) == ("/a", "/", ".")
    assert (parent("/"), parent("file:///"), parent("file:///a")) == ("/", "file:///", "file:///")
    assert base_name("s3://bkt/a/c.json") == "c.json"
    with pytest.raises(UriNotAllowedError):
        join("s3://bkt", "../x")


@pytest.mark.parametrize("name", ["a.jpg", "/a.jpg", "x//a.jpg", "./a.jpg", "x/./a.jpg", ".../a", "a/", "a b%2e?#"])
def test_a_listed_name_is_appended_unchanged_in_a_store(name: str) -> None:
    for folder in ("s3://bkt", "s3://bkt/", "s3://bkt/p", "s3://bkt/p//", "gs://bkt/p", "az://con/p"):
        assert child(folder, name) == f"{folder.rstrip('/')}/{name}"
    for folder in ("s3://bkt/c.jsonl", "s3://bkt//x/c.jsonl", "/data/c.jsonl"):
        assert relative_to(folder, child("s3://bkt/p", name)) == f"s3://bkt/p/{name}"
    with pytest.raises(UriNotAllowedError):
        child("s3://bkt/p", f"{name}/../b")


def test_a_listed_name_is_normalized_in_a_local_folder() -> None:
    assert child("/data", "./x//a.jpg") == "/data/x/a.jpg"
    assert child("file:///data", "x//a.jpg") == "file:///data/x/a.jpg"
    assert child("data", "a.jpg") == "data/a.jpg"
    assert child("s3://bkt/p", "") == "s3://bkt/p"
    with pytest.raises(UriNotAllowedError):
        child("/data", "../a.jpg")


def test_local_path_decodes_file_uris_only() -> None:
    assert str(local_path("file:///a%20b/c")) == "/a b/c"
    assert str(local_path("/a%20b/c")) == "/a%20b/c"
    for uri in ("file://host/x", "s3://bkt/k", "file:///a%0Ab", "file:///a%00b"):
        with pytest.raises(UriNotAllowedError):
            local_path(uri)


def test_a_path_for_duckdb_names_only_itself() -> None:
    assert only_path(Path("/a b/it's{1}/x=1.parquet")) == "/a b/it's{1}/x=1.parquet"
    assert only_path("/a*/b?[c]") == "/a[*]/b[?][[]c]"
    assert only_path("/a\\*b") == "/a\\*b"
    with pytest.raises(UsageError, match="rename its folder"):
        only_path("/a\\b/c?")


def test_keys_are_taken_literally() -> None:
    assert split_bucket("s3://bkt/a#b?c=%20/d") == ("bkt", "a#b?c=%20/d")
    account = "account.dfs.core.windows.net"
    assert split_bucket(f"abfss://con-1@{account}/a?b") == (f"con-1@{account}", "a?b")
    azure = ["az://A_B/k", "az://ab/k", "az://a--b/k", f"az://{'b' * 64}/k", f"abfs://con@evil.org#.{account}/k"]
    azure += [f"abfss://con@{account}.evil.org/k", "abfss://con@account/k", "abfs://con@/k"]
    for uri in ("s3:///k", "s3://B!/k", "s3://-b/k", f"s3://{'b' * 256}/k", *azure):
        with pytest.raises(UriNotAllowedError):
            split_bucket(uri)


def test_buckets_that_amazon_s3_does_not_allow_are_told_apart() -> None:
    usual = ["s3://my-bucket/k", "S3://a.b-c.9", "s3://abc/A_B/b..c", "gs://A_B/k", "/data/A_B"]
    unusual = ["s3://A_B/k", "s3://b..c/k", f"s3://{'b' * 64}/k", "S3://-bc/k", "s3://bc-/k"]
    assert [has_unusual_bucket(uri) for uri in usual + unusual] == [False] * 5 + [True] * 5


@pytest.mark.parametrize(
    ("catalog", "uri", "expected"),
    [
        ("s3://bkt/sets/c.parquet", "img/1.jpg", "s3://bkt/sets/img/1.jpg"),
        ("s3://bkt/c.parquet", "img/1.jpg", "s3://bkt/img/1.jpg"),
        ("s3://bkt/c.parquet", "s3://other/1.jpg", "s3://other/1.jpg"),
        ("/data/c.csv", "img/./1.jpg", "/data/img/1.jpg"),
        ("/data/c.csv", "/elsewhere/1.jpg", "/elsewhere/1.jpg"),
        ("/data/c.csv", "file:///elsewhere/1.jpg", "/elsewhere/1.jpg"),
        ("file:///data/c.csv", "1.jpg", "/data/1.jpg"),
        ("/data/c.csv", "S3://bkt/1.jpg", "s3://bkt/1.jpg"),
        ("/data/c.csv", "img//1.jpg", "/data/img/1.jpg"),
        ("s3://bkt/c.parquet", "./img/./1.jpg", "s3://bkt/img/1.jpg"),
        ("s3://bkt/c.parquet", "s3://bkt/img//./1.jpg", "s3://bkt/img//./1.jpg"),
        ("s3://bkt/sets//c.parquet", "img/1.jpg", "s3://bkt/sets//img/1.jpg"),
        ("s3://bkt//c.parquet", "1.jpg", "s3://bkt//1.jpg"),
    ],
)
def test_relative_to_a_catalog(catalog: str, uri: str, expected: str) -> None:
    assert relative_to(catalog, uri) == expected


def test_relative_catalogs_give_absolute_uris(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert relative_to("sets/c.csv", "1.jpg") == str(tmp_path / "sets" / "1.jpg")


@pytest.mark.parametrize(
    ("catalog", "uri"),
    [
        ("s3://bkt/sets/c.parquet", "../secret.jpg"),
        ("/data/c.csv", "img/../../etc/passwd"),
        ("s3://bkt/c.parquet", "/etc/passwd"),
        ("s3://bkt/c.parquet", "file:///etc/passwd"),
        ("s3://bkt/c.parquet", "http://169.254.169.254/latest"),
        ("s3://bkt/c.parquet", ""),
        ("s3://bkt/c.parquet", "s3://"),
        ("s3://bkt/c.parquet", "FILE:///etc/passwd"),
        ("s3://bkt/c.parquet", "file://localhost/etc/passwd"),
        ("s3://bkt/c.parquet", " file:///etc/passwd"),
        ("s3://bkt/c.parquet", "//etc/passwd"),
        ("s3://bkt/c.parquet", "a/../../other-bucket/x.jpg"),
        ("s3://bkt/c.parquet", "HTTP://169.254.169.254/latest/meta-data"),
        ("s3://bkt/c.parquet", "https://169.254.169.254/latest/meta-data"),
        ("s3://bkt/c.parquet", "simplecache::file:///etc/passwd"),
        ("s3://bkt/c.parquet", "zip://x.jpg::file:///etc/passwd.zip"),
        ("s3://bkt/c.parquet", "zip://*.jpg::http://169.254.169.254/"),
        ("s3://bkt/c.parquet", "local:///etc/passwd"),
        ("s3://bkt/c.parquet", "reference://x::memory://y"),
        ("s3://bkt/c.parquet", "s3://bkt/x\r\nHost: elsewhere"),
        ("s3://bkt/c.parquet", "s3://user@elsewhere/x.jpg"),
        ("/data/c.csv", "file://elsewhere/x.jpg"),
        ("/data/c.csv", "/etc/x\0.jpg"),
        ("/data/c.csv", "x" * 8193),
        # Control characters and `..` also percent-encoded: what is decoded later must not be more than was checked.
        ("/data/c.csv", "a\nb.jpg"),
        ("/data/c.csv", "a%0Ab.jpg"),
        ("/data/c.csv", "a%00.jpg"),
        ("/data/c.csv", "file:///data/a%0Ab.jpg"),
        ("/data/c.csv", "file:///data/a%00b.jpg"),
        ("/data/c.csv", "s3://bkt/a%7fb.jpg"),
        ("s3://bkt/c.parquet", "a%0ab.jpg"),
        ("s3://bkt/c.parquet", "s3://vendor/../x.jpg"),
        ("s3://bkt/c.parquet", "s3://vendor/a/%2e%2E/x.jpg"),
        ("s3://bkt/c.parquet", "s3://vendor/..%2fx.jpg"),
        ("s3://bkt/c.parquet", "%2e%2e/secret.jpg"),
        ("s3://bkt/c.parquet", "..%2fsecret.jpg"),
        ("/data/c.csv", "gs://vendor/.."),
        # These would lead to another object of the store.
        ("s3://bkt/c.parquet", "img//1.jpg"),
        ("s3://bkt/c.parquet", "img/1.jpg/"),
        ("s3://bkt/c.parquet", "./"),
        ("s3://bkt/c.parquet", "."),
        ("/data/c.csv", "az://con/img/./1.jpg"),
        ("/data/c.csv", "abfs://con@account.dfs.core.windows.net/./1.jpg"),
        ("/data/c.csv", "gs://bkt/1.jpg/"),
    ],
)
def test_a_catalog_reaches_no_further(catalog: str, uri: str) -> None:
    with pytest.raises(UriNotAllowedError):
        relative_to(catalog, uri)


@pytest.mark.parametrize(
    ("catalog", "uri", "expected"),
    [
        # None of these is decoded: an encoded dot or slash is a letter of a local name.
        ("s3://bkt/sets/c.parquet", "..\\secret.jpg", "s3://bkt/sets/..\\secret.jpg"),
        ("s3://bkt/sets/c.parquet", "a..b/...%2e/caf%C3%A9.jpg", "s3://bkt/sets/a..b/...%2e/caf%C3%A9.jpg"),
        ("s3://bkt/sets/c.parquet", "s3://bkt/a%20b%2Fc.jpg", "s3://bkt/a%20b%2Fc.jpg"),
        ("/data/c.csv", "%2e%2e/secret.jpg", "/data/%2e%2e/secret.jpg"),
        ("file:///data/c.csv", "%2e%2e%2fsecret.jpg", "/data/%2e%2e%2fsecret.jpg"),
        # A chain without slashes is a name, and so is a scheme without them.
        ("s3://bkt/c.parquet", "simplecache::x.jpg", "s3://bkt/simplecache::x.jpg"),
        ("s3://bkt/c.parquet", "file:x.jpg", "s3://bkt/file:x.jpg"),
        # A key may hold what a user part would, behind the bucket.
        ("s3://bkt/c.parquet", "s3://bkt/photo@2x.jpg", "s3://bkt/photo@2x.jpg"),
        ("s3://bkt/c.parquet", "s3://bkt/token=3/a.jpg", "s3://bkt/token=3/a.jpg"),
        ("s3://bkt/c.parquet", "gs://bucket:8020/photo@2x.jpg", "gs://bucket:8020/photo@2x.jpg"),
        ("s3://bkt/c.parquet", "s3://bkt/x.jpg::zip://y", "s3://bkt/x.jpg::zip://y"),
    ],
)
def test_what_looks_like_an_escape_is_a_name(catalog: str, uri: str, expected: str) -> None:
    assert relative_to(catalog, uri) == expected


# Half of all AWS secrets hold a slash.
SECRETS = ("hunter2", "wJalr/XUtnFEMI/K7MDENG+bPxRfiCYz", "hunter3@hunter4:hunter5/hunter6")


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIAIOSFODNN7EXAMPLE:{}@bucket/key.jpg",
        "S3://user:{}@bucket",
        "gs://user:{}@bucket/key",
        "abfs://user:{}@account.dfs.core.windows.net/key",
        "file://user:{}@host/x.jpg",
        "https://user:{}@host/x.jpg",
        "zip://x::https://user:{}@host/x.zip",
        "s3://user:{}@bucket/line\nbreak",
        "s3://bucket/key?X-Amz-Credential=AKIAIOSFODNN7EXAMPLE&X-Amz-Signature={}",
        "gs://bucket/key?X-Goog-Signature={}",
        "az://container/key.jpg?sv=2024-11-04&sp=r&sig={}",
    ],
)
def test_no_door_takes_a_credential_or_repeats_it(uri: str, secret: str) -> None:
    uri = uri.format(secret)
    for door in (scheme, local_path, split_bucket, lambda uri: relative_to("s3://bkt/c.csv", uri)):
        with pytest.raises(UriNotAllowedError) as caught:
            door(uri)
        assert not leaked(str(caught.value), secret)
    assert not leaked(fit_to_keep(uri), secret)
    with pytest.raises(UriNotAllowedError):
        scheme(fit_to_keep(uri))


def leaked(text: str, secret: str) -> bool:
    return any(part in text for part in ("AKIA", *re.split("[/]", secret)))


def test_a_uri_that_can_be_read_is_kept_as_it_is() -> None:
    for uri in ("s3://bkt/token=3/photo@2x.jpg", "abfs://container@account/k", "a photo@home?token=3.jpg"):
        assert fit_to_keep(uri) == uri


@pytest.mark.parametrize(
    "text",
    [
        "GET https://h/x?access_token={0}&a=1",
        "https://h/x?X-Goog-Signature={0}",
        "https://account.blob.core.windows.net/c/x?sv=2024&sig={0}",
        "AccountKey={0};EndpointSuffix=core.windows.net",
        "AWS_SECRET_ACCESS_KEY={0} AWS_SESSION_TOKEN={0}",
        "https://h/x?api-key={0}",
        "https://h/x?jwt={0}&hmac={0}&pwd={0}",
        "https://h/x?to=https%3A%2F%2Fh%3Ftoken%3D{0}",
        "Authorization: Bearer {0}",
        "headers {{'authorization': 'Basic {0}'}}",
        "hf_abcdefghijklmnopqrstuvwxyz0123{0} and ghp_abcdefghijklmnopqrstuvwxyz0123{0}",
        "two: https://u:{0}@h/a and s3://k:{0}@b/c",
        "https://maps.example/photo?key=AIzaSyA-bcdefghijklmnopqrstuvw{0}",
    ],
)
def test_redact_knows_the_signatures_of_several_stores(text: str) -> None:
    assert "t0psecret" not in redact(text.format("t0psecret"))


def test_redact_leaves_plain_text_alone() -> None:
    for text in (
        "see http://127.0.0.1:8333/a@b",
        "expected KEY=VALUE, such as --set masks.points_per_side=16",
        "a@b.c",
        "https://h/x?pass=2&auth=none&key=photo&keyword=jwt, cwd=/a, the bearer of a token, hf_model",
        "authorization: see https://h/x?license=basic",
    ):
        assert redact(text) == text


def test_redaction_of_a_hostile_text_takes_no_time_to_speak_of() -> None:
    # A pattern that backtracks would take hours.
    for text in ("://a:" * 5_000, "://" + "a" * 100_000, "token" * 20_000, "-" * 100_000 + "@"):
        redact(text)


def test_what_is_below_a_folder(tmp_path: Path) -> None:
    folder = str(tmp_path / "folder")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(folder)
    inside = [
        folder,
        f"{folder}/",
        f"{folder}/a/b",
        f"file://{folder}/a",
        f"{tmp_path}/x/../folder/a",
        f"{tmp_path}/link/a",
    ]
    outside = [str(tmp_path), f"{folder}-2", f"{folder}/../a", "s3://bkt/folder", f"{tmp_path}/link/../a"]
    assert [uri for uri in (*inside, *outside) if is_below(uri, folder)] == inside
    assert is_below(f"{folder}/a", str(tmp_path / "link"))
    assert is_below("s3://bkt/x/y", "s3://bkt/x/")
    assert is_below("s3://bkt/x/y", "S3://bkt/x")
    assert not is_below("s3://bkt/xy", "s3://bkt/x")
    assert is_below("s3://bkt/x", "S3://")


@pytest.mark.parametrize(
    ("uri", "folder", "expected"),
    [
        ("gcs://bkt/ds/x", "gs://bkt/ds", True),
        ("gs://bkt/ds", "gcs://bkt/ds/", True),
        ("az://photos/ds/x", "abfss://photos@acct.dfs.core.windows.net/ds", True),
        ("abfs://photos@acct.blob.core.windows.net/ds/x", "abfss://photos@acct.dfs.core.windows.net/ds", True),
        ("abfs://photos@another.dfs.core.windows.net/ds/x", "abfss://photos@acct.dfs.core.windows.net/ds", False),
        ("az://photos2/ds/x", "abfss://photos@acct.dfs.core.windows.net/ds", False),
        ("s3://bkt/ds/x", "gs://bkt/ds", False),
    ],
)
def test_schemes_of_one_store_name_the_same_folders(uri: str, folder: str, expected: bool) -> None:
    assert is_below(uri, folder) is expected


def test_plain_forms_of_a_uri() -> None:
    same = {
        "./a.jpg": "a.jpg",
        "x/.//y/a.jpg": "x/y/a.jpg",
        "/x/../a.jpg": "/a.jpg",
        "//x/a.jpg": "/x/a.jpg",
        "file:///x/a%20b.jpg": "/x/a b.jpg",
        "S3://bkt/x//./a.jpg": "s3://bkt/x//./a.jpg",  # in a bucket these are other keys
        "http://h/a.jpg": "http://h/a.jpg",
        "": "",
    }
    assert {uri: plain_form(uri) for uri in same} == same
    assert plain_forms("./a.jpg", None) == {"a.jpg"}
    assert (
        plain_forms("./a.jpg", "/x/catalog.csv") == plain_forms("/x/a.jpg", "/x/catalog.csv") == {"a.jpg", "/x/a.jpg"}
    )
    assert plain_forms("a.jpg", "s3://bkt/x/c.csv") == plain_forms("s3://bkt/x/a.jpg", "s3://bkt/x/c.csv")
    assert plain_forms("../a.jpg", "/x/catalog.csv") == {"../a.jpg"}


@pytest.mark.parametrize(
    ("uri", "member"),
    [
        ("photos/0001.tar#1262592+644701", TarMember("photos/0001.tar", 1262592, 644701)),
        ("s3://bkt/a#b/x.TAR#512+0", TarMember("s3://bkt/a#b/x.TAR", 512, 0)),
        ("a.tar#512+1/b.tar#1024+2", TarMember("a.tar#512+1/b.tar", 1024, 2)),
        ("a#1+2", None),
        ("a.jpg#512+2", None),
        ("a.tar.gz#512+2", None),
        (".tar#512+2", None),
        ("a.tar#512+2.jpg", None),
        ("a.tar#512", None),
        ("a.tar", None),
        (f"a.tar#512+{'9' * 5000}", None),
        ("a.tar#512+\N{ARABIC-INDIC DIGIT TWO}", None),
    ],
)
def test_only_a_place_in_a_tar_names_a_file_in_it(uri: str, member: TarMember | None) -> None:
    assert split_member(uri) == member
    assert member is None or member.uri == uri


def test_a_file_in_a_tar_has_one_uri() -> None:
    for catalog, entry, expected in (
        ("s3://bkt/p/c.jsonl", "./x/0.tar#512+7", "s3://bkt/p/x/0.tar#512+7"),
        ("s3://bkt/p/c.jsonl", "S3://bkt/0.tar#512+7", "s3://bkt/0.tar#512+7"),
        ("/data/c.jsonl", "x/0.tar#512+7", "/data/x/0.tar#512+7"),
        ("/data/c.jsonl", "file:///data/a%20b/0.tar#512+7", "/data/a b/0.tar#512+7"),
        ("/data/c.jsonl", "a#1+2", "/data/a#1+2"),
        ("s3://bkt/p/c.jsonl", "x.tar/a#0+01", "s3://bkt/p/x.tar/a#0+01"),
    ):
        assert relative_to(catalog, entry) == expected
        assert expected in plain_forms(entry, catalog)
    for odd in ("0.tar#0512+7", "0.tar#512+07", "0.tar#0+7", "0.tar#1000+7", "s3://bkt/0.tar#1+2"):
        with pytest.raises(UriNotAllowedError, match="a multiple of 512"):
            relative_to("/data/c.jsonl", odd)
    for catalog, odd in (
        ("/data/c.jsonl", "0.tar#512+7/."),
        ("/data/c.jsonl", "file:///data/0.tar%23512+7"),
        ("/data/c.jsonl", "0.tar#0512+7/."),
        ("/data/c.jsonl", "0.tar#0512+7/"),
        ("/data/c.jsonl", "/data/0.tar#100+7//"),
        ("/data/c.jsonl", "file:///data/0.tar%230512+7"),
        ("s3://bkt/c.jsonl", "0.tar#512+07/."),
    ):
        with pytest.raises(UriNotAllowedError, match=f"^'{re.escape(odd)}' names no file"):
            relative_to(catalog, odd)
    with pytest.raises(UriNotAllowedError, match=r"climbs"):
        relative_to("/data/c.jsonl", "../0.tar#512+7")
