"""Images of a report, which are chosen deterministically, scaled down, and shown with their masks."""

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import cv2
import numpy as np
from PIL import Image

from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.foreign import read_jpeg
from segmint.catalogs.dataset.tables import DatasetTables
from segmint.catalogs.layout import MOST_MEMBER_BYTES, image_name
from segmint.infra.errors import SegmintError
from segmint.infra.storage.storage import Storage
from segmint.infra.tars import BadTarError, TarReader, is_plain_file
from segmint.infra.uris import join
from segmint.model.automatic.records import MaskRecord
from segmint.model.automatic.rle import Rle
from segmint.operators.decoding import PICTURES, JpegDecoder, UndecodableError
from segmint.operators.overlay import draw_overlay

LONG_SIDE = 720
"""Maximum length in pixels of the longer side of an image in a report."""

_QUALITY = 82  # JPEG quality
_STRATA = (0, 10, 50, 100, 200)  # masks per image: the paper's bins, plus one for images without masks

_COLUMNS = "ordinal, id, shard, image_id, masks, width, height, license, attribution, provider, country"

Read = bytes | str
"""Bytes of an image, or the reason why there are none."""


@dataclass(frozen=True)
class ReportImage:
    """Image of a report. `jpeg` is the image scaled down, with its masks, or None if it can't be shown."""

    id: int
    image_id: str | None
    masks: int
    width: int
    height: int
    license: str | None
    attribution: str | None
    provider: str | None
    country: str | None
    jpeg: bytes | None
    problem: str = ""  # why `jpeg` is None

    @property
    def data_uri(self) -> str:
        """JPEG as a data URI."""
        return f"data:image/jpeg;base64,{base64.b64encode(self.jpeg or b'').decode('ascii')}"


def choose_images(tables: DatasetTables, wanted: int, without: Iterable[int] = ()) -> list[int]:
    """Choose up to `wanted` images, and return their ids in order of their number of masks.

    Images are grouped into strata by masks per image, and drawn from the strata round-robin. Within a stratum, a hash
    of the id determines the order, so the order of the rows doesn't affect the choice. Ids in `without` and foreign
    images without a JPEG are skipped.
    """
    if not wanted:
        return []
    stratum = " + ".join(f"(masks > {limit})::INT" for limit in _STRATA)
    drawable = "AND ordinal IN (SELECT ordinal FROM jpegs) " if tables.kind != "segmint" else ""
    rows = tables.query(
        f"SELECT {stratum} AS stratum, min_by(id, md5(id::VARCHAR), {wanted}) AS ids FROM images "
        f"WHERE NOT list_contains(?::BIGINT[], id) {drawable}GROUP BY stratum ORDER BY stratum",
        [sorted(without)],
    ).to_pylist()
    chosen = [row["ids"][place] for place in range(wanted) for row in rows if place < len(row["ids"])]
    by_masks = "SELECT id FROM images WHERE list_contains(?::BIGINT[], id) ORDER BY masks, id"
    return list(dict.fromkeys(tables.query(by_masks, [chosen[:wanted]]).column("id").to_pylist()))


def draw_pictures(
    tables: DatasetTables, storage: Storage, commits: Sequence[Commit], ids: Sequence[int]
) -> list[ReportImage]:
    """Draw these images in order, from committed released pixels. Missing ids are skipped.

    Foreign JPEGs are decoded and drawn in a child process, because they might crash it.
    """
    if not ids:
        return []
    found = tables.query(
        f"SELECT {_COLUMNS} FROM images WHERE list_contains(?::BIGINT[], id) ORDER BY ordinal DESC", [list(ids)]
    )
    rows = {row["id"]: row for row in found.to_pylist()}  # foreign data can repeat an id; the first image wins
    masks = _masks_of(tables, rows.values())
    read = _foreign(tables, rows) if tables.kind != "segmint" else _own(tables, storage, commits, rows)
    with JpegDecoder(own=tables.kind == "segmint", processes=1) as decoder:
        drawn = {id: _picture(rows[id], masks.get(rows[id]["ordinal"], []), jpeg, decoder) for id, jpeg in read}
    return [drawn[id] for id in ids if id in drawn]


