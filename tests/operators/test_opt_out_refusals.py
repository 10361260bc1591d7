"""Refusal lists: what counts as an entry, and which images the entries refuse."""

import hashlib
from pathlib import Path

import pytest

from segmint.infra.errors import UsageError
from segmint.operators.opt_out import NO_LISTS, RefusalLists, read_refusal_lists
from tests.support.locations import location_of

BYTES = hashlib.sha256(b"an image").hexdigest()


def lists(folder: Path, *texts: str) -> RefusalLists:
    files = []
    for number, text in enumerate(texts):
        file = folder / f"list-{number}.txt"
        file.write_text(text, encoding="utf-8")
        files.append(location_of(file))
    return read_refusal_lists(files)


def test_hashes_refuse_bytes(tmp_path: Path) -> None:
    found = lists(tmp_path, f"# asked by the author\n\n{BYTES.upper()}  photo.jpg\r\n", "example.org")
    assert len(found.entries) == 2
    assert found.refuses((None,), BYTES)
    assert not found.refuses((None,), hashlib.sha256(b"another image").hexdigest())
    assert not found.refuses((None, None), None)
    assert lists(tmp_path, f"\\{BYTES}  a\\\\b.jpg").refuses((), BYTES)  # sha256sum's line for a name with a backslash
    ends_with_zero = "ab" * 31 + "00"
    assert lists(tmp_path, ends_with_zero).refuses((), ends_with_zero)
    assert not lists(tmp_path, "ab" * 31 + "01").refuses((), ends_with_zero)


@pytest.mark.parametrize(
    ("entry", "url", "refused"),
    [
        ("https://example.com/a.jpg", "https://example.com/a.jpg", True),
        ("https://example.com/a.jpg", "http://EXAMPLE.com:80/a.jpg#top", True),
        ("https://example.com/a b.jpg", "https://example.com/a%20b.jpg", True),
        ("https://example.com/x?file=A b", "https://example.com/x?file=%41%20b", True),
        ("https://example.com/a.jpg?size=1", "https://example.com/a.jpg", False),
        ("https://example.com/a.jpg", "https://example.com/A.jpg", False),
        ("https://example.com/a.jpg", "https://www.example.com/a.jpg", False),
        ("https://example.com:8080/a.jpg", "https://example.com/a.jpg", False),
        ("s3://bucket/a.jpg", "s3://bucket/a.jpg", True),
        ("example.com", "https://example.com/a.jpg", True),
        ("Example.COM.", "https://cdn.images.example.com/x", True),
        ("www.example.com", "https://example.com/a.jpg", False),
        ("example.com", "https://notexample.com/a.jpg", False),
        ("example.com", "https://example.com.evil.org/a.jpg", False),
        ("example.com", "https://evil.org/example.com/a.jpg", False),
        ("example.com", "https://user@example.com/a.jpg", True),
        ("bücher.example", "https://xn--bcher-kva.example/a.jpg", True),
        ("example.com", "photos/example.com.jpg", False),
        ("example.com", "www.example.com/page", True),
        ("https://example.com/page", "//example.com/page", True),
        ("example.com", "\t\xa0https://example.com/a.jpg\n", True),
        ("example.com", "example.com/redirect?to=https://other.org/", True),
        ("example.com", "https://[broken", False),
    ],
)
def test_urls_and_domains(tmp_path: Path, entry: str, url: str, refused: bool) -> None:
    found = lists(tmp_path, entry)
    assert found.refuses((None, url), None) is refused
    assert found.refuses((url,), BYTES) is refused


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("example.com\nabc", r"line 2 of .*list-0.txt is 'abc'"),
        ("ab" * 31, "64 hexadecimal digits"),
        ("https://", "a URL such as"),
        ("example.com/a.jpg", "expected a SHA-256"),
        ("# nothing\n", "contains no entry"),
    ],
)
def test_a_list_with_anything_else_is_refused(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        lists(tmp_path, text)


def test_a_list_that_is_missing_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="doesn't exist"):
        read_refusal_lists([location_of(tmp_path / "none.txt")])
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="isn't UTF-8"):
        read_refusal_lists([location_of(tmp_path / "list.txt")])


def test_no_list_refuses_nothing() -> None:
    assert not NO_LISTS.refuses(("https://example.com/a.jpg",), BYTES)
