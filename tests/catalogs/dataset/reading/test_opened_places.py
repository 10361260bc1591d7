"""The places of images in a tar: those that `tarfile` finds, in tars of a build and of others."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from segmint.catalogs.dataset.reading.opened import find_places
from segmint.catalogs.layout import DamagedDatasetError
from tests.support.bombs import hostile_tar
from tests.support.locations import location_of


def reader(data: bytes) -> Callable[[int, int], bytes]:
    return lambda offset, size: data[offset : offset + size]


def expected(data: bytes) -> list[list[int]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        places = {member.name: (member.offset_data, member.size) for member in archive}
    absent = -1, 0
    names = [name for name in places if name.endswith(".json")]
    return [[*places.get(f"{name[:-5]}.jpg", absent), *places[name]] for name in names]


def tar(names: list[str], format: int = tarfile.USTAR_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format) as archive:
        for number, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size = 300 * number
            archive.addfile(member, io.BytesIO(bytes(300 * number)))
    return stream.getvalue()


def test_places_of_a_builds_tar(many: str) -> None:
    for path in sorted(Path(many, "shards").iterdir()):
        data = path.read_bytes()
        places = find_places(location_of(path), reader(data))
        assert places.tolist() == expected(data)
        assert data[places[0, 2] :].startswith(b'{"image":{"image_id":')


@pytest.mark.parametrize(
    ("names", "format"),
    [
        (["sa_1.jpg", "sa_1.json", "readme.txt", "sa_2.json"], tarfile.USTAR_FORMAT),
        (["a.jpg", "a.json"], tarfile.GNU_FORMAT),
        (["sa_1.jpg", "sa_1.json", "é" * 60 + ".jpg", "é" * 60 + ".json"], tarfile.PAX_FORMAT),
        ([], tarfile.USTAR_FORMAT),
    ],
)
def test_places_of_tars_that_others_made(names: list[str], format: int) -> None:
    data = tar(names, format)
    found = find_places(location_of("x.tar"), reader(data))
    assert found.tolist() == expected(data)
    assert found.nbytes == 32 * len(found)


@pytest.mark.parametrize(("kind", "told"), [(b"2", "no|not a regular file"), (b"0", "at most 268,435,456")])
def test_links_and_huge_members_are_damage(kind: bytes, told: str) -> None:
    with pytest.raises(DamagedDatasetError, match=told):
        find_places(location_of("x.tar"), reader(hostile_tar("sa_1.json", kind)))


def test_junk_is_damage() -> None:
    with pytest.raises(DamagedDatasetError, match="is not a readable shard"):
        find_places(location_of("x.tar"), reader(b"x" * 10_240))
