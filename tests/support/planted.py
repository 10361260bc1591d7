"""An original photograph hidden in committed files by somebody who makes all hashes match again.

`PLANTS` maps the name of each place to a function that hides the photograph there in the dataset of a folder. Readers
notice none of them, and the commits, the index, and the latest recorded version agree with the files afterwards.
"""

import base64
import functools
import hashlib
import io
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from segmint.catalogs.dataset.commits import Commit, CommitLog, FileEntry
from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.dataset.versions.digest import take_snapshot
from segmint.catalogs.dataset.versions.record import _listed, latest_version
from segmint.catalogs.layout import MANIFEST, SUMMARIES, commit_path, data_path, part_path
from tests.support.committed_shard import CommittedShard, write_commit
from tests.support.locations import location_of
from tests.support.photographs import photograph

Plant = Callable[[Path], None]
Edit = Callable[[bytes], bytes]
PLANTS: dict[str, Plant] = {}

_BLOCK, _RECORD = 512, 10_240  # bytes of a tar


@functools.cache
def original() -> bytes:
    """The photograph to hide, as JPEG."""
    stream = io.BytesIO()
    Image.fromarray(photograph("astronaut", (240, 240))).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def spaces() -> bytes:
    """The photograph's first bits as 50 kB of spaces and tabs."""
    return "".join(f"{byte:08b}" for byte in original()[:6_250]).translate({48: " ", 49: "\t"}).encode()


def record(dataset: Path) -> None:
    """Make the latest recorded version one of the dataset's files as they are."""
    for summary in (dataset / SUMMARIES).glob("*.json"):
        summary.unlink()
    latest = latest_version(location_of(dataset))
    if latest is not None:
        snapshot = take_snapshot(location_of(dataset), use_cache=False)
        changed = latest.model_copy(update={"digest": snapshot.digest, **_listed(snapshot)})
        (dataset / latest.path).write_bytes(changed.to_json())


def commit_of(dataset: Path) -> Commit:
    """The latest commit of the first shard."""
    commit = CommitLog(location_of(dataset)).latest(0)
    assert commit is not None
    return commit


def edit_file(dataset: Path, kind: str, edit: Edit) -> None:
    """Commit other bytes of a file of the first shard; `kind` is its folder."""
    commit = commit_of(dataset)
    old = commit.file(kind)
    data = edit((dataset / old.path).read_bytes())
    digest = hashlib.sha256(data).hexdigest()
    (dataset / old.path).unlink()
    entry = FileEntry(data_path(kind, commit.shard, digest), len(data), digest)
    (dataset / entry.path).write_bytes(data)
    write_commit(dataset, replace(commit, files=tuple(entry if each == old else each for each in commit.files)))
    record(dataset)


def edit_part(dataset: Path, edit: Edit) -> None:
    """Pin other bytes of the catalog's first part."""
    path = dataset / MANIFEST
    manifest = DatasetManifest.from_json(path.read_bytes())
    part = manifest.catalog[0]
    data = edit((dataset / part.path).read_bytes())
    digest = hashlib.sha256(data).hexdigest()
    (dataset / part.path).unlink()
    new = part.model_copy(update={"path": part_path(0, digest), "sha256": digest})
    (dataset / new.path).write_bytes(data)
    path.write_bytes(manifest.model_copy(update={"catalog": (new, *manifest.catalog[1:])}).to_json())
    record(dataset)


def by_another_pyarrow(data: bytes) -> bytes:
    """Return a Parquet file's bytes as if another version of pyarrow had written it."""
    number = pq.read_metadata(io.BytesIO(data)).created_by.rpartition(" ")[2].encode()
    other = b"9.0.0".ljust(len(number), b"1")
    return data.replace(b"arrow version " + number, b"arrow version " + other)


def _of_file(kind: str) -> Callable[[Edit], Edit]:
    """Registers a change of the bytes of a file in this folder."""

    def register(edit: Edit) -> Edit:
        PLANTS[edit.__name__] = lambda dataset: edit_file(dataset, kind, edit)
        return edit

    return register


# --- tar ---


