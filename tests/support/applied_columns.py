"""Stages whose columns tests add to a finished dataset."""

from collections.abc import Sequence

import pyarrow as pa

from segmint.infra.storage.location import Location
from segmint.operators.custom.contract import Reject, StageRow
from segmint.pipeline.config.config import StageConfig
from segmint.pipeline.corrections.apply import columns
from segmint.pipeline.corrections.apply.columns import ColumnList
from segmint.pipeline.corrections.mask_revision import RevisionResult
from tests.support.applied import local_run


class Means:
    """The mean color of each image. It rejects the image `refused`, and fails for the image `failing`."""

    name = "means"
    fields = {"colors": pa.list_(pa.float64()), "masks": "int32"}  # noqa: RUF012 - as users write it

    @classmethod
    def version(cls, refused: int = 0, failing: int = 0, of: int = 1) -> str:
        return f"{of}"

    def __init__(self, refused: int = 0, failing: int = 0, of: int = 1) -> None:
        self._refused, self._failing, self._of = refused, failing, of

    def __call__(self, rows: Sequence[StageRow]) -> list[StageRow | Reject]:
        return [self._judge(row) for row in rows]

    def _judge(self, row: StageRow) -> StageRow | Reject:
        if row["id"] == self._refused:
            return Reject("too_plain", "it has one color")
        if row["id"] == self._failing:
            raise ValueError("no color")
        colors = (row.image.mean(axis=(0, 1)) * self._of).tolist()
        return row.with_values(colors=colors, masks=len(row["masks"]))


class Halves:
    """Half of the area of each mask."""

    name = "halves"
    table = "masks"
    version = "1"
    fields = {"area": "double"}  # noqa: RUF012 - as users write it

    def __call__(self, rows: Sequence[StageRow]) -> list[StageRow]:
        return [row.with_mask_values([{"area": mask["area"] / 2} for mask in row["masks"]]) for row in rows]


class Nearest:
    """The name of an image that looks the same: the first one, for image 4."""

    name = "nearest"
    version = "1"
    fields = {"image": "string"}  # noqa: RUF012 - as users write it

    def __call__(self, rows: Sequence[StageRow]) -> list[StageRow]:
        return [row.with_values(image="image-0" if row["id"] == 4 else None) for row in rows]


def nearest() -> StageConfig:
    """The stage `Nearest`."""
    return StageConfig(stage=f"{__name__}.{Nearest.__name__}")


def means(**arguments: int) -> StageConfig:
    """The stage `Means`."""
    return StageConfig(stage=f"{__name__}.{Means.__name__}", arguments=dict(arguments))


def halves() -> StageConfig:
    """The stage `Halves`."""
    return StageConfig(stage=f"{__name__}.{Halves.__name__}")


def apply_column(dataset: Location, stage: StageConfig, select: str | None = None) -> RevisionResult[ColumnList]:
    """Add a stage's column in this process."""
    return columns.apply_column(dataset, stage, select, run=local_run)
