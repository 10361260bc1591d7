"""Merge of a file's masks into an image's row, as a pure function.

The merge first compares masks pixel by pixel, so importing the same masks again changes nothing.

Annotated masks in an image's row: the columns and numbers of new masks, for imports and merges.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np
from pycocotools import mask as coco

from segmint.catalogs.dataset.mask_labels import MASK_LABEL, is_of_model, submitted_label
from segmint.catalogs.findings import Reason
from segmint.catalogs.layout import DamagedDatasetError
from segmint.infra.arrays import Size
from segmint.model.automatic import rle as runs
from segmint.operators.annotations.folder import LEAST_IOU, best_matches, iou
from segmint.operators.describe import describe_mask, image_statistics, redaction_columns
from segmint.operators.redactions import container_ids
from segmint.operators.rows import ANNOTATION_STAGE, AUTOMATIC, DESCRIBED_MASK, IMPORT, MASKS_PER_IMAGE_LIMIT, Row
from segmint.operators.shards.put import annotation_id, counts_of, mask_index


@dataclass(frozen=True)
class NewMask:
    """Annotated mask. `counts` contains its canonical compressed run lengths, and `said` its `MASK_ORIGIN` columns.

    If `label` is None, the mask inherits its parent's label. If `label` is empty, a person removed the label. If
    `by_model` is set, a model chose the label, so the label doesn't confirm an equal label of another mask.
    """

    counts: str
    id: int | None = None
    label: str | None = None
    said: Mapping[str, Any] = field(default_factory=dict)
    by_model: bool = False


def canonical_counts(counts: bytes, size: Size) -> str:
    """Convert compressed run lengths to segmint's canonical form, in which only the first run may be empty.

    Raises `ValueError` if the run lengths can't be read.
    """
    lengths = runs.decompress(counts.decode("ascii"))
    ends = np.cumsum(lengths)
    filled = lengths[1::2] > 0
    return runs.encode_runs((ends - lengths)[1::2][filled], ends[1::2][filled], size).counts


def numbered_masks(row: Row) -> list[Row]:
    """Return the masks of a described row, each with its number as `index`.

    Raises `DamagedDatasetError` if `next_mask` or a mask's run lengths are damaged. pycocotools doesn't validate run
    lengths.
    """
    size = row["height"], row["width"]
    masks = [{**mask, "index": mask_index(mask, position)} for position, mask in enumerate(row["masks"])]
    least = max([(row["funnel"] or {}).get("written") or 0, *(mask["index"] + 1 for mask in masks)])
    if row["next_mask"] is None or not least <= row["next_mask"] <= MASKS_PER_IMAGE_LIMIT:
        raise DamagedDatasetError(
            f"image {row['id']}: its next_mask is {row['next_mask']}, expected {least:,} to {MASKS_PER_IMAGE_LIMIT:,}"
        )
    for mask in masks:
        try:
            runs.area(runs.Rle(size, counts_of(mask)))
        except ValueError as error:
            raise DamagedDatasetError(f"image {row['id']}: the run lengths of a mask are damaged: {error}") from error
    return masks


def is_of_build(mask: Row) -> bool:
    """Return whether a mask comes from a build."""
    return bool(mask["source"] == AUTOMATIC)


def changed_masks(row: Row, masks: Sequence[Row]) -> Row:
    """Return the columns `masks` and `statistics` of an image for these masks. Recompute the masks' containers.

    Both columns depend on all masks, so every correction that adds or removes masks must call this function.
    """
    ids = [annotation_id(row["id"], mask_index(mask, position)) for position, mask in enumerate(masks)]
    contained = [
        {**mask, "container": container} for mask, container in zip(masks, container_ids(masks, ids), strict=True)
    ]
    return {"masks": contained, "statistics": image_statistics((row["height"], row["width"]), contained)}


def described_masks(
    row: Row, new: Sequence[NewMask], parents: Mapping[str, Row], first: int, said: Mapping[str, Any]
) -> list[Row]:
    """Return rows of new masks (keys of `DESCRIBED_MASK`), numbered from `first`.

    `parents` maps the run lengths of a new mask to its parent, the mask that it replaces. `said` contains default
    columns for all new masks. If a mask has no source, its parent determines the source: `corrected` if the parent
    comes from a build, and otherwise the parent's source.
    """
    height, width = row["height"], row["width"]
    counts = [mask.counts for mask in new]
    shares, redaction_ious = redaction_columns(row, counts)
    rows = []
    for index, (mask, share, redaction_iou) in enumerate(zip(new, shares, redaction_ious, strict=True), first):
        code = {"size": [height, width], "counts": mask.counts.encode()}
        x, y, box_width, box_height = coco.toBbox(code).tolist()
        described: Row = dict.fromkeys(each.name for each in DESCRIBED_MASK)
        described |= {
            "segmentation": {"size": [height, width], "counts": mask.counts},
            "bbox": [x, y, box_width - 1, box_height - 1],
            "area": int(coco.area(code)),
            "crop_box": [0.0, 0.0, float(width), float(height)],
            "point_coords": [],
            **asdict(describe_mask((height, width), mask.counts)),
            **said,
            **mask.said,
            **(dict.fromkeys(MASK_LABEL) if mask.label is None else {"label": mask.label or None}),
            "redacted_share": share,
            "redaction_iou": redaction_iou,
            "index": index,
        }
        parent = parents.get(mask.counts)
        if parent is not None:
            described["parent"] = annotation_id(row["id"], parent["index"])
            former = {"size": [height, width], "counts": counts_of(parent).encode()}
            if mask.label is None and iou([code], [former])[0][0] >= LEAST_IOU:
                described |= {name: parent.get(name) for name in MASK_LABEL}
            if "source" not in mask.said:
                described["source"] = "corrected" if is_of_build(parent) else parent["source"]
        rows.append(described)
    return rows


SAME_OBJECT_IOU = 0.5
"""Minimum IoU at which another dataset's mask replaces an automatic mask."""


