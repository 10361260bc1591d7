"""A storage as a file system: reads what is asked for, and writes nothing."""

import io
from pathlib import Path

import pytest

from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import StorageFiles
from segmint.infra.storage.s3 import S3Store
from segmint.infra.storage.storage import Storage
from segmint.infra.storage.stores import ObjectVersion


def test_reads_pieces_of_an_object(tmp_path: Path) -> None:
    path = str(tmp_path / "a[1]*")
    Path(path).write_bytes(b"0123456789")
    files = StorageFiles(Storage(), "file", {})
    assert files.glob(path) == [path]
    assert files.size(path) == 10
    assert files.isfile(path)
    assert not files.isfile(f"{path}x")
    with files.open(path) as stream:
        stream.seek(3)
        assert stream.read(4) == b"3456"
    with pytest.raises(io.UnsupportedOperation, match="read-only"):
        files.open(path, "wb")
    with pytest.raises(NotFoundError):
        files.open(f"{path}x")


@pytest.mark.s3
def test_asks_s3_for_what_is_read_alone(
    s3_bucket: str, s3_options: dict[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, uri = Storage(s3_options), f"s3://{s3_bucket}/object"
    storage.put(uri, bytes(range(256)) * 100)
    asked: list[tuple[int, int]] = []
    read_range = S3Store.read_range

    def noted(self: S3Store, uri: str, start: int, stop: int, first: ObjectVersion) -> tuple[bytes, ObjectVersion]:
        asked.append((start, stop))
        return read_range(self, uri, start, stop, first)

    monkeypatch.setattr(S3Store, "read_range", noted)
    with StorageFiles(storage, "s3", {uri: 25_600}).open(uri) as stream:
        stream.seek(1000)
        assert stream.read(3) == bytes([232, 233, 234])
        stream.seek(-2, io.SEEK_END)
        assert stream.read(100) == bytes([254, 255])
    assert asked == [(1000, 1003), (25_598, 25_600)]