def draw_small(jpeg: bytes, masks: Sequence[MaskRecord]) -> bytes:
    """Scale an image down to sides of at most `LONG_SIDE` pixels, draw its masks, and encode it as a JPEG.

    Raises `OSError` or `ValueError` if the data isn't an image, if the image is too large, or if a mask has another
    size.
    """
    with Image.open(io.BytesIO(jpeg), formats=PICTURES) as image:
        for mask in masks:
            if mask.segmentation.size != (image.height, image.width):
                raise ValueError(
                    f"a mask is {mask.segmentation.size} in size, but the image is {(image.height, image.width)}"
                )
        pixels = np.asarray(image.convert("RGB"))
    drawn = draw_overlay(pixels, masks)
    scale = min(1.0, LONG_SIDE / max(drawn.shape[:2]))
    size = max(1, round(drawn.shape[1] * scale)), max(1, round(drawn.shape[0] * scale))
    small = np.asarray(cv2.resize(drawn, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).save(buffer, format="JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _masks_of(tables: DatasetTables, rows: Iterable[Mapping[str, Any]]) -> dict[int, list[MaskRecord]]:
    """Return the masks of images by ordinal."""
    found: dict[int, list[MaskRecord]] = {}
    table = tables.query(
        "SELECT ordinal, segmentation, area FROM masks "
        "WHERE list_contains(?::BIGINT[], shard) AND list_contains(?::BIGINT[], ordinal)",
        [sorted({row["shard"] for row in rows}), sorted(row["ordinal"] for row in rows)],
    )
    for row in table.to_pylist():
        height, width = row["segmentation"]["size"]
        rle = Rle((height, width), row["segmentation"]["counts"])
        found.setdefault(row["ordinal"], []).append(MaskRecord(rle, row["area"]))
    return found


def _own(
    tables: DatasetTables, storage: Storage, commits: Sequence[Commit], rows: Mapping[int, Mapping[str, Any]]
) -> Iterator[tuple[int, Read]]:
    held = {commit.shard: commit for commit in commits}
    by_shard: dict[int, list[int]] = {}
    for id, row in sorted(rows.items()):
        by_shard.setdefault(row["shard"], []).append(id)
    for shard, members in by_shard.items():
        yield from _from_tar(storage, join(tables.location.uri, held[shard].file("shards").path), members)


def _from_tar(storage: Storage, uri: str, ids: Iterable[int]) -> Iterator[tuple[int, Read]]:
    """Yield the JPEGs of images from their shard's tar. Stop reading after the last one."""
    wanted = {image_name(id): id for id in ids}
    problem = "not in its shard's tar"
    try:
        with storage.open(uri) as stream:
            archive = TarReader(stream)
            for member in archive:
                if member.name in wanted and is_plain_file(member) and member.size <= MOST_MEMBER_BYTES:
                    yield wanted.pop(member.name), archive.read(member)
                if not wanted:
                    return
    except (BadTarError, SegmintError) as error:
        problem = f"can't read its shard's tar: {error}"
    for id in wanted.values():
        yield id, problem


def _foreign(tables: DatasetTables, rows: Mapping[int, Mapping[str, Any]]) -> Iterator[tuple[int, Read]]:
    for id, row in rows.items():
        jpeg = read_jpeg(tables, row["ordinal"])
        yield id, "no JPEG" if jpeg is None else jpeg


def _picture(row: Mapping[str, Any], masks: Sequence[MaskRecord], jpeg: Read, decoder: JpegDecoder) -> ReportImage:
    picture = ReportImage(
        id=row["id"],
        image_id=row["image_id"],
        masks=row["masks"] or 0,
        width=row["width"] or 0,
        height=row["height"] or 0,
        license=row["license"],
        attribution=row["attribution"],
        provider=row["provider"],
        country=row["country"],
        jpeg=None,
    )
    if isinstance(jpeg, str):
        return replace(picture, problem=jpeg)
    try:
        return replace(picture, jpeg=decoder.run(partial(draw_small, masks=masks), jpeg))
    except (UndecodableError, SegmintError) as error:
        return replace(picture, problem=f"it can't be decoded or drawn: {error}")