class ImportMode(StrEnum):
    """Rule for an image's existing masks."""

    REPLACE = "replace"  # delete masks that aren't in the file
    ADD = "add"  # keep all masks
    CARRY = "carry"  # replace automatic masks with annotated masks of the same object


class SkipReason(StrEnum):
    """Reason why an import or a merge skips an image."""

    TAKEN_DOWN = "taken down"
    REFUSED = "refused by the build"
    RETURNED = "returned to the annotator"
    OTHER_SIZE = "masks of another size than the image"
    UNREADABLE = "a mask that cannot be read, so nothing is replaced"
    UNREADABLE_SUBMISSION = "a submission that cannot be read"
    WORKED_ON = "annotated in this dataset since, so nothing is copied"
    TOO_MANY = "over 10,000 masks with those that it ever had"


def why_rejected(row: Row) -> SkipReason | None:
    """Return the reason why no masks can be merged into a rejected row, or None for an image's row."""
    if row["reason"] is None:
        return None
    if row["reason"] == Reason.TAKEN_DOWN:
        return SkipReason.TAKEN_DOWN
    return SkipReason.REFUSED


@dataclass(frozen=True)
class ImageImport:
    """A file's masks for one image. `sizes` contains the (height, width) of the image and of every mask in the file."""

    masks: Sequence[NewMask]
    sizes: frozenset[Size]
    unreadable: int = 0
    of_image: Mapping[str, Any] = field(default_factory=dict)  # annotation columns of the image, if carried over


@dataclass(frozen=True)
class ImportSettings:
    """Settings for merging masks into rows."""

    mode: ImportMode
    source: str = "imported"  # source of masks that don't replace a mask
    origin: Mapping[str, Any] | None = None  # the file's SHA-256 and license
    annotator: str | None = None


@dataclass(frozen=True)
class ImportedRow:
    """Next row of an image, with counts of its masks. If nothing changes, `row` is the original object."""

    row: Row
    left: SkipReason | None = None  # reason if the image is skipped
    same: int = 0
    corrected: int = 0
    added: int = 0
    deleted: int = 0
    empty: int = 0  # masks without pixels, which aren't merged
    repeated: int = 0  # repeated masks in the file


