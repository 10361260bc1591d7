"""Audit of mask origins: sources, and the shares of masks inside the redacted regions of the image."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from segmint.catalogs.dataset.mask_labels import MASK_LABEL
from segmint.catalogs.findings import Code, Finding, FindingLocation
from segmint.catalogs.layout import MOST_PIXELS
from segmint.model.automatic import rle
from segmint.operators.audit.mask_columns import of_people
from segmint.operators.describe import redaction_columns
from segmint.operators.redactions import MANUAL, redacted_share
from segmint.operators.rows import Row
from segmint.operators.schemas import AUTOMATIC, IMPORT, MASKS_PER_IMAGE_LIMIT, PERSON, SOURCES
from segmint.operators.segment.artifacts import RedactionArtifacts

TOLERANCE = 1e-6
"""Maximum difference between a stored share and the recomputed share."""

_ANNOTATION = ("submission", "annotator", "stage", "seconds", "complete", "masks_model")
_LABELS = (*MASK_LABEL, "output")
_SIZES = ("source_height", "source_width", "height", "width")


def annotated_images(images: pa.Table, masks: pa.Table) -> frozenset[int]:
    """Return the ordinals of images whose masks people or `segmint apply` changed, by their or their masks' rows."""
    said = [pc.is_valid(images.column(name)) for name in _ANNOTATION]
    by_row = images.column("ordinal").to_numpy()[np.any([each.to_numpy() for each in said], axis=0)]
    return frozenset({*by_row.tolist(), *masks.column("ordinal").to_numpy()[of_people(masks)].tolist()})


@dataclass(frozen=True)
class MaskOrigins:
    """Columns of the masks table about the origins of N masks."""

    source: Sequence[str | None]
    share: NDArray[np.float64]  # (N,) NaN if missing
    iou: NDArray[np.float64]  # (N,) NaN if missing
    bad_label: NDArray[np.bool_]  # (N,) true if the columns of the label or the output are invalid
    bad_container: NDArray[np.bool_]  # (N,) true if the container isn't a larger mask of the same image

    @classmethod
    def of(cls, masks: pa.Table) -> "MaskOrigins":
        """Read the origins from a table with the schema `MASKS`."""
        share, iou = (masks.column(name).to_numpy() for name in ("redacted_share", "redaction_iou"))
        return cls(
            masks.column("source").to_pylist(),
            np.asarray(share, np.float64),
            np.asarray(iou, np.float64),
            _bad_labels(masks),
            _bad_containers(masks),
        )


def _bad_labels(masks: pa.Table) -> NDArray[np.bool_]:
    """Return, for each mask, whether its label columns contradict each other or the format in docs/dataset.md."""

    label, score, source, output = (masks.column(name) for name in _LABELS)
    by_model = bools(pc.match_substring_regex(source, r"\Amodel:[0-9a-f]{64}\z"))
    known = by_model | bools(pc.is_in(source, pa.array([PERSON, IMPORT])))
    stray = bools(source.is_valid()) & ~bools(pc.equal(source, PERSON))  # without a label, a person removed it
    bad: NDArray[np.bool_] = np.where(bools(label.is_valid()), ~known, stray)
    bad |= bools(score.is_valid()) & ~(by_model & bools(pc.is_finite(score)))
    return bad | bools(pc.or_(pc.less(output, 0), pc.greater(output, 2)))