@_of_file("shards")
def tar_tail(data: bytes) -> bytes:
    return data + original()


@_of_file("shards")
def tar_fill(data: bytes) -> bytes:
    end = len(data) - len(data.rstrip(b"\0")) - 2 * _BLOCK - _BLOCK
    assert end > 0
    return data[:-end] + original()[:end]


@_of_file("shards")
def tar_second_archive(data: bytes) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        _add(archive, "original.jpg", original())
    return data + sink.getvalue()


@_of_file("shards")
def tar_pax_comment(data: bytes) -> bytes:
    comment = {"comment": base64.b64encode(original()).decode()}
    return _tar([(info, content, comment if n == 0 else {}) for n, (info, content) in enumerate(_members(data))])


@_of_file("shards")
def tar_header(data: bytes) -> bytes:
    return _each_header(data, lambda header, piece: header[:157] + piece[:100] + header[257:500] + piece[100:112])


@_of_file("shards")
def tar_owner(data: bytes) -> bytes:
    return _each_header(data, lambda header, piece: header[:265] + piece[:64].replace(b"\0", b"0") + header[329:])


@_of_file("shards")
def tar_padding(data: bytes) -> bytes:
    changed, photo = bytearray(data), original()
    for info, _ in _members(data):
        end = info.offset_data + info.size
        room = -end % _BLOCK
        changed[end : end + room], photo = photo[:room], photo[room:]
    assert changed != data
    return bytes(changed)


@_of_file("shards")
def tar_member(data: bytes) -> bytes:
    return _tar([*((info, content, {}) for info, content in _members(data)), (_info("x"), original(), {})])


