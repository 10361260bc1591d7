"""Scan of a shard's images: their byte ranges in the tar, their hashes, and whether they can be decoded.

A scan is cached in a file that is named by the tar's hash. A correction replaces the tar, so the shard is then scanned
again. The files contain thumbnails, so they follow the same rules as cached embeddings; see `cache.py`.
"""

import hashlib
import io
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from segmint.catalogs.dataset.commits import FileEntry
from segmint.catalogs.layout import MOST_MEMBER_BYTES, DamagedDatasetError
from segmint.infra.log import get_logger
from segmint.infra.storage.errors import NotFoundError, StorageFaultError
from segmint.infra.storage.location import Location
from segmint.infra.tars import BadTarError, TarReader, is_plain_file
from segmint.operators.decoding import JpegDecoder, OverLimitError, UndecodableError
from segmint.operators.similar.hashes import THUMBNAIL, VIEWS, image_hashes

_SIDE = 256  # images are decoded at the smallest scale at which both sides have this many pixels
_NAME = re.compile(r"sa_([1-9]\d{0,17})\.(jpg|json)", re.ASCII)


@dataclass(frozen=True)
class ShardScan:
    """Scan of a tar's J JPEGs, sorted by image number.

    `ids` is (J,) int64. `places` (J, 4) int64 contains two ranges of bytes in the tar: start and stop of the JPEG, and
    start and stop of the JSON with its masks (0, 0 without a JSON). `sha256` (J, 32) uint8 is the JPEG's hash. `hashes`
    (J, 6) uint64 and `thumbnails` (J, 64, 64) uint8 are as in `ImageHashes`. `damage` (J,) explains why a JPEG can't be
    decoded, or is empty.
    """

    ids: NDArray[np.int64]
    places: NDArray[np.int64]
    sha256: NDArray[np.uint8]
    hashes: NDArray[np.uint64]
    thumbnails: NDArray[np.uint8]
    damage: NDArray[np.str_]


def scan_shard(dataset: Location, tar: FileEntry, kept: Location | None, decoder: JpegDecoder) -> ShardScan:
    """Read a tar's scan from the folder `kept`, or scan the tar and store the result there.

    If decoding a JPEG exceeds the limits of memory or time, the result isn't stored, so that the next run tries again.
    Raises `DamagedDatasetError` if the tar is unreadable.
    """
    file = None if kept is None else kept / f"{tar.sha256}.npz"
    known = None if file is None else _read(file)
    if known is not None:
        return known
    transient: list[str] = []
    looks = _collect(list(_scan_image(dataset / tar.path, decoder, transient)))
    if file is not None and not transient:
        buffer = io.BytesIO()
        np.savez(buffer, **{field.name: getattr(looks, field.name) for field in fields(looks)})
        try:
            file.put(buffer.getvalue())
        except StorageFaultError as error:
            get_logger("train").warning("not_kept", file=str(file), error=str(error), note="the next run scans again")
    return looks


def _read(file: Location) -> ShardScan | None:
    """Read a stored scan. Return None if it is missing or damaged."""
    try:
        data = file.read()
    except NotFoundError:
        return None
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            looks = ShardScan(**{field.name: arrays[field.name] for field in fields(ShardScan)})
    except (ValueError, KeyError, OSError, EOFError, SyntaxError, zipfile.BadZipFile):  # raised for a damaged file
        return None
    count = len(looks.ids)
    shapes = [getattr(looks, field.name).shape for field in fields(looks)]
    expected = [(count,), (count, 4), (count, 32), (count, VIEWS), (count, THUMBNAIL, THUMBNAIL), (count,)]
    return looks if shapes == expected else None


def _scan_image(tar: Location, decoder: JpegDecoder, transient: list[str]) -> Iterator[tuple[Any, ...]]:
    """Yield a row of `ShardScan` for each JPEG. Add the names of JPEGs with transient damage to `transient`."""
    rows: dict[int, tuple[Any, ...]] = {}
    documents: dict[int, tuple[int, int]] = {}
    try:
        with tar.open() as stream:
            archive = TarReader(stream)
            for member in archive:
                match = _NAME.fullmatch(member.name)
                if match is None:
                    continue
                if not is_plain_file(member) or member.size > MOST_MEMBER_BYTES:
                    raise DamagedDatasetError(f"{tar} is not a shard: {member.name} doesn't belong to an image")
                number, place = int(match[1]), (member.offset_data, member.offset_data + member.size)
                if match[2] == "json":
                    documents[number] = place
                else:
                    *seen, error = _see(archive.read(member), decoder)
                    rows[number] = (place, *seen, "" if error is None else f"its JPEG can't be decoded: {error}")
                    if isinstance(error, OverLimitError):
                        transient.append(member.name)
    except BadTarError as error:
        raise DamagedDatasetError(f"{tar} is not a readable shard: {error}") from error
    for number, (place, *seen) in sorted(rows.items()):
        yield number, (*place, *documents.get(number, (0, 0))), *seen


def _see(jpeg: bytes, decoder: JpegDecoder) -> tuple[Any, ...]:
    """Hash a JPEG's bytes and its views. The last value is the error if it can't be decoded, or None."""
    digest = np.frombuffer(hashlib.sha256(jpeg).digest(), np.uint8)
    try:
        return digest, *decoder.run(_views, jpeg), None
    except UndecodableError as error:
        nothing = np.zeros(VIEWS, np.uint64), np.zeros((THUMBNAIL, THUMBNAIL), np.uint8)
        return digest, *nothing, error


def _views(jpeg: bytes) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    """Decode a JPEG at reduced scale and hash it."""
    gray = simplejpeg.decode_jpeg(jpeg, colorspace="GRAY", min_height=_SIDE, min_width=_SIDE, min_factor=1)
    hashes = image_hashes(np.asarray(gray)[..., 0], mirror=True)
    return hashes.views, hashes.thumbnail


def _collect(rows: list[tuple[Any, ...]]) -> ShardScan:
    columns = list(zip(*rows, strict=True)) or [()] * 6
    ids, places, sha256, hashes, thumbnails, damage = columns
    return ShardScan(
        np.array(ids, np.int64),
        np.array(places, np.int64).reshape(-1, 4),
        np.array(sha256, np.uint8).reshape(-1, 32),
        np.array(hashes, np.uint64).reshape(-1, VIEWS),
        np.array(thumbnails, np.uint8).reshape(-1, THUMBNAIL, THUMBNAIL),
        np.array(damage, np.str_),
    )
