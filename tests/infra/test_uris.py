import pytest

from infra.uris import (
    UriNotAllowedError,
    base_name,
    join,
    local_path,
    parent,
    redact,
    relative_to,
    scheme,
    split_bucket,
)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://b/k", "s3"),
        ("S3://b/k", "s3"),
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
    ["http://h/x", "https://h/x", "ftp://h/x", "memory://x", "zip://a::s3://b/k", "simplecache::s3://b/k", "", "a\0b"],
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
    assert join("s3://b", "a/", "/c.json") == "s3://b/a/c.json"
    assert join("s3://b/", "a") == "s3://b/a"
    assert join("/", "a") == "/a"
    assert join("folder", "a") == "folder/a"
    assert parent("s3://b/a/c.json") == "s3://b/a"
    assert parent("s3://b/a") == parent("s3://b") == "s3://b"
    assert (parent("/a/b"), parent("/a"), parent("a")) == ("/a", "/", ".")
    assert base_name("s3://b/a/c.json") == "c.json"
    with pytest.raises(UriNotAllowedError):
        join("s3://b", "../x")


def test_local_path_decodes_file_uris_only() -> None:
    assert str(local_path("file:///a%20b/c")) == "/a b/c"
    assert str(local_path("/a%20b/c")) == "/a%20b/c"
    for uri in ("file://host/x", "s3://b/k"):
        with pytest.raises(UriNotAllowedError):
            local_path(uri)


def test_keys_are_taken_literally() -> None:
    assert split_bucket("s3://b/a#b?c=%20/d") == ("b", "a#b?c=%20/d")
    for uri in ("s3:///k", "s3://B!/k"):
        with pytest.raises(UriNotAllowedError):
            split_bucket(uri)


@pytest.mark.parametrize(
    ("catalog", "uri", "expected"),
    [
        ("s3://b/sets/c.parquet", "img/1.jpg", "s3://b/sets/img/1.jpg"),
        ("s3://b/c.parquet", "img/1.jpg", "s3://b/img/1.jpg"),
        ("s3://b/c.parquet", "s3://other/1.jpg", "s3://other/1.jpg"),
        ("/data/c.csv", "img/./1.jpg", "/data/img/1.jpg"),
        ("/data/c.csv", "/elsewhere/1.jpg", "/elsewhere/1.jpg"),
        ("/data/c.csv", "file:///elsewhere/1.jpg", "/elsewhere/1.jpg"),
        ("file:///data/c.csv", "1.jpg", "/data/1.jpg"),
        ("/data/c.csv", "S3://b/1.jpg", "s3://b/1.jpg"),
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
        ("s3://b/sets/c.parquet", "../secret.jpg"),
        ("/data/c.csv", "img/../../etc/passwd"),
        ("s3://b/c.parquet", "/etc/passwd"),
        ("s3://b/c.parquet", "file:///etc/passwd"),
        ("s3://b/c.parquet", "http://169.254.169.254/latest"),
        ("s3://b/c.parquet", ""),
        ("s3://b/c.parquet", "s3://"),
    ],
)
def test_a_catalog_reaches_no_further(catalog: str, uri: str) -> None:
    with pytest.raises(UriNotAllowedError):
        relative_to(catalog, uri)
