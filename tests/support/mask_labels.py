"""Small datasets whose masks have labels that are hard to carry."""

from collections.abc import Iterable
from typing import Any

from segmint.catalogs.dataset.reader import Dataset
from tests.support.committed import row_of

LABELS = ("a \"quoted\", 'one'", "née: 猫 🐈", "no", "#1 {x} [y]", "<b>&amp;", "back\\slash, comma; tab-less")
"""Labels of the masks, with quotes, commas, markup, and what YAML would read as something else."""

MODEL = f"model:{'ab' * 32}"


def named(masks: Iterable[dict[str, Any]], ordinal: int) -> None:
    """Give all masks of a row but the third of each three a label: of a model with a score, or of a person."""
    for number, mask in enumerate(masks, 2 * ordinal):
        if number % 3 < 2:
            score = (0.25, MODEL) if number % 3 == 0 else (None, "person")
            mask |= {
                "label": LABELS[(number // 3 * 2 + number % 3) % len(LABELS)],
                "label_score": score[0],
                "label_source": score[1],
            }


def labeled_row(ordinal: int, refused: bool) -> dict[str, Any]:
    """A row whose masks have labels; every third has none."""
    row = row_of(ordinal, refused)
    if not refused:
        named(row["masks"], ordinal)
    return row


PROMPTS = (
    {"kind": "box", "x": 1.5, "y": 2.0, "w": 30.0, "h": 20.25},
    {"kind": "point", "x": 4.0, "y": 5.5, "label": 0},
)


def prompted_row(ordinal: int, refused: bool) -> dict[str, Any]:
    """A row whose first mask was made from prompts, and in every other row has a label."""
    row = row_of(ordinal, refused)
    if not refused:
        row["masks"][0] |= {"prompts": PROMPTS}
        if ordinal % 2:
            row["masks"][0] |= {"label": "no", "label_source": "import"}
    return row


def labels_of(dataset: Dataset) -> dict[int, str | None]:
    """The label of each mask, by its id, from the table of masks."""
    tables = [dataset.table(commit, "masks", ["annotation_id", "label"]) for commit in dataset.commits()]
    return {row["annotation_id"]: row["label"] for table in tables for row in table.to_pylist()}
