"""A run of `segmint apply` in this process, without Ray: the real reader, actors, and writer, shard by shard."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from segmint.catalogs.dataset.handle import DatasetHandle
from segmint.infra.errors import UsageError
from segmint.infra.ray_session import Cluster
from segmint.operators.describe import describe_table
from segmint.pipeline.building.dataset.segmenter_trial import problem_on
from segmint.pipeline.config.config import SegmenterConfig
from segmint.pipeline.corrections.apply.change import MasksMode
from segmint.pipeline.corrections.apply.engine import AppliedStage, ChosenImages, ShardReader, StageRun
from segmint.pipeline.corrections.apply.masks import ApplyResult, apply_masks
from tests.support.protocol import DatasetPath, end_threads

CLUSTER = Cluster(local=True, cpus=4.0, gpus=0.0, nodes=1, cores=2)


class ControlRun(StageRun[Any]):
    """A run that shows the rows on which it tries a stage first."""

    def control(self) -> Any:
        return self._control()


@dataclass(frozen=True)
class LocalRun:
    """Takes the place of `StageRun`. `between` is called before each shard."""

    dataset: DatasetHandle
    stage: AppliedStage
    write: Callable[[ChosenImages, pa.Table], Any]
    between: Callable[[int], object]

    def try_control(self) -> None:
        run = ControlRun(self.dataset, self.stage, CLUSTER, self.write, 1, 60.0)
        problem = problem_on(partial(self.stage.alone, *self.stage.alone_arguments), [run.control()])
        if problem is not None:
            raise UsageError(problem)

    def over(self, images: Sequence[ChosenImages]) -> Iterator[Any]:
        actor = self.stage.actor(*self.stage.arguments(None))
        read = ShardReader(self.dataset, self.stage.label, self.stage.described, {})
        for each in images:
            self.between(each.shard)
            tables = [actor(table) for table in read.read(each)]
            if self.stage.makes_masks:
                tables = [describe_table(table) for table in tables]
            yield self.write(each, pa.concat_tables(tables))
        end_threads(actor)


@contextmanager
def local_run(
    dataset: DatasetHandle,
    stage_on: Callable[[Cluster], AppliedStage],
    write: Callable[[ChosenImages, pa.Table], Any],
    *_: Any,
    between: Callable[[int], object] = lambda _: None,
) -> Iterator[LocalRun]:
    """Take the place of `stage_run`."""
    yield LocalRun(dataset, stage_on(CLUSTER), write, between)


def segmenter(name: str = "Bright", **arguments: Any) -> SegmenterConfig:
    """A segmenter of `tests.support.segmenters`."""
    return SegmenterConfig(stage=f"tests.support.segmenters.{name}", arguments=arguments)


def applied(
    place: DatasetPath, made_by: SegmenterConfig, mode: MasksMode = MasksMode.REPLACE, **more: Any
) -> ApplyResult:
    """Apply a segmenter in this process."""
    between = more.pop("between", lambda _: None)
    return apply_masks(place.location, made_by, mode, open_run=partial(local_run, between=between), **more)
