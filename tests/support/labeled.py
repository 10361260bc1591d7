"""A stage that labels masks without a model, and a dataset in which a person has labeled a mask."""

from collections.abc import Sequence
from typing import Any

from segmint.catalogs.dataset.mask_labels import may_label
from segmint.operators.custom.contract import StageRow, StageSpec, load_stage
from tests.support.described_rows import accepted_row, described, rejected_row
from tests.support.protocol import ROWS, DatasetPath, write


class ShadeLabels:
    """Labels each mask `dark` or `bright` by the image's mean, with the mask's area as the score."""

    name = "label"
    labels = True

    @classmethod
    def version(cls, threshold: int) -> str:
        return f"{threshold:064x}"

    def __init__(self, threshold: int) -> None:
        self._threshold = threshold

    def __call__(self, rows: Sequence[StageRow]) -> list[StageRow]:
        return [row.with_mask_values([self._label(row, mask) for mask in row["masks"]]) for row in rows]

    def _label(self, row: StageRow, mask: dict[str, Any]) -> dict[str, Any] | None:
        source = f"model:{self._threshold:064x}"
        label = "bright" if row.image.mean() > self._threshold else "dark"
        score = mask["area"] / 1200
        return {"label": label, "label_score": score, "label_source": source} if may_label(mask, source) else None


class OnDevice(ShadeLabels):
    """The same on a device that only the caller's process has."""

    @classmethod
    def version(cls, threshold: int, device: str) -> str:  # type: ignore[override]
        return f"{threshold:064x}"

    def __init__(self, threshold: int, device: str) -> None:
        super().__init__(threshold)


def shades(threshold: int = 100) -> StageSpec:
    """The stage."""
    return load_stage(f"{__name__}.{ShadeLabels.__name__}", {"threshold": threshold})


def write_labeled(place: DatasetPath, shard: int) -> None:
    """Commit a shard of two images and a refused row; the first mask of the first image has a person's label."""
    first = shard * ROWS
    rows = [accepted_row(first), accepted_row(first + 1), rejected_row(first + 2)]
    rows[0]["masks"][0] |= {"label": "née", "label_source": "person"}
    assert write(place, shard, rows=described(rows)).status == "committed"
