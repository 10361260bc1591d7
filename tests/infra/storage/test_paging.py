"""Listings end, also those of stores whose pages don't advance."""

import itertools
from collections.abc import Callable, Iterator

import pytest

from segmint.infra.storage import s3
from segmint.infra.storage.errors import StorageFaultError
from segmint.infra.storage.retry import RetryPolicy
from segmint.infra.storage.storage import Storage
from tests.support.tiny_s3 import Answer, Request, TinyS3, listing, tiny_s3

QUICK = RetryPolicy(attempts=3, first_wait_s=0.01, max_wait_s=0.02, deadline_s=10)
NEVER = "the store repeats its pages, so the listing would never end"

Page = Callable[[Request, int], Answer]


@pytest.fixture(scope="module")
def server() -> Iterator[TinyS3]:
    with tiny_s3() as server:
        yield server


def serve(server: TinyS3, page: Page) -> Storage:
    """A storage of a server whose listings have these pages. A page is called with its number, from 0."""
    server.reset()
    numbers = itertools.count()
    server.policy = lambda request, answer: answer if request.key else page(request, next(numbers))
    return Storage(server.options, QUICK)


def versions(names: list[str], key: str = "", version: str = "") -> Answer:
    """A page of a listing of versions that says that another one follows."""
    entries = "".join(
        f"<Version><Key>{name}</Key><VersionId>{number}</VersionId></Version>" for number, name in enumerate(names)
    )
    markers = f"<NextKeyMarker>{key}</NextKeyMarker>" * bool(key)
    markers += f"<NextVersionIdMarker>{version}</NextVersionIdMarker>" * bool(version)
    text = f"<ListVersionsResult><IsTruncated>true</IsTruncated>{entries}{markers}</ListVersionsResult>"
    return Answer(200, text.encode())


PAGES: dict[str, Page] = {
    "the same page": lambda request, number: listing(["d/a"], "next", truncated=True),
    "the same token": lambda request, number: listing([f"d/{number}"], "next", truncated=True),
    "two tokens in turn": lambda request, number: listing([f"d/{number}"], "ab"[number % 2], truncated=True),
    "no token": lambda request, number: listing(["d/a"], truncated=True),
    "an empty token": lambda request, number: listing(["d/a"], "", truncated=True),
    "folders": lambda request, number: listing([], "next", truncated=True, folders=("d/x/",)),
}


@pytest.mark.parametrize("name", PAGES)
def test_pages_that_lead_back_end_a_listing_at_once(server: TinyS3, name: str) -> None:
    storage = serve(server, PAGES[name])
    for look in (storage.list, lambda uri: list(storage.walk(uri))):
        with pytest.raises(StorageFaultError, match=rf"cannot list s3://acme/d/: {NEVER}"):
            look("s3://acme/d")
    assert len(server.requests) <= 6


def test_names_outside_of_the_prefix_are_refused(server: TinyS3) -> None:
    """A store that ignores the prefix would otherwise give names that are parts of other keys."""
    storage = serve(server, lambda request, number: listing(["a/photo.jpg", "d/a.jpg"]))
    for look in (storage.list, lambda uri: list(storage.walk(uri))):
        with pytest.raises(StorageFaultError, match=r"ignored the prefix d/ of a listing and sent a/photo\.jpg"):
            look("s3://acme/d")
    storage = serve(server, lambda request, number: versions(["a/photo.jpg"]))
    with pytest.raises(StorageFaultError, match="ignored the prefix d/ of a listing"):
        storage.versioned("s3://acme/d")


@pytest.mark.parametrize("keys", [["d/a", "d/b"], []], ids=["the same entries", "nothing"])
def test_new_tokens_for_old_entries_end_a_listing(
    server: TinyS3, keys: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "MOST_IDLE_PAGES", 5)
    storage = serve(server, lambda request, number: listing(keys, f"token{number}", truncated=True))
    with pytest.raises(StorageFaultError, match=NEVER):
        storage.list("s3://acme/d")
    assert len(server.requests) <= 6


VERSIONS: dict[str, Page] = {
    "the same markers": lambda request, number: versions(["x/y"], "x/y", "1"),
    "no markers": lambda request, number: versions(["x/y"]),
    "one key, and no version": lambda request, number: versions(["x/y", "x/y"], "x/y"),
    "two markers in turn": lambda request, number: versions(["x/y"], "xy"[number % 2]),
}


@pytest.mark.parametrize("name", VERSIONS)
def test_versions_that_lead_back_end_a_listing(server: TinyS3, name: str) -> None:
    storage = serve(server, VERSIONS[name])
    for look in (storage.versioned, storage.purge):
        with pytest.raises(StorageFaultError, match=NEVER):
            look("s3://acme/x")
    assert len([request for request in server.requests if not request.key]) <= 6


def test_pages_that_advance_are_all_read(server: TinyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty pages may come between others, and a folder may be on several pages."""
    monkeypatch.setattr(s3, "MOST_IDLE_PAGES", 3)

    def page(request: Request, number: int) -> Answer:
        at = int(request.query.get("continuation-token", "0"))
        keys = [] if at % 3 else [f"d/{at:03}"]
        return listing(keys, str(at + 1), truncated=at < 30, folders=("d/x/",) * (at % 3 == 1))

    names = [entry.name for entry in serve(server, page).list("s3://acme/d")]
    assert names == [f"{number:03}" for number in range(0, 31, 3)]


def test_versions_of_many_pages_are_all_read(server: TinyS3) -> None:
    def page(request: Request, number: int) -> Answer:
        at = int(request.query.get("version-id-marker", "0"))
        answer = versions([f"d/{at}"], "d/same", str(at + 1))
        return Answer(200, answer.body.replace(b"true", b"false")) if at == 20 else answer

    assert serve(server, page).versioned("s3://acme/d") == {str(number) for number in range(21)}