def bools(values: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Convert a Boolean column to an array, with False for null."""
    return np.asarray(pc.fill_null(values, False).to_numpy(), bool)


def _bad_containers(masks: pa.Table) -> NDArray[np.bool_]:
    """Return, for each mask, whether its container is invalid. A container must be a larger mask of the same image.

    If two masks have the same area, the one with the lower id counts as larger.
    """
    columns = (masks.column(name) for name in ("annotation_id", "id", "area", "container"))
    ids, images, areas, containers = (column.fill_null(-1).to_numpy() for column in columns)
    if not len(ids):
        return np.zeros(0, bool)
    order = np.argsort(ids, kind="stable")
    place = order[np.searchsorted(ids, containers, sorter=order).clip(0, len(ids) - 1)]
    larger = (areas[place] > areas) | ((areas[place] == areas) & (containers < ids))
    holds = (ids[place] == containers) & (images[place] == images) & larger
    return np.asarray(bools(masks.column("container").is_valid()) & ~holds)


def audit_origins(
    row: Row,
    origins: MaskOrigins,
    span: tuple[int, int],
    codes: Sequence[str] | None,
    ids: Sequence[int],
    place: FindingLocation,
    artifacts: RedactionArtifacts | None,
) -> Iterator[Finding]:
    """Yield findings about the origins of an image's masks.

    - `row`: the image's row of `images/*.parquet`.
    - `span`: the range [start, stop) of the masks' positions in the table.
    - `codes`: the compressed run lengths of these masks, or None if any of them are damaged.
    - `ids`: the annotation ids of these masks.
    - `artifacts`: the build's filter of artifacts. If it is None, shares aren't checked.
    """
    start, stop = span
    for source, id in zip(origins.source[start:stop], ids, strict=True):
        if source not in SOURCES:
            expected = f"a source of {', '.join(SOURCES)}"
            yield place.finding(Code.UNKNOWN_SOURCE, expected, repr(source), f"mask {id}", mask=id)
    for index in np.flatnonzero(origins.bad_label[start:stop]).tolist():
        expected = "a label with its source, a model's score, an output from 0 to 2"
        yield place.finding(Code.BAD_LABEL, expected, "other values", f"mask {ids[index]}", mask=ids[index])
    for index in np.flatnonzero(origins.bad_container[start:stop]).tolist():
        expected = "a larger mask of its image as container"
        yield place.finding(Code.BAD_CONTAINER, expected, "another value", f"mask {ids[index]}", mask=ids[index])
    found = np.stack([origins.share[start:stop], origins.iou[start:stop]], axis=1)
    absent = np.isnan(found)
    automatic = np.array([source == AUTOMATIC for source in origins.source[start:stop]], bool)
    needed = np.array([source in SOURCES for source in origins.source[start:stop]], bool)
    if artifacts is None or codes is None or (absent.all() and not needed.any()):
        return
    try:
        shares, ious = redaction_columns({**row, "regions": _regions(row)}, codes)
    except (TypeError, ValueError, ArithmeticError) as error:
        yield place.finding(Code.REDACTED_SHARE, "regions in an image of known sizes", error, f"id {row['id']}")
        return
    wanted = np.stack([np.asarray(shares, np.float64), np.asarray(ious, np.float64)], axis=1)
    near = np.abs(found - wanted) <= TOLERANCE
    right = near.all(axis=1) | (absent.all(axis=1) & ~needed)
    for index in np.flatnonzero(~right).tolist():
        (share, iou), (is_share, is_iou) = wanted[index].tolist(), found[index].tolist()
        expected = f"redacted_share {share:.6g} and redaction_iou {iou:.6g}, by the image's regions"
        id = ids[index]
        yield place.finding(Code.REDACTED_SHARE, expected, f"{is_share:.6g} and {is_iou:.6g}", f"mask {id}", mask=id)

    if artifacts.iou is None or not automatic.any():
        return
    # The build knew only its own regions, not manual ones.
    known = [region for region in _regions(row) if region["source"] != MANUAL]
    if len(known) < len(_regions(row)):
        _, ious = redaction_columns({**row, "regions": known}, codes)
    for id, near_iou, made in zip(ids, ious, automatic, strict=True):
        if made and near_iou is not None and near_iou >= artifacts.iou:
            expected = f"an IoU under {artifacts.iou:g} with each redacted region"
            yield place.finding(Code.REDACTION_ARTIFACT, expected, f"{near_iou:.6g}", f"mask {id}", mask=id)


def audit_next_mask(
    row: Row,
    ids: Sequence[int],
    place: FindingLocation,
    sources: Sequence[str | None] | None = None,
    applied: Collection[int] = (),
) -> Iterator[Finding]:
    """Yield findings unless all mask numbers of an annotated image are below `next_mask`. `ids` are ascending mask ids.

    `next_mask` must be at least the number of masks that the build wrote and at most `MASKS_PER_IMAGE_LIMIT`. If
    `sources` is given, the numbers of the build's masks must be below `funnel.written`, and all other numbers must be
    at least as high, including those of masks that `segmint apply` made, whose ids are in `applied`.
    """
    next_mask, written = row["next_mask"], (row["funnel"] or {}).get("written")
    if next_mask is None or not (written or 0) <= next_mask <= MASKS_PER_IMAGE_LIMIT:
        expected = f"a next_mask from {written or 0} to {MASKS_PER_IMAGE_LIMIT:,} in an image that people annotated"
        yield place.finding(Code.ROW_IDENTITY, expected, next_mask, f"id {row['id']}")
        return
    end = row["id"] * MASKS_PER_IMAGE_LIMIT + next_mask
    if ids and ids[-1] >= end:
        expected = f"an annotation_id under {end}, as next_mask says"
        yield place.finding(Code.ROW_IDENTITY, expected, ids[-1], f"mask {ids[-1]}", mask=ids[-1])
        return
    if sources is None or written is None:
        return
    first = row["id"] * MASKS_PER_IMAGE_LIMIT + written
    for id, source in zip(ids, sources, strict=True):
        built = source == AUTOMATIC and id not in applied
        if built and id >= first:
            expected = f"an annotation_id under {first}, as funnel.written says of masks that the build wrote"
            yield place.finding(Code.ROW_IDENTITY, expected, id, f"mask {id}", mask=id)
        elif source in SOURCES and not built and id < first:
            expected = f"an annotation_id of {first} or over: the build wrote the masks under it"
            yield place.finding(Code.ROW_IDENTITY, expected, id, f"mask {id}", mask=id)


def codes_hold(masks: Sequence[Row], image: Row) -> bool:
    """Return whether the run lengths of all masks can be read and cover their image exactly."""
    size = image["height"], image["width"]
    try:
        for mask in masks:
            if tuple(mask["segmentation"]["size"]) != size:
                return False
            rle.area(rle.Rle(size, mask["segmentation"]["counts"] or ""))
    except (ValueError, TypeError):
        return False
    return True


def audit_redacted_share(row: Row, place: FindingLocation) -> Iterator[Finding]:
    """Yield a finding if the redacted share of an image's row doesn't match its regions. Format 3 has no such share."""
    found = row["redacted_share"]
    try:
        wanted: object = redacted_share({**row, "regions": _regions(row)})
    except (TypeError, ValueError, ArithmeticError) as error:
        wanted = error
    if not isinstance(wanted, float) or found is None or not abs(found - wanted) <= TOLERANCE:
        yield place.finding(Code.REDACTED_SHARE, f"redacted_share {wanted}", found, f"id {row['id']}")


def _regions(row: Row) -> list[Any]:
    """Return the regions of a row. Raise `ValueError` if there are regions but the row's sizes are invalid."""
    regions: list[Any] = row["regions"] or []
    if regions:
        sizes = [row[name] for name in _SIZES]
        if not all(isinstance(size, int) and size > 0 for size in sizes) or sizes[2] * sizes[3] > MOST_PIXELS:
            raise ValueError(f"{', '.join(_SIZES)} are {sizes}")
    return regions
