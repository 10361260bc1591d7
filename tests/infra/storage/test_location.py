"""A location does to its object what the storage does to its URI."""

import pickle
from pathlib import Path

import pytest

from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import UriNotAllowedError


@pytest.fixture
def folder(tmp_path: Path) -> Location:
    return Location(Storage(), str(tmp_path / "set"))


def test_locations_join_to_uris(folder: Location) -> None:
    bucket = Location(folder.storage, "s3://bucket/set/")
    assert str(bucket / "commits" / "a b.json") == "s3://bucket/set/commits/a b.json"
    assert (bucket / "commits/a.json").storage is bucket.storage
    assert (bucket / "commits/a.json").name == "a.json"
    assert str(bucket / "x//y.jpg") == "s3://bucket/set/x//y.jpg"
    assert str(folder / "x//./y.jpg") == f"{folder}/x/y.jpg"
    assert bucket / "x" == bucket / "x"
    assert len({bucket / "x", bucket / "x", bucket / "y"}) == 2
    with pytest.raises(UriNotAllowedError, match=r"'\.\.' is not allowed"):
        bucket / "../other"


def test_a_location_is_pickled_with_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for uri, there in (("set/a", f"{tmp_path}/set/a"), ("s3://bucket/set", "s3://bucket/set")):
        assert pickle.loads(pickle.dumps(Location(Storage(), uri))).uri == there


def test_a_location_reads_and_writes_its_object(folder: Location, tmp_path: Path) -> None:
    file = folder / "deep" / "a"
    assert not file.exists()
    with pytest.raises(NotFoundError):
        file.read()
    assert file.put_if_absent(b"12345")
    assert not file.put_if_absent(b"other")
    assert file.exists()
    assert (file.read(max_bytes=5), file.size()) == (b"12345", 5)
    assert file.sha256() == "5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5"
    assert file.size_and_sha256() == (5, file.sha256())
    with file.open() as stream, file.open_ranges(5) as ranges:
        assert stream.read() == ranges.read() == b"12345"

    file.get_file(tmp_path / "copy")
    file.put(b"over")
    assert file.read() == b"over"
    file.put_file(tmp_path / "copy")
    assert file.read() == b"12345"

    file.delete()
    assert not file.exists()
    file.put(b"1")
    file.purge()
    assert not file.exists()


def test_a_location_lists_what_is_below_it(folder: Location) -> None:
    for path in ("b", "a", "deep/c"):
        (folder / path).put(b"1")
    (folder / ".tmp-1").put(b"1")
    assert [entry.name for entry in folder.list()] == ["a", "b"]
    assert [entry.name for entry in folder.list(include_temporary=True)] == [".tmp-1", "a", "b"]
    assert [entry.name for entry in folder.walk()] == ["a", "b", "deep/c"]
    assert [entry.name for entry in folder.walk(include_temporary=True)] == [".tmp-1", "a", "b", "deep/c"]
    assert folder.walk_ever() == (".tmp-1", "a", "b", "deep/c")


def test_a_location_is_sent_to_another_process(folder: Location) -> None:
    (folder / "a").put(b"1")
    copy = pickle.loads(pickle.dumps(folder))
    assert copy.uri == folder.uri
    assert (copy / "a").read() == b"1"
