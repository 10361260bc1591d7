"""A tar is read whole where it is sound, and where it is not, that is said: nothing else is raised, and in bounds."""

import io
import tarfile
from pathlib import Path

import pytest

from segmint.infra.tars import MOST_HEADER_BYTES, BadTarError, TarReader, is_plain_file, starts_file
from tests.support.tars import tar_of

LONG = "a folder/" * 40 + "ünïcödé.json"


class OnlyReads:
    """A stream that cannot go back, as one that is hashed."""

    def __init__(self, data: bytes) -> None:
        self._stream = io.BytesIO(data)

    def read(self, size: int, /) -> bytes:
        return self._stream.read(min(size, 1000))  # as a socket may


def header(kind: bytes, size: int, name: bytes = b"x") -> bytes:
    """A header of any kind and size."""
    member = bytearray(tarfile.TarInfo("x").tobuf(tarfile.GNU_FORMAT))
    member[:100] = name.ljust(100, b"\0")
    member[156:157] = kind
    member[124:136] = (b"\x80" if size >= 0 else b"\xff") + (size & (1 << 88) - 1).to_bytes(11, "big")
    member[148:156] = b" " * 8
    member[148:156] = b"%06o\0 " % sum(member[:512])
    return bytes(member)


def pax(*records: str) -> bytes:
    """A pax header of records as `key=value`; each has fewer than 90 bytes, or more than 1000."""
    body = b""
    for record in records:
        length = len(record) + (4 if len(record) < 90 else 6)
        body += f"{length} {record}\n".encode()
    return header(b"x", len(body)) + body.ljust(-(-len(body) // 512) * 512, b"\0")


def read(data: bytes) -> dict[str, bytes]:
    """The files of a tar, read by seeking and by reading on, which must not differ."""
    seeking, reading = TarReader(io.BytesIO(data)), TarReader(OnlyReads(data))
    found = [(member.name, seeking.read(member)) for member in seeking if is_plain_file(member)]
    assert found == [(member.name, reading.read(member)) for member in reading if is_plain_file(member)]
    return dict(found)


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_files_with_names_of_any_length_are_read_in_order(tar_format: int) -> None:
    files = {"sa_1.jpg": b"j" * 70_000, LONG: b"{}", "empty": b"", "of a block": b"x" * 512}
    assert list(read(tar_of(files, tar_format)).items()) == list(files.items())


def test_members_may_be_skipped_and_the_stream_moved_between_them() -> None:
    stream = io.BytesIO(tar_of({"one": b"1" * 3000, "two": b"2", "three": b"3" * 600}))
    archive = TarReader(stream)
    found = []
    for member in archive:
        if member.name != "two":
            found.append(archive.read(member))
        stream.seek(7)
    assert found == [b"1" * 3000, b"3" * 600]


FILE = tar_of({"sa_1.jpg": b"j"})
FIELDS = header(b"0", 512) + b"9" * 512
ODD = {
    "a pax header of 8 exabytes": header(b"x", 1 << 63) + FILE,
    "a pax header over the limit": header(b"x", MOST_HEADER_BYTES + 1) + bytes(2 * MOST_HEADER_BYTES),
    "a long name of minus a thousand bytes": header(b"L", -1000) + FILE,
    "five thousand headers of one member": (header(b"L", 2) + b"a\0".ljust(512, b"\0")) * 5000 + FILE,
    "a size of 5000 digits": pax("GNU.sparse.map=0,1", "GNU.sparse.size=" + "9" * 5000) + FILE,
    "a size that leads back": pax("size=-9223372036854775809") + FILE,
    "a sparse map of text": pax("GNU.sparse.map=a,b", "GNU.sparse.size=1") + FILE,
    "a sparse map of half a pair": pax("GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.realsize=5") + FIELDS,
    "a file that ends early": FILE[:512],
    "a file of a zebibyte": header(b"0", 1 << 70) + FILE,
    "no tar": b"x" * 600,
    "nothing": b"",
}


def test_a_member_longer_than_any_file_is_refused_in_a_file_too(tmp_path: Path) -> None:
    path = tmp_path / "odd.tar"
    path.write_bytes(header(b"0", (1 << 62) - 512) + FILE)
    with path.open("rb") as stream, pytest.raises(BadTarError, match="end of data"):
        list(TarReader(stream))


@pytest.mark.parametrize("what", ODD)
def test_odd_headers_are_refused_in_words(what: str) -> None:
    with pytest.raises(BadTarError) as error:
        read(ODD[what])
    assert 5 < len(str(error.value)) < 200


def test_links_and_sparse_files_are_no_plain_files() -> None:
    sparse = pax("GNU.sparse.map=0,1", "GNU.sparse.size=9000000000") + header(b"0", 1) + b"x".ljust(512, b"\0")
    for odd in (header(b"2", 0), header(b"1", 0), header(b"6", 0), header(b"3", 0), sparse):
        assert [is_plain_file(member) for member in TarReader(io.BytesIO(odd + FILE))] == [False, True]


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_the_header_before_each_plain_file_says_its_size(tar_format: int) -> None:
    names = {"sa_1.jpg": b"j" * 70_000, "ünï.json": b"{}", "empty": b"", "f/" * 40 + "x" * 60: b"x" * 512}
    if tar_format != tarfile.USTAR_FORMAT:
        names[LONG] = b"y"
    data = tar_of(names, tar_format)
    found = {member.name: member for member in TarReader(io.BytesIO(data))}
    assert found.keys() == names.keys()
    for name, member in found.items():
        block = data[member.offset_data - 512 : member.offset_data]
        assert starts_file(block, len(names[name]))
        assert not starts_file(block, len(names[name]) + 1)
        assert not starts_file(block[:-1], len(names[name]))
        assert not starts_file(block[:20] + b"!" + block[21:], len(names[name]))  # the checksum is wrong


def test_a_header_of_anything_else_starts_no_plain_file() -> None:
    assert all(starts_file(header(kind, 8 << 30), 8 << 30) for kind in (b"0", b"\0", b"7"))
    for kind in b"123456DKLSVxgX":
        assert not starts_file(header(bytes([kind]), 7), 7)
    assert not starts_file(header(b"\0", 7, b"folder/"), 7)
    for size in (0, 7):
        assert not starts_file(bytes(512), size)
        assert not starts_file(b"", size)
