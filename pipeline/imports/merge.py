"""The next row of an image from its row and the masks that a file has for it: a pure function.

Masks are compared pixel for pixel first, so that importing the same masks again changes nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np
from pycocotools import mask as coco

from segmint.catalogs.layout import DamagedDatasetError
from segmint.catalogs.reasons import Reason
from segmint.model.automatic import rle as runs
from segmint.operators.describe import describe_mask, image_statistics, redaction_columns
from segmint.operators.rows import Row
from segmint.operators.schemas import ANNOTATION_STAGE, AUTOMATIC, DESCRIBED_MASK, MASKS_PER_IMAGE_LIMIT
from segmint.operators.shards.files import annotation_id, mask_index
from segmint.pipeline.study.pairs import LEAST_IOU, StudyMask, best_matches

SAME_OBJECT_IOU = 0.5
"""The least IoU at which a mask of another dataset takes the place of one that a build made."""


class Mode(StrEnum):
    """What becomes of the masks that an image has."""

    REPLACE = "replace"  # those that the file has not are deleted
    ADD = "add"  # all stay
    CARRY = "carry"  # those that a build made give way to people's masks of the same object


class Left(StrEnum):
    """Why an image stays as it is."""

    TAKEN_DOWN = "taken down"
    REFUSED = "refused by the build"
    NOT_BUILT = "not built yet"
    OTHER_SIZE = "masks of another size than the image"
    UNREADABLE = "a mask that cannot be read, so nothing is replaced"
    WORKED_ON = "people worked on it here since: nothing is carried over that"
    TOO_MANY = "over 10,000 masks with those that it ever had"


@dataclass(frozen=True)
class NewMask:
    """A mask of a file: canonical compressed run lengths, and what is said of it (`MASK_ORIGIN`)."""

    counts: str
    id: int | None = None
    label: str | None = None
    said: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What a file has for one image; `sizes` are the (height, width) of the image and its masks that it says."""

    masks: Sequence[NewMask]
    sizes: frozenset[tuple[int, int]]
    unreadable: int = 0
    of_image: Mapping[str, Any] = field(default_factory=dict)  # columns of the image's annotation, where carried


@dataclass(frozen=True)
class ImportSettings:
    """How masks are merged into rows."""

    mode: Mode
    rule: int  # of de-identification
    source: str = "imported"  # of masks that correct none
    origin: Mapping[str, Any] | None = None  # the file's SHA-256 and license
    annotator: str | None = None
    by_id: bool = True  # whether the ids in the file are the dataset's


@dataclass(frozen=True)
class Merged:
    """The next row of an image: the same object if nothing changes. Masks are counted."""

    row: Row
    left: Left | None = None  # why it was left as it is
    same: int = 0
    corrected: int = 0
    added: int = 0
    deleted: int = 0
    empty: int = 0  # masks without a pixel, which are left out
    repeated: int = 0  # masks that the file has twice


def canonical_counts(counts: bytes, size: tuple[int, int]) -> str:
    """Return compressed run lengths in the one way in which segmint writes them: no run of zero pixels but the first.

    Raises `ValueError` if they cannot be read.
    """
    lengths = runs.decompress(counts.decode("ascii"))
    ends = np.cumsum(lengths)
    filled = lengths[1::2] > 0
    return runs.encode_runs((ends - lengths)[1::2][filled], ends[1::2][filled], size).counts


