from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import fsspec
import pytest

from segmint.infra.errors import UsageError
from segmint.infra.storage.connections import FsspecStore
from segmint.infra.storage.stores import NO_TIME, ObjectVersion


@pytest.fixture
def memory_store():
    filesystem = fsspec.filesystem("memory", skip_instance_cache=True)
    filesystem.store.clear()
    return FsspecStore(filesystem)


def test_a_file_system_that_only_looks_first_is_refused(tmp_path) -> None:
    store = FsspecStore(fsspec.filesystem("file", skip_instance_cache=True))
    (tmp_path / "mine").write_bytes(b"mine")
    with pytest.raises(UsageError, match="only if it is absent"):
        store.create(str(tmp_path / "x"), b"1")
    with pytest.raises(UsageError, match="only if it is absent"):
        store.create_file(str(tmp_path / "x"), tmp_path / "mine")
    assert not (tmp_path / "x").exists()


def test_a_file_is_created_only_if_it_is_absent(memory_store, tmp_path) -> None:
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / "other").write_bytes(b"other")
    memory_store.create_file("/sub/a", tmp_path / "mine")
    with pytest.raises(FileExistsError):
        memory_store.create_file("/sub/a", tmp_path / "other")
    assert memory_store.read("/sub/a", None) == b"mine"


def test_another_fsspec_store_reads_lists_and_deletes(memory_store, tmp_path) -> None:
    memory_store.put("/d/b", b"bb")
    (tmp_path / "up").write_bytes(b"ccc")
    memory_store.put_file("/d/sub/c", tmp_path / "up")
    memory_store.create("/d/a", b"a")
    with pytest.raises(FileExistsError):
        memory_store.create("/d/a", b"other")
    assert memory_store.read("/d/b", None) == b"bb"
    assert memory_store.read_range("/d/sub/c", 1, 3, ObjectVersion())[0] == b"cc"
    assert memory_store.version("/d/b").size == 2
    assert [entry.name for entry in memory_store.walk("/d", recursive=False)] == ["a", "b"]
    assert [entry.name for entry in memory_store.walk("/d", recursive=True)] == ["a", "b", "sub/c"]
    assert list(memory_store.walk("/none", recursive=True)) == []
    memory_store.delete("/d/b")
    memory_store.delete("/d/b")
    with pytest.raises(FileNotFoundError):
        memory_store.version("/d/b")
    with pytest.raises(UsageError, match="older versions"):
        memory_store.purge("/d/a")
    with pytest.raises(UsageError, match="older versions"):
        memory_store.versioned("/d")


NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("info", "time"),
    [
        ({"mtime": NOON.timestamp()}, NOON),
        ({"created": datetime(2026, 5, 1, 12)}, NOON),
        ({"updated": "2026-05-01T12:00:00"}, NOON),
        ({"updated": "2026-05-01T12:00:00.000Z"}, NOON),
        ({"last_modified": NOON.astimezone(timezone(timedelta(hours=2)))}, NOON),
        ({"mtime": NOON.timestamp() * 10**6, "created": NOON}, NOON),  # of another unit
        ({"LastModified": "Fri, 01 May 2026"}, NO_TIME),
        ({"mtime": date(2026, 5, 1)}, NO_TIME),
        ({}, NO_TIME),
    ],
)
def test_times_of_a_listing_are_in_utc_or_unknown(info: dict[str, Any], time: datetime) -> None:
    filesystem = fsspec.filesystem("memory", skip_instance_cache=True)
    filesystem.find = lambda *_, **__: {"/d/a": {"name": "/d/a", "size": 1, "type": "file", **info}}
    (entry,) = FsspecStore(filesystem).walk("/d", recursive=False)
    assert (entry.modified, entry.modified.utcoffset()) == (time, timedelta(0))