def merge(row: Row, answer: ImageImport, settings: ImportSettings) -> ImportedRow:
    """Merge a file's masks for an image into the image's described row (keys of `DESCRIBED`).

    If a mask in the file equals an existing mask pixel for pixel, the existing mask is kept. If the file's mask has a
    label, the existing mask gets this label. If the labels are equal, but only the existing one comes from a model, the
    label counts as the file's. There is one exception: an annotated mask carried over from another dataset replaces an
    equal automatic mask.

    With `REPLACE`, the other masks are paired by annotation id, then by IoU. The new mask of a pair replaces the old
    mask, and its source becomes `corrected` if a build made the old mask. The remaining old masks are deleted. Mask
    numbers are never reused.

    Raises `DamagedDatasetError` if the row's masks or its `next_mask` are damaged.
    """
    rejected = why_rejected(row)
    if rejected is not None:
        return ImportedRow(row, rejected)
    size = row["height"], row["width"]
    if answer.sizes - {size}:
        return ImportedRow(row, SkipReason.OTHER_SIZE)
    if answer.unreadable and settings.mode is ImportMode.REPLACE:
        return ImportedRow(row, SkipReason.UNREADABLE)
    if answer.of_image and _worked_on(row, answer):
        return ImportedRow(row, SkipReason.WORKED_ON)
    old = numbered_masks(row)
    solid = [mask for mask in answer.masks if runs.area(runs.Rle(size, mask.counts))]
    by_counts = {mask.counts: mask for mask in reversed(solid)}  # the first of several
    new = list(by_counts.values())[::-1]
    merged = ImportedRow(row, empty=len(answer.masks) - len(solid), repeated=len(solid) - len(new))

    same = {}
    for mask in old:
        equal = by_counts.get(counts_of(mask))
        if equal is not None and not ("source" in equal.said and is_of_build(mask)):
            same[equal.counts] = mask
    labels = {}
    for counts, mask in same.items():
        given = by_counts[counts]
        agrees = given.label == submitted_label(mask) and (given.by_model or not is_of_model(mask["label_source"]))
        if given.label is not None and not agrees:
            labels[counts] = _label_of(given)
    new = [mask for mask in new if mask.counts not in same]
    rest = [mask for mask in old if counts_of(mask) not in same]
    agreed = {counts_of(mask): mask for mask in rest if counts_of(mask) in by_counts}
    parents = agreed | _parents(
        row,
        [mask for mask in rest if counts_of(mask) not in agreed],
        [mask for mask in new if mask.counts not in agreed],
        settings,
    )
    replaced: Iterable[Row] = parents.values()
    if settings.mode is ImportMode.REPLACE:
        replaced = rest
    gone = {mask["index"] for mask in replaced}

    first = int(row["next_mask"])
    if first + len(new) > MASKS_PER_IMAGE_LIMIT:
        return replace(merged, left=SkipReason.TOO_MANY)
    merged = replace(
        merged, same=len(same), corrected=len(parents), added=len(new) - len(parents), deleted=len(gone) - len(parents)
    )
    named = settings.annotator is not None and (settings.mode is ImportMode.REPLACE or bool(new))
    if not (new or gone or labels or (named and row["annotator"] != settings.annotator)):
        return merged
    kept = [{**mask, **labels.get(counts_of(mask), {})} for mask in old if mask["index"] not in gone]
    said = {
        "source": settings.source,
        "label_source": IMPORT,
        "annotator": settings.annotator,
        "origin": settings.origin,
    }
    made = described_masks(row, new, parents, first, said)
    masks = [*kept, *made]
    next_row: Row = {**row, "masks": masks, "next_mask": first + len(new)}
    if new or gone or labels or named:
        next_row |= _annotation(row, answer, settings)
    if new or gone:
        next_row |= changed_masks(row, masks)
    return replace(merged, row=next_row)


def _label_of(mask: NewMask) -> dict[str, Any]:
    """Return the columns of a mask's label. In another dataset, the label may not come from a file."""
    return {"label": mask.label or None, "label_score": None, "label_source": IMPORT} | {
        name: mask.said[name] for name in MASK_LABEL if name in mask.said
    }


def _worked_on(row: Row, answer: ImageImport) -> bool:
    """Return whether annotators worked on the row, not counting the work that is carried over."""
    names = ("submission", "annotator")
    said = any(row[name] is not None for name in names)
    return said and any(row[name] != answer.of_image.get(name) for name in names)


def _parents(row: Row, old: Sequence[Row], new: Sequence[NewMask], settings: ImportSettings) -> dict[str, Row]:
    """Map the run lengths of each new mask to the mask that it replaces."""
    if settings.mode is ImportMode.ADD or not old or not new:
        return {}
    pairs: dict[str, Row] = {}
    if settings.mode is ImportMode.REPLACE:
        by_number = {annotation_id(row["id"], mask["index"]): mask for mask in old}
        for mask in new:
            if mask.id in by_number:  # the first of several
                pairs[mask.counts] = by_number.pop(mask.id)
        old = list(by_number.values())
        new = [mask for mask in new if mask.counts not in pairs]
    least = 0.0
    if settings.mode is ImportMode.CARRY:
        old = [mask for mask in old if is_of_build(mask)]
        least = SAME_OBJECT_IOU
    if not old or not new:
        return pairs
    size = [row["height"], row["width"]]
    ours = [{"size": size, "counts": counts_of(mask).encode()} for mask in old]
    theirs = [{"size": size, "counts": mask.counts.encode()} for mask in new]
    for place, column, reached in best_matches(ours, theirs):
        if reached >= least:
            pairs[new[column].counts] = old[place]
    return pairs


def _annotation(row: Row, answer: ImageImport, settings: ImportSettings) -> Row:
    """Return the columns that record the file and the annotator of an image's masks."""
    if settings.origin is None:
        return {name: value for name, value in answer.of_image.items() if value is not None}
    # The last submission still counts as merged, even if an import replaces its masks.
    merged = row["submission"] or {}
    said = {"assignment": merged.get("assignment"), "n": merged.get("n"), "sha256": settings.origin["sha256"]}
    named: Row = {}
    if settings.annotator is not None:
        named["annotator"] = settings.annotator
    if row["submission"] == said:
        return named
    # Columns of an earlier submission don't apply to this one.
    return {"annotator": None, ANNOTATION_STAGE: None, "seconds": None, "complete": None, **named, "submission": said}
