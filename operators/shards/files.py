"""Pure functions that build a shard's files from its described rows, with the same bytes on every machine."""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from segmint.catalogs.dataset.commits import REJECTED, worst
from segmint.catalogs.dataset.handle import DatasetHandle
from segmint.catalogs.dataset.redaction_totals import HIGH_SHARE
from segmint.catalogs.layout import LEVELS, SCHEMA_VERSION, annotation_name, image_name
from segmint.catalogs.parquet import table_bytes
from segmint.catalogs.stages import StageColumn, TableColumn
from segmint.operators.rows import Row, to_table
from segmint.operators.schemas import ANNOTATION_STAGE, MASKS_PER_IMAGE_LIMIT, shard_schemas

ROW_GROUP_ROWS = 10_000
"""Number of rows per row group of `images`, `masks`, and `rejects`."""


@dataclass(frozen=True)
class ShardFiles:
    """Contents of a shard's four files, and the counts of their rows."""

    tar: bytes
    images: bytes
    masks: bytes
    rejects: bytes
    counts: dict[str, int]  # as in the commit
    most_redacted: tuple[tuple[int, float], ...] = ()


def annotations_json(image_id: int, file_name: str, size: tuple[int, int], masks: Sequence[Mapping[str, Any]]) -> bytes:
    """Return an image's JSON in the format of SA-1B's published files: fixed key order, compact, ASCII.

    `size` is (height, width) in pixels. Each mask must contain the keys of `MASK` and may contain an `index`, which
    determines its id. The annotations contain only SA-1B's keys. If any mask has an `output` or a `container`, the
    document gets an additional list, `outputs` or `containers`, with the values of all masks, for readers and repairs.
    """
    annotations = [
        {
            "id": annotation_id(image_id, mask_index(mask, position)),
            "segmentation": {"size": mask["segmentation"]["size"], "counts": mask["segmentation"]["counts"]},
            "bbox": mask["bbox"],
            "area": mask["area"],
            "predicted_iou": mask["predicted_iou"],
            "stability_score": mask["stability_score"],
            "crop_box": mask["crop_box"],
            "point_coords": mask["point_coords"],
        }
        for position, mask in enumerate(masks)
    ]
    image = {"image_id": image_id, "width": size[1], "height": size[0], "file_name": file_name}
    document: dict[str, Any] = {"image": image, "annotations": annotations}
    for name, key in LEVELS.items():
        values = [mask.get(name) for mask in masks]
        if values.count(None) < len(values):
            document[key] = values
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode("ascii")


def annotation_id(image_id: int, index: int) -> int:
    """Return the global id of an image's mask `index`, counted from 0. Raise `ValueError` if it is over the limit."""
    if index >= MASKS_PER_IMAGE_LIMIT:
        raise ValueError(f"image {image_id} has more than {MASKS_PER_IMAGE_LIMIT} masks: ids would collide")
    return image_id * MASKS_PER_IMAGE_LIMIT + index


def mask_index(mask: Mapping[str, Any], position: int) -> int:
    """Return a mask's number within its image, which is its `index` or, if that is null, its position."""
    index: int | None = mask.get("index")
    return position if index is None else index


def counts_of(mask: Mapping[str, Any]) -> str:
    """Return the run lengths in a mask's row."""
    return str(mask["segmentation"]["counts"])


def build_files_of(dataset: DatasetHandle, rows: Iterable[Row]) -> ShardFiles:
    """Build the files of one shard of a dataset, with its images, stages, and format, like `build_shard_files`."""
    return build_shard_files(
        rows, with_images=dataset.with_images, stages=dataset.stages, schema_version=dataset.schema_version
    )


def build_shard_files(
    rows: Iterable[Row],
    *,
    with_images: bool,
    stages: Sequence[StageColumn | TableColumn] = (),
    schema_version: int = SCHEMA_VERSION,
) -> ShardFiles:
    """Build the files of one shard from its rows in ordinal order. The counts include rejected rows.

    With `with_images`, the tar contains each image's released JPEG before the image's annotations. `stages` lists the
    columns of custom stages. The rows of images and their masks contain these columns by name.
    """
    schemas = shard_schemas(stages, schema_version)
    tar = io.BytesIO()
    images: list[Row] = []
    masks: list[Row] = []
    rejects: list[Row] = []
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for row in rows:
            if row["reason"] is not None:
                rejects.append(row)
                continue
            if with_images:
                _add(archive, image_name(row["id"]), row["release"])
            size = row["height"], row["width"]
            name = image_name(row["id"])
            _add(archive, annotation_name(row["id"]), annotations_json(row["id"], name, size, row["masks"]))
            images.append({**row, "masks": len(row["masks"]), "stage": row.get(ANNOTATION_STAGE)})
            masks.extend(_mask_rows(row))
    by_reason = Counter(f"{REJECTED}{row['reason']}" for row in rejects)
    counts = {
        "rows": len(images) + len(rejects),
        "images": len(images),
        "masks": len(masks),
        "rejected": len(rejects),
        **dict(sorted(by_reason.items())),
    }
    most_redacted: tuple[tuple[int, float], ...] = ()
    if schema_version == SCHEMA_VERSION:
        privacy, most_redacted = count_redactions(images)
        counts |= privacy
    return ShardFiles(
        tar=tar.getvalue(),
        images=shard_table_bytes(images, schemas["images"]),
        masks=shard_table_bytes(masks, schemas["masks"]),
        rejects=shard_table_bytes(rejects, schemas["rejects"]),
        counts=counts,
        most_redacted=most_redacted,
    )


def count_redactions(images: Iterable[Mapping[str, Any]]) -> tuple[dict[str, int], tuple[tuple[int, float], ...]]:
    """Return a commit's counts about redaction, without zeros, and its most redacted images, from rows of `images`."""
    counts: Counter[str] = Counter()
    high = []
    for row in images:
        share = row.get("redacted_share") or 0.0
        counts["unconfirmed"] += len(row.get("unconfirmed_detections") or ())
        counts["left_alone"] += len(row.get("left_alone") or ())
        if share > HIGH_SHARE:
            counts["highly_redacted"] += 1
            high.append((row["id"], share))
    return {name: count for name, count in sorted(counts.items()) if count}, worst(high)


def shard_table_bytes(rows: Iterable[Row], schema: pa.Schema) -> bytes:
    """Return the Parquet bytes of one of a shard's tables (see `shard_schemas`)."""
    return table_bytes(to_table(list(rows), schema), schema, ROW_GROUP_ROWS)


def _mask_rows(row: Row) -> list[Row]:
    identity: dict[str, Any] = {name: row[name] for name in ("ordinal", "id", "image_id")}
    return [
        {**identity, "annotation_id": annotation_id(row["id"], mask_index(mask, position)), **mask}
        for position, mask in enumerate(row["masks"])
    ]


def member_info(name: str, size: int) -> tarfile.TarInfo:
    """Return the tar header for a member of `size` bytes."""
    member = tarfile.TarInfo(name)
    member.size = size
    member.mtime = 0
    member.mode = 0o644
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    archive.addfile(member_info(name, len(data)), io.BytesIO(data))
