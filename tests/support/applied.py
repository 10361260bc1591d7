"""Stages whose columns tests add to a finished dataset, and a run of them without Ray."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from segmint.catalogs.dataset.handle import DatasetHandle
from segmint.infra.ray_session import Cluster
from segmint.operators.custom.contract import Reject, StageRow
from segmint.pipeline.config.config import StageConfig
from segmint.pipeline.corrections.apply.engine import AppliedStage, ChosenImages, ShardReader


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


def means(**arguments: int) -> StageConfig:
    """The stage `Means`."""
    return StageConfig(stage=f"{__name__}.{Means.__name__}", arguments=dict(arguments))


def halves() -> StageConfig:
    """The stage `Halves`."""
    return StageConfig(stage=f"{__name__}.{Halves.__name__}")


@dataclass(frozen=True)
class RunHere:
    """Run of a stage in this process, as `StageRun` runs it on a cluster."""

    dataset: DatasetHandle
    stage: AppliedStage
    write: Callable[[ChosenImages, pa.Table], Any]

    def try_control(self) -> None:
        """Try nothing."""

    def over(self, images: Sequence[ChosenImages]) -> Iterator[Any]:
        actor = self.stage.actor(*self.stage.arguments(None))
        read = ShardReader(self.dataset, self.stage.label, described=True, known={})
        for each in images:
            yield self.write(each, pa.concat_tables(actor(table) for table in read.read(each)))


@contextmanager
def run_here(
    dataset: DatasetHandle,
    stage_on: Callable[[Cluster], AppliedStage],
    write: Callable[[ChosenImages, pa.Table], Any],
    resources: object,
) -> Iterator[RunHere]:
    """Like `stage_run`, without Ray."""
    yield RunHere(dataset, stage_on(Cluster(local=True, cpus=2, gpus=0, nodes=1, cores=1)), write)