def merge(row: Row, answer: Answer, settings: ImportSettings) -> Merged:
    """Merge the masks that a file has for an image into its described row (keys of `DESCRIBED`).

    Masks that are the same pixel for pixel stay as they are; they get the file's label, if it has one. Only where a
    person's mask is carried from another dataset it takes the place of an equal one of the build. Under `REPLACE`
    the others are paired as in a correction study, by annotation id and then by IoU: the new mask takes the old one's
    place, and is `corrected` where a build made that. What is left of the old masks is deleted. Numbers are never given
    again. An image of format 1 that changes gets all columns of format 2. Raises `DamagedDatasetError` if the row's
    masks or its `next_mask` are damaged.
    """
    if row["reason"] is not None:
        return Merged(row, Left.TAKEN_DOWN if row["reason"] == Reason.TAKEN_DOWN else Left.REFUSED)
    size = row["height"], row["width"]
    if answer.sizes - {size}:
        return Merged(row, Left.OTHER_SIZE)
    if answer.unreadable and settings.mode is Mode.REPLACE:
        return Merged(row, Left.UNREADABLE)
    if answer.of_image and _worked_on(row, answer):
        return Merged(row, Left.WORKED_ON)
    _check(row)
    old = [{**mask, "index": mask_index(mask, position)} for position, mask in enumerate(row["masks"])]
    solid = [mask for mask in answer.masks if runs.area(runs.Rle(size, mask.counts))]
    by_counts = {mask.counts: mask for mask in reversed(solid)}  # of several the first
    new = list(by_counts.values())[::-1]
    merged = Merged(row, empty=len(answer.masks) - len(solid), repeated=len(solid) - len(new))

    equal = [mask for mask in old if _counts(mask) in by_counts]
    carried = {mask.counts for mask in new if "source" in mask.said}
    same = {_counts(mask): mask for mask in equal if not (_counts(mask) in carried and _corrects(mask))}
    agreed = {_counts(mask): mask for mask in equal if _counts(mask) not in same}
    labels = {
        counts: by_counts[counts].label
        for counts, mask in same.items()
        if by_counts[counts].label not in (None, mask["label"])
    }
    new = [mask for mask in new if mask.counts not in same]
    rest = [mask for mask in old if _counts(mask) not in same]
    parents = agreed | _parents(
        row,
        [mask for mask in rest if _counts(mask) not in agreed],
        [mask for mask in new if mask.counts not in agreed],
        settings,
    )
    gone = _gone(rest, parents, settings)

    first = row["next_mask"]
    if first is None:
        first = 1 + max((mask["index"] for mask in old), default=-1)
    if first + len(new) > MASKS_PER_IMAGE_LIMIT:
        return replace(merged, left=Left.TOO_MANY)
    merged = replace(
        merged, same=len(same), corrected=len(parents), added=len(new) - len(parents), deleted=len(gone) - len(parents)
    )
    named = settings.annotator is not None and (settings.mode is Mode.REPLACE or bool(new))
    if not (new or gone or labels or (named and row["annotator"] != settings.annotator)):
        return merged
    kept = [
        {**mask, "label": labels[_counts(mask)]} if _counts(mask) in labels else mask
        for mask in (old if row["next_mask"] is not None else _of_build(row, old, settings.rule))
        if mask["index"] not in gone
    ]
    made = _described(row, new, parents, first, settings)
    masks = [*kept, *made]
    next_row: Row = {**row, "masks": masks, "next_mask": first + len(new)}
    if new or gone or labels or named:
        next_row |= _annotation(row, answer, settings)
    if new or gone:
        next_row["statistics"] = image_statistics(size, masks)
    return replace(merged, row=next_row)


def _worked_on(row: Row, answer: Answer) -> bool:
    """Whether the row has the work of people other than what is carried."""
    names = ("answer", "annotator")
    said = any(row[name] is not None for name in names)
    return said and any(row[name] != answer.of_image.get(name) for name in names)


def _check(row: Row) -> None:
    """Check the number of an image's next mask, and the run lengths of its masks, which pycocotools trusts."""
    size = row["height"], row["width"]
    numbers = [mask_index(mask, position) for position, mask in enumerate(row["masks"])]
    least = max([(row["funnel"] or {}).get("written") or 0, *(number + 1 for number in numbers)])
    if row["next_mask"] is not None and not least <= row["next_mask"] <= MASKS_PER_IMAGE_LIMIT:
        raise DamagedDatasetError(
            f"image {row['id']}: its next_mask is {row['next_mask']:,}, expected {least:,} to {MASKS_PER_IMAGE_LIMIT:,}"
        )
    for mask in row["masks"]:
        try:
            runs.area(runs.Rle(size, _counts(mask)))
        except ValueError as error:
            raise DamagedDatasetError(f"image {row['id']}: the run lengths of a mask are damaged: {error}") from error


def _counts(mask: Row) -> str:
    return str(mask["segmentation"]["counts"])


def _corrects(parent: Row) -> bool:
    return parent["source"] in (None, AUTOMATIC)


