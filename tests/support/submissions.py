"""Answers of annotators for the datasets of `protocol` and `committed`, whose images have 40 x 30 pixels."""

from collections.abc import Mapping, Sequence
from typing import Any

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.submissions import Submission, base_digest
from segmint.infra.storage.location import Location
from segmint.operators.rows import MASKS_PER_IMAGE_LIMIT, Row
from segmint.operators.shards.put import mask_index
from segmint.operators.shards.revise import read_committed_rows
from tests.support.described_rows import rectangle_mask

Box = tuple[int, int, int, int]
"""(top, left, bottom, right) in an image of 30 x 40 pixels."""


def counts_of(box: Box) -> str:
    """The run lengths of a rectangle."""
    return str(rectangle_mask(30, 40, *box)["segmentation"]["counts"])


def answer_value(image: int = 1, **fields: Any) -> dict[str, Any]:
    """The JSON object of an answer that has one new mask."""
    point = {"kind": "point", "x": 7.5, "y": 4.0, "label": 1}
    mask = {
        "counts": counts_of((2, 3, 12, 20)),
        "source": "assisted",
        "seconds": 7.5,
        "label": None,
        "prompts": [point],
        "parent": None,
    }
    return {
        "image": image,
        "assignment": 0,
        "n": 1,
        "base": "ab" * 32,
        "size": [30, 40],
        "annotator": "Ada",
        "stage": "assisted",
        "seconds": 61.25,
        "complete": True,
        "model": None,
        "saved_at": "2026-11-22T10:00:00Z",
        "masks": [mask],
        "replaced": [],
        "deleted": [],
        **fields,
    }


def new_mask(box: Box, parent: int | None = None, **fields: Any) -> dict[str, Any]:
    """A mask of an answer."""
    source = "assisted" if parent is None else "corrected"
    return {"counts": counts_of(box), "source": source, "seconds": 4.5, "parent": parent, **fields}


def committed_row(dataset: Location, ordinal: int, per_shard: int = 3) -> Row:
    """The described row of an image; its masks have their `annotation_id`."""
    commit = CommitLog(dataset).latest(ordinal // per_shard)
    assert commit is not None
    rows = read_committed_rows(dataset, commit)
    row = next(row for row in rows if row["ordinal"] == ordinal)
    masks = [
        {**mask, "annotation_id": row["id"] * MASKS_PER_IMAGE_LIMIT + mask_index(mask, place)}
        for place, mask in enumerate(row["masks"] or ())
    ]
    return {**row, "masks": masks}


def answer_to(
    dataset: Location,
    image: int,
    masks: Sequence[Mapping[str, Any]] = (),
    deleted: Sequence[int] = (),
    **fields: Any,
) -> Submission:
    """An answer that fits what the dataset has of the image now: new masks, and ids of those that are deleted."""
    row = committed_row(dataset, image - 1)
    counts = {mask["annotation_id"]: mask["segmentation"]["counts"] for mask in row["masks"]}
    parents = sorted({mask["parent"] for mask in masks if mask.get("parent") is not None})
    return Submission.from_value(
        answer_value(
            image,
            **{
                "base": base_digest(row["release"], row["masks"]),
                "size": [row["height"], row["width"]],
                "masks": list(masks),
                "replaced": [{"id": id, "counts": counts[id]} for id in parents],
                "deleted": [{"id": id, "counts": counts[id]} for id in deleted],
                **fields,
            },
        )
    )
