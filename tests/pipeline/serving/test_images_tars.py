"""A file's bytes out of a tar of which little is read."""

import io
import tarfile
from collections.abc import Callable

import numpy as np
import pytest

from segmint.catalogs.layout import DamagedDatasetError
from segmint.pipeline.serving.images import TarIndex


def tar_of(files: dict[str, bytes], tar_format: int = tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def index_of(tar: bytes, size: int | None = None) -> tuple[TarIndex, list[tuple[int, int]]]:
    """An index over bytes, and the ranges that it reads."""
    ranges: list[tuple[int, int]] = []

    def read_range(start: int, stop: int) -> bytes:
        ranges.append((start, stop))
        return tar[start:stop]

    return TarIndex("x.tar", len(tar) if size is None else size, read_range), ranges


def noise(size: int) -> bytes:
    return np.random.default_rng(size).bytes(size)


FILES = {f"sa_{i}.{ending}": noise(n) for i in range(1, 40) for ending, n in (("jpg", 150_000 + i), ("json", 900 * i))}


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_every_file_has_its_bytes(tar_format: int) -> None:
    index, _ = index_of(tar_of(FILES, tar_format))
    for name in sorted(FILES):
        assert index.read(name) == FILES[name], name
    assert index.read("sa_40.jpg") is None
    assert index.read("../sa_1.jpg") is None


def test_a_walk_goes_no_further_than_it_must_and_is_not_repeated() -> None:
    tar = tar_of(FILES)
    index, ranges = index_of(tar)
    index.find("sa_2.jpg")
    assert max(stop for _, stop in ranges) < 600_000
    index.find("sa_39.jpg")
    assert sum(stop - start for start, stop in ranges) < len(tar) / 2
    assert len(ranges) <= len(FILES)
    known = len(ranges)
    assert index.find("sa_1.json") is not None
    assert index.find("sa_40.jpg") is None
    assert index.find("sa_40.jpg") is None
    assert len(ranges) <= known + 2


def test_empty_files_and_empty_tars() -> None:
    index, _ = index_of(tar_of({"sa_1.jpg": b"", "sa_2.jpg": b"x"}))
    assert (index.read("sa_1.jpg"), index.read("sa_2.jpg")) == (b"", b"x")
    assert index_of(tar_of({}))[0].read("sa_1.jpg") is None
    assert index_of(b"")[0].read("sa_1.jpg") is None


def _link(member: tarfile.TarInfo) -> None:
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"


def _huge(member: tarfile.TarInfo) -> None:
    member.size = 1 << 40


def _negative(member: tarfile.TarInfo) -> None:
    member.size = -1024


@pytest.mark.parametrize("change", [_link, _huge, _negative])
def test_a_member_that_is_no_file_is_damage(change: Callable[[tarfile.TarInfo], None]) -> None:
    member = tarfile.TarInfo("sa_1.jpg")
    change(member)
    tar = member.tobuf(tarfile.GNU_FORMAT) + bytes(10_240)
    with pytest.raises(DamagedDatasetError, match=r"sa_1\.jpg"):
        index_of(tar)[0].read("sa_1.jpg")


def test_a_tar_that_is_cut_or_none_is_damage() -> None:
    tar = tar_of(FILES)
    with pytest.raises(DamagedDatasetError, match="ends at byte"):
        index_of(tar[: len(tar) // 2], len(tar))[0].read("sa_39.jpg")
    with pytest.raises(DamagedDatasetError, match="extends past the end"):
        index_of(tar[: len(tar) // 2])[0].read("sa_39.jpg")
    with pytest.raises(DamagedDatasetError, match="can't be read as a tar"):
        index_of(noise(100_000))[0].read("sa_1.jpg")