def _members(data: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return [(info, data[info.offset_data : info.offset_data + info.size]) for info in archive]


def _tar(members: list[tuple[tarfile.TarInfo, bytes, dict[str, str]]]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, content, headers in members:
            _add(archive, info.name, content, headers)
    return sink.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes, headers: dict[str, str] | None = None) -> None:
    info = _info(name)
    info.size, info.pax_headers = len(content), headers or {}
    archive.addfile(info, io.BytesIO(content))


def _info(name: str) -> tarfile.TarInfo:
    return tarfile.TarInfo(name)


def _each_header(data: bytes, edit: Callable[[bytes, bytes], bytes]) -> bytes:
    """Change each header with the next piece of the photograph, and correct its checksum."""
    changed = bytearray(data)
    for number, (info, _) in enumerate(_members(data)):
        piece = original()[112 * number : 112 * (number + 1)]
        header = bytearray(edit(data[info.offset : info.offset + _BLOCK], piece))
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        changed[info.offset : info.offset + _BLOCK] = header
    return bytes(changed)


# --- Parquet ---

Field = list[Any]  # number, kind, value


@_of_file("masks")
def parquet_metadata(data: bytes) -> bytes:
    def edit(footer: list[Field], body: bytes) -> bytes:
        pair = [[1, 8, b"note"], [2, 8, original()]]
        field(footer, 5)[2][1].append(pair)
        return body

    return edit_footer(data, edit)


@_of_file("masks")
def parquet_gap(data: bytes) -> bytes:
    def edit(footer: list[Field], body: bytes) -> bytes:
        _, columns = _columns(footer)
        at = _start(columns[3])
        for column in columns:
            for number in (9, 11):
                offset = field(column, number)
                if offset is not None and offset[2] >= at:
                    offset[2] += len(original())
        return body[:at] + original() + body[at:]

    return edit_footer(data, edit)


@_of_file("masks")
def parquet_after_the_last_page(data: bytes) -> bytes:
    def edit(footer: list[Field], body: bytes) -> bytes:
        group, columns = _columns(footer)
        for size in (field(columns[-1], 7), field(group, 6)):
            size[2] += len(original())
        return body + original()

    return edit_footer(data, edit)


@_of_file("masks")
def parquet_after_a_frame(data: bytes) -> bytes:
    """A frame that Zstandard decoders skip, after the frame of the last page."""
    size = len(original()).to_bytes(4, "little")
    return _edit_last_page(data, lambda page, _: page + b"\x50\x2a\x4d\x18" + size + original())


@_of_file("masks")
def parquet_after_the_values(data: bytes) -> bytes:
    """More content in the last page than its values need."""
    codec = pa.Codec("zstd")
    return _edit_last_page(
        data, lambda page, size: codec.compress(codec.decompress(page, size, asbytes=True) + original(), asbytes=True)
    )


def _edit_last_page(data: bytes, change: Callable[[bytes, int], bytes]) -> bytes:
    """Change the last page, which is given with its decompressed size."""

    def edit(footer: list[Field], body: bytes) -> bytes:
        group, columns = _columns(footer)
        start = field(columns[-1], 9)[2]
        header, end = read_struct(body, start)
        decompressed, size = field(header, 2), field(header, 3)
        assert end + size[2] == len(body), "the last chunk has one data page"
        page = change(body[end:], decompressed[2])
        if not page.startswith(body[end:]):
            decompressed[2] += len(original())
        size[2] = len(page)
        changed = body[:start] + write_struct(header) + page
        for total in (field(columns[-1], 7), field(group, 6)):
            total[2] += len(changed) - len(body)
        return changed

    return edit_footer(data, edit)


@_of_file("masks")
def parquet_before_the_footer(data: bytes) -> bytes:
    return edit_footer(data, lambda footer, body: body + original())


@_of_file("masks")
def parquet_unknown_field(data: bytes) -> bytes:
    def edit(footer: list[Field], body: bytes) -> bytes:
        footer.append([100, 8, original()])
        return body

    return edit_footer(data, edit)


@_of_file("masks")
def parquet_statistics(data: bytes) -> bytes:
    def edit(footer: list[Field], body: bytes) -> bytes:
        _, columns = _columns(footer)
        statistics = field(next(column for column in columns if b"image_id" in field(column, 3)[2][1]), 12)[2]
        field(statistics, 5)[2] = original()[:4000]
        return body

    return edit_footer(data, edit)


def edit_footer(data: bytes, edit: Callable[[list[Field], bytes], bytes]) -> bytes:
    """Change a Parquet file's footer, given to `edit` as fields with all bytes before it, which `edit` returns."""
    size = int.from_bytes(data[-8:-4], "little")
    footer, _ = read_struct(data, len(data) - 8 - size)
    body = edit(footer, data[: -8 - size])
    written = write_struct(footer)
    return body + written + len(written).to_bytes(4, "little") + b"PAR1"


def field(fields: list[Field], number: int) -> Any:
    """The field with a number, or None."""
    return next((each for each in fields if each[0] == number), None)


def _columns(footer: list[Field]) -> tuple[list[Field], list[list[Field]]]:
    """The first row group, and the metadata of its columns."""
    group = field(footer, 4)[2][1][0]
    return group, [field(chunk, 3)[2] for chunk in field(group, 1)[2][1]]


def _start(column: list[Field]) -> int:
    return int((field(column, 11) or field(column, 9))[2])


def read_struct(data: bytes, at: int) -> tuple[list[Field], int]:
    """Read a struct of Thrift's compact protocol; lists are [kind, values]."""
    fields: list[Field] = []
    number = 0
    while data[at]:
        step, kind = data[at] >> 4, data[at] & 15
        at += 1
        if step == 0:
            step, at = _number(data, at)
            number = 0
        number += step
        value, at = (kind == 1, at) if kind in (1, 2) else _value(data, at, kind)
        fields.append([number, kind, value])
    return fields, at + 1


def _value(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in (1, 2, 3):
        return data[at], at + 1
    if kind in (4, 5, 6):
        return _number(data, at)
    if kind == 8:
        size, at = _unsigned(data, at)
        return data[at : at + size], at + size
    if kind == 9:
        size, inner, at = data[at] >> 4, data[at] & 15, at + 1
        if size == 15:
            size, at = _unsigned(data, at)
        values = []
        for _ in range(size):
            value, at = _value(data, at, inner)
            values.append(value)
        return [inner, values], at
    assert kind == 12, kind
    return read_struct(data, at)


def _unsigned(data: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        value |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return value, at
        shift += 7


def _number(data: bytes, at: int) -> tuple[int, int]:
    value, at = _unsigned(data, at)
    return (value >> 1) ^ -(value & 1), at


def write_struct(fields: list[Field]) -> bytes:
    """Return the bytes of a struct that `read_struct` reads."""
    written, last = b"", 0
    for number, kind, value in fields:
        step, last = number - last, number
        head = bytes([step << 4 | kind]) if 0 < step < 16 else bytes([kind]) + _varint(number << 1)
        written += head + (b"" if kind in (1, 2) else _written(kind, value))
    return written + b"\0"


def _written(kind: int, value: Any) -> bytes:
    if kind in (1, 2, 3):
        return bytes([value])
    if kind in (4, 5, 6):
        return _varint(value << 1 if value >= 0 else (-value << 1) - 1)
    if kind == 8:
        return _varint(len(value)) + value
    if kind == 9:
        inner, values = value
        head = bytes([len(values) << 4 | inner]) if len(values) < 15 else bytes([0xF0 | inner]) + _varint(len(values))
        return head + b"".join(_written(inner, each) for each in values)
    return write_struct(value)


def _varint(value: int) -> bytes:
    written = b""
    while value > 127:
        written, value = written + bytes([value & 127 | 128]), value >> 7
    return written + bytes([value])


# --- JPEG ---


def _of_jpeg(edit: Edit) -> Edit:
    """Registers a change of the bytes of the first shard's first JPEG."""

    def plant(dataset: Path) -> None:
        shard = CommittedShard(dataset, 0)
        shard.edit_member(0, edit)
        shard.write()
        record(dataset)

    PLANTS[edit.__name__] = plant
    return edit


@_of_jpeg
def jpeg_fill(data: bytes) -> bytes:
    at = data.index(b"\xff\xda")
    return data[:at] + b"\xff" * 50_000 + data[at:]


@_of_jpeg
def jpeg_spare_table(data: bytes) -> bytes:
    photo = original()
    tables = (photo[start : start + 64].ljust(64, b"\1") for start in range(0, len(photo), 64))
    at = data.index(b"\xff\xda")
    return data[:at] + b"".join(b"\xff\xdb\0\x43\3" + table for table in tables) + data[at:]


@_of_jpeg
def jpeg_comment(data: bytes) -> bytes:
    comment = original()[:60_000]
    return data[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + data[2:]


@_of_jpeg
def jpeg_after_the_end(data: bytes) -> bytes:
    return data + original()


@_of_jpeg
def jpeg_scan_tail(data: bytes) -> bytes:
    return data[:-2] + original().replace(b"\xff", b"\xff\0") + data[-2:]


@_of_jpeg
def jpeg_short_scan_tail(data: bytes) -> bytes:
    return data[:-2] + b"me" + data[-2:]


@_of_jpeg
def jpeg_restarts(data: bytes) -> bytes:
    """Markers of restarts, three bits in each, which decoders without a restart interval skip."""
    bits = "".join(f"{byte:08b}" for byte in original()[:300])
    marks = (0xD0 + int(bits[start : start + 3], 2) for start in range(0, len(bits), 3))
    return data[:-2] + b"".join(bytes([0xFF, mark]) for mark in marks) + data[-2:]


# --- JSON ---


def _of_json(name: str, path: Callable[[Path], str], edit: Edit) -> None:
    def plant(dataset: Path) -> None:
        file = dataset / path(dataset)
        file.write_bytes(edit(file.read_bytes()))
        record(dataset)

    PLANTS[name] = plant


def _manifest(_: Path) -> str:
    return MANIFEST


def _commit(dataset: Path) -> str:
    commit = commit_of(dataset)
    return commit_path(commit.shard, commit.generation)


for _name, _path, _key in (("manifest", _manifest, b'"name":"'), ("commit", _commit, b'"numerics":"')):
    _of_json(
        f"{_name}_key_twice",
        _path,
        lambda data, key=_key: data[:1] + key + base64.b64encode(original()) + b'",' + data[1:],  # type: ignore[misc]
    )
    _of_json(f"{_name}_spaces", _path, lambda data: data[:1] + spaces() + data[1:])
