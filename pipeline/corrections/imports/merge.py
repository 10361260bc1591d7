"""The next row of an image from its row and the masks that a file has for it: a pure function.

Masks are compared pixel for pixel first, so that importing the same masks again changes nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from segmint.catalogs.reasons import Reason
from segmint.model.automatic import rle as runs
from segmint.operators.annotations.pairs import best_matches
from segmint.operators.describe import image_statistics
from segmint.operators.rows import Row
from segmint.operators.schemas import ANNOTATION_STAGE, MASKS_PER_IMAGE_LIMIT
from segmint.operators.shards.files import annotation_id, counts_of
from segmint.pipeline.corrections.annotated_masks import (
    NewMask,
    described_masks,
    is_of_build,
    numbered_masks,
)

SAME_OBJECT_IOU = 0.5
"""The least IoU at which a mask of another dataset takes the place of one that a build made."""


class ImportMode(StrEnum):
    """What becomes of the masks that an image has."""

    REPLACE = "replace"  # those that the file has not are deleted
    ADD = "add"  # all stay
    CARRY = "carry"  # those that a build made give way to people's masks of the same object


class SkipReason(StrEnum):
    """Why an image stays as it is."""

    TAKEN_DOWN = "taken down"
    REFUSED = "refused by the build"
    OTHER_SIZE = "masks of another size than the image"
    UNREADABLE = "a mask that cannot be read, so nothing is replaced"
    WORKED_ON = "people worked on it here since: nothing is carried over that"
    TOO_MANY = "over 10,000 masks with those that it ever had"


@dataclass(frozen=True)
class ImageImport:
    """What a file has for one image; `sizes` are the (height, width) of the image and its masks that it says."""

    masks: Sequence[NewMask]
    sizes: frozenset[tuple[int, int]]
    unreadable: int = 0
    of_image: Mapping[str, Any] = field(default_factory=dict)  # columns of the image's annotation, where carried


@dataclass(frozen=True)
class ImportSettings:
    """How masks are merged into rows."""

    mode: ImportMode
    source: str = "imported"  # of masks that correct none
    origin: Mapping[str, Any] | None = None  # the file's SHA-256 and license
    annotator: str | None = None


@dataclass(frozen=True)
class ImportedRow:
    """The next row of an image: the same object if nothing changes. Masks are counted."""

    row: Row
    left: SkipReason | None = None  # why it was left as it is
    same: int = 0
    corrected: int = 0
    added: int = 0
    deleted: int = 0
    empty: int = 0  # masks without a pixel, which are left out
    repeated: int = 0  # masks that the file has twice


def merge(row: Row, answer: ImageImport, settings: ImportSettings) -> ImportedRow:
    """Merge the masks that a file has for an image into its described row (keys of `DESCRIBED`).

    Masks that are the same pixel for pixel stay as they are; they get the file's label, if it has one. Only where a
    person's mask is carried from another dataset it takes the place of an equal one of the build. Under `REPLACE`
    the others are paired as in a correction study, by annotation id and then by IoU: the new mask takes the old one's
    place, and is `corrected` where a build made that. What is left of the old masks is deleted. Numbers are never given
    again. Raises `DamagedDatasetError` if the row's masks or its `next_mask` are damaged.
    """
    if row["reason"] is not None:
        return ImportedRow(row, SkipReason.TAKEN_DOWN if row["reason"] == Reason.TAKEN_DOWN else SkipReason.REFUSED)
    size = row["height"], row["width"]
    if answer.sizes - {size}:
        return ImportedRow(row, SkipReason.OTHER_SIZE)
    if answer.unreadable and settings.mode is ImportMode.REPLACE:
        return ImportedRow(row, SkipReason.UNREADABLE)
    if answer.of_image and _worked_on(row, answer):
        return ImportedRow(row, SkipReason.WORKED_ON)
    old = numbered_masks(row)
    solid = [mask for mask in answer.masks if runs.area(runs.Rle(size, mask.counts))]
    by_counts = {mask.counts: mask for mask in reversed(solid)}  # of several the first
    new = list(by_counts.values())[::-1]
    merged = ImportedRow(row, empty=len(answer.masks) - len(solid), repeated=len(solid) - len(new))

    equal = [mask for mask in old if counts_of(mask) in by_counts]
    carried = {mask.counts for mask in new if "source" in mask.said}
    same = {counts_of(mask): mask for mask in equal if not (counts_of(mask) in carried and is_of_build(mask))}
    agreed = {counts_of(mask): mask for mask in equal if counts_of(mask) not in same}
    labels = {
        counts: by_counts[counts].label
        for counts, mask in same.items()
        if by_counts[counts].label not in (None, mask["label"])
    }
    new = [mask for mask in new if mask.counts not in same]
    rest = [mask for mask in old if counts_of(mask) not in same]
    parents = agreed | _parents(
        row,
        [mask for mask in rest if counts_of(mask) not in agreed],
        [mask for mask in new if mask.counts not in agreed],
        settings,
    )
    gone = _removed_indices(rest, parents, settings)

    first = int(row["next_mask"])
    if first + len(new) > MASKS_PER_IMAGE_LIMIT:
        return replace(merged, left=SkipReason.TOO_MANY)
    merged = replace(
        merged, same=len(same), corrected=len(parents), added=len(new) - len(parents), deleted=len(gone) - len(parents)
    )
    named = settings.annotator is not None and (settings.mode is ImportMode.REPLACE or bool(new))
    if not (new or gone or labels or (named and row["annotator"] != settings.annotator)):
        return merged
    kept = [
        {**mask, "label": labels[counts_of(mask)]} if counts_of(mask) in labels else mask
        for mask in old
        if mask["index"] not in gone
    ]
    said = {"source": settings.source, "annotator": settings.annotator, "origin": settings.origin}
    made = described_masks(row, new, parents, first, said)
    masks = [*kept, *made]
    next_row: Row = {**row, "masks": masks, "next_mask": first + len(new)}
    if new or gone or labels or named:
        next_row |= _annotation(row, answer, settings)
    if new or gone:
        next_row["statistics"] = image_statistics(size, masks)
    return replace(merged, row=next_row)


def _worked_on(row: Row, answer: ImageImport) -> bool:
    """Whether the row has the work of people other than what is carried."""
    names = ("submission", "annotator")
    said = any(row[name] is not None for name in names)
    return said and any(row[name] != answer.of_image.get(name) for name in names)


def _parents(row: Row, old: Sequence[Row], new: Sequence[NewMask], settings: ImportSettings) -> dict[str, Row]:
    """Return the mask that each new one takes the place of, by the new one's run lengths."""
    if settings.mode is ImportMode.ADD or not old or not new:
        return {}
    pairs: dict[str, Row] = {}
    if settings.mode is ImportMode.REPLACE:
        by_number = {annotation_id(row["id"], mask["index"]): mask for mask in old}
        for mask in new:
            parent = None if mask.id is None else by_number.pop(mask.id, None)  # of several the first
            if parent is not None:
                pairs[mask.counts] = parent
        old = list(by_number.values())
        new = [mask for mask in new if mask.counts not in pairs]
    if settings.mode is ImportMode.CARRY:
        old = [mask for mask in old if is_of_build(mask)]
    size = [row["height"], row["width"]]
    ours = [{"size": size, "counts": counts_of(mask).encode()} for mask in old]
    theirs = [{"size": size, "counts": mask.counts.encode()} for mask in new]
    least = SAME_OBJECT_IOU if settings.mode is ImportMode.CARRY else 0.0
    matches = best_matches(ours, theirs) if ours and theirs else []
    return pairs | {new[column].counts: old[place] for place, column, iou in matches if iou >= least}


def _removed_indices(old: Sequence[Row], parents: Mapping[str, Row], settings: ImportSettings) -> frozenset[int]:
    """Return the indices of the masks that are not in the next row."""
    gone = old if settings.mode is ImportMode.REPLACE else parents.values()
    return frozenset(mask["index"] for mask in gone)


def _annotation(row: Row, answer: ImageImport, settings: ImportSettings) -> Row:
    """Return the columns that say by which file, and by whom, an image's masks are what they are."""
    if settings.origin is None:
        return {name: value for name, value in answer.of_image.items() if value is not None}
    # Its last submission stays merged, whatever an import made of it.
    merged = row["submission"] or {}
    said = {"assignment": merged.get("assignment"), "n": merged.get("n"), "sha256": settings.origin["sha256"]}
    named: Row = {} if settings.annotator is None else {"annotator": settings.annotator}
    if row["submission"] == said:
        return named
    # What was said of an earlier submission is not true of this one.
    return {"annotator": None, ANNOTATION_STAGE: None, "seconds": None, "complete": None, **named, "submission": said}