def _parents(row: Row, old: Sequence[Row], new: Sequence[NewMask], settings: ImportSettings) -> dict[str, Row]:
    """Return the mask that each new one takes the place of, by the new one's run lengths."""
    if settings.mode is Mode.ADD or not old or not new:
        return {}
    pairs: dict[str, Row] = {}
    if settings.mode is Mode.REPLACE and settings.by_id:
        by_number = {annotation_id(row["id"], mask["index"]): mask for mask in old}
        for mask in new:
            parent = None if mask.id is None else by_number.pop(mask.id, None)  # of several the first
            if parent is not None:
                pairs[mask.counts] = parent
        old = list(by_number.values())
        new = [mask for mask in new if mask.counts not in pairs]
    if settings.mode is Mode.CARRY:
        old = [mask for mask in old if _corrects(mask)]
    size = [row["height"], row["width"]]
    ours = [StudyMask(None, {"size": size, "counts": _counts(mask).encode()}) for mask in old]
    theirs = [StudyMask(None, {"size": size, "counts": mask.counts.encode()}) for mask in new]
    least = SAME_OBJECT_IOU if settings.mode is Mode.CARRY else 0.0
    matches = best_matches(ours, theirs) if ours and theirs else []
    return pairs | {new[column].counts: old[place] for place, column, iou in matches if iou >= least}


def _gone(old: Sequence[Row], parents: Mapping[str, Row], settings: ImportSettings) -> frozenset[int]:
    """Return the indices of the masks that are not in the next row."""
    gone = old if settings.mode is Mode.REPLACE else parents.values()
    return frozenset(mask["index"] for mask in gone)


def _of_build(row: Row, masks: Sequence[Row], rule: int) -> list[Row]:
    """Return an image's masks of format 1, all of which a build made, as format 2 describes them."""
    shares, ious = redaction_columns(row, [_counts(mask) for mask in masks], rule)
    return [
        {**mask, "source": AUTOMATIC, "redacted_share": share, "redaction_iou": iou}
        for mask, share, iou in zip(masks, shares, ious, strict=True)
    ]


def _described(
    row: Row, new: Sequence[NewMask], parents: Mapping[str, Row], first: int, settings: ImportSettings
) -> list[Row]:
    """Return rows of new masks (keys of `DESCRIBED_MASK`), numbered from `first`."""
    height, width = row["height"], row["width"]
    counts = [mask.counts for mask in new]
    shares, ious = redaction_columns(row, counts, settings.rule)
    rows = []
    for index, (mask, share, iou) in enumerate(zip(new, shares, ious, strict=True), first):
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
            "source": settings.source,
            "annotator": settings.annotator,
            "origin": settings.origin,
            **mask.said,
            "label": mask.label,
            "redacted_share": share,
            "redaction_iou": iou,
            "index": index,
        }
        parent = parents.get(mask.counts)
        if parent is not None:
            described["parent"] = annotation_id(row["id"], parent["index"])
            if mask.label is None and _overlap((height, width), mask, parent) >= LEAST_IOU:
                described["label"] = parent["label"]
            if "source" not in mask.said:
                described["source"] = "corrected" if _corrects(parent) else parent["source"]
        rows.append(described)
    return rows


def _overlap(size: tuple[int, int], mask: NewMask, parent: Row) -> float:
    """Return the IoU of two masks of one image."""
    ours, theirs = ({"size": list(size), "counts": each.encode()} for each in (mask.counts, _counts(parent)))
    return float(coco.iou([ours], [theirs], [0])[0][0])


def _annotation(row: Row, answer: Answer, settings: ImportSettings) -> Row:
    """Return the columns that say by which file, and by whom, an image's masks are what they are."""
    if settings.origin is None:
        return {name: value for name, value in answer.of_image.items() if value is not None}
    said = {"lane": None, "n": None, "sha256": settings.origin["sha256"]}
    named: Row = {} if settings.annotator is None else {"annotator": settings.annotator}
    if row["answer"] == said:
        return named
    # What was said of an earlier answer is not true of this one.
    return {"annotator": None, ANNOTATION_STAGE: None, "seconds": None, "complete": None, **named, "answer": said}
