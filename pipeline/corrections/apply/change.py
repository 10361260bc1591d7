"""Change to an image's row for `segmint apply`: new masks replace the automatic masks, or are added to them."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from segmint.catalogs.reasons import Reason
from segmint.operators.rows import Row
from segmint.operators.schemas import AUTOMATIC, IMPORT, MASKS_PER_IMAGE_LIMIT, PERSON
from segmint.operators.shards.files import counts_of
from segmint.pipeline.corrections.annotated_masks import changed_masks, numbered_masks


class MasksMode(StrEnum):
    """What happens to the automatic masks of an image that gets new ones."""

    REPLACE = "replace"
    ADD = "add"


def is_untouched(mask: Mapping[str, Any]) -> bool:
    """Return whether a mask is automatic, and no person or import has labeled it. `apply` may only remove such masks.

    `mask` contains the columns `source`, `annotator`, and `label_source`.
    """
    by_people = mask["annotator"] is not None or mask["label_source"] in (PERSON, IMPORT)
    return bool(mask["source"] == AUTOMATIC) and not by_people


def is_replaced(mask: Mapping[str, Any], model: str, mode: MasksMode) -> bool:
    """Return whether the masks of the segmenter `model` replace this one. They always replace its own earlier masks."""
    return is_untouched(mask) and (mode is MasksMode.REPLACE or mask["model"] == model)


def is_done(image: Mapping[str, Any], masks: Sequence[Mapping[str, Any]], model: str, mode: MasksMode) -> bool:
    """Return whether an image needs no run of the segmenter `model`: it had one, and no other masks are to be replaced.

    `image` contains the columns `masks_model` and `complete`. If a person confirmed that no mask is missing, nothing is
    to be done either.
    """
    if image["complete"]:
        return True
    others = (mask for mask in masks if mask["model"] != model)
    return bool(image["masks_model"] == model) and not any(is_replaced(mask, model, mode) for mask in others)


class NotAppliedError(Exception):
    """Raised if an image can't get the new masks. The message is the reason."""


def with_found_masks(row: Row, found: Row, model: str, mode: MasksMode) -> Row:
    """Return a described row with the masks that the segmenter `model` found, numbered from `next_mask`.

    `found` is a described row of the same image: its `masks` are the new ones, and `release_sha256` names the JPEG in
    which they were found. A new mask that equals a remaining one pixel for pixel is left out. If the image was
    rejected, taken down, or is done already, the same object is returned.

    Raises `NotAppliedError` if the image's JPEG is another one by now, or if there are too few numbers. Raises
    `DamagedDatasetError` if the row's masks are damaged.
    """
    if row["reason"] is not None or is_done(row, row["masks"], model, mode):
        return row
    if row["release_sha256"] != found["release_sha256"]:
        raise NotAppliedError("it was redacted in the meantime")
    kept = [mask for mask in numbered_masks(row) if not is_replaced(mask, model, mode)]
    there = {counts_of(mask) for mask in kept}
    first = int(row["next_mask"])
    new: list[Row] = []
    for mask in found["masks"]:
        if counts_of(mask) not in there:
            new.append({**mask, "index": first + len(new), "model": model})
    if first + len(new) > MASKS_PER_IMAGE_LIMIT:
        raise NotAppliedError(f"{Reason.TOO_MANY_MASKS}: {len(new):,} new masks from number {first:,}")
    return {
        **row,
        **changed_masks(row, [*kept, *new]),
        "next_mask": first + len(new),
        "masks_model": model,
    }
