"""A run of `segmint apply` in this process, without Ray: the real reader, actors, and writer, shard by shard."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from segmint.catalogs.dataset.manifest import DatasetHandle
from segmint.infra.errors import UsageError
from segmint.infra.ray_session import local_cluster
from segmint.pipeline.building.first_numerics import problem_on
from segmint.pipeline.config.config import SegmenterConfig
from segmint.pipeline.corrections.apply.engine import AppliedShard, ChosenImages, FindStage, Write, run_here
from segmint.pipeline.corrections.apply.masks import ApplyList, MasksMode, apply_masks
from segmint.pipeline.corrections.mask_revision import RevisionResult
from tests.support.protocol import DatasetPath, end_threads


def local_run(
    dataset: DatasetHandle,
    find_stage: FindStage,
    write: Write,
    images: Sequence[ChosenImages],
    put: Callable[[], object],
    *_: Any,
    between: Callable[[int], object] = lambda _: None,
) -> Generator[AppliedShard, None, None]:
    """Take the place of `run_on_ray`. `between` is called before each shard is read."""
    stage = find_stage()(local_cluster(0))
    problem = problem_on(partial(stage.alone, *stage.alone_arguments), [stage.control(dataset)])
    if problem is not None:
        raise UsageError(problem)
    put()
    actors = []

    def started(*arguments: Any) -> Any:
        actors.append(stage.actor(*arguments))
        return actors[-1]

    for each in images:
        between(each.shard)
        yield from run_here(dataset, lambda: lambda _: replace(stage, actor=started), write, [each])
    for actor in actors:
        end_threads(actor)


def segmenter(name: str = "Bright", **arguments: Any) -> SegmenterConfig:
    """A segmenter of `tests.support.segmenters`."""
    return SegmenterConfig(stage=f"tests.support.segmenters.{name}", arguments=arguments)


def applied(
    place: DatasetPath, made_by: SegmenterConfig, mode: MasksMode = MasksMode.REPLACE, **more: Any
) -> RevisionResult[ApplyList]:
    """Apply a segmenter in this process."""
    between = more.pop("between", lambda _: None)
    return apply_masks(place.location, made_by, mode, run=partial(local_run, between=between), **more)
