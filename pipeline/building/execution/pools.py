"""Actor pools of stages, and those of custom stages and segmenters, which run users' code."""

from dataclasses import dataclass
from typing import Any

from ray.data import ActorPoolStrategy

from segmint.infra.errors import UsageError
from segmint.infra.row_ledger import RowLedger
from segmint.operators.custom.load import StageSpec
from segmint.operators.custom.stage import CustomAlone, CustomStage
from segmint.operators.segmenter.segmenter import CustomSegmenter, SegmenterAlone, SegmenterSettings
from segmint.pipeline.building.dataset.dataset import BuildDataset
from segmint.pipeline.config.config import Config, PoolConfig, Position, SegmenterConfig, StageConfig
from segmint.pipeline.config.stage_settings import artifact_iou, segmenter_settings


@dataclass(frozen=True)
class ActorPool:
    """Pool of `smallest` to `largest` actors for a stage. `num_cpus` and `num_gpus` are logical numbers per actor."""

    smallest: int
    largest: int
    num_cpus: float
    num_gpus: float
    calls_at_once: int

    def within(self, actors: int) -> int:
        """Return the pool size that is closest to `actors`."""
        return max(self.smallest, min(self.largest, actors))

    def strategy(self) -> ActorPoolStrategy:
        """Return the pool in Ray Data's notation. Pass `calls_at_once` as `max_concurrency`, as all versions allow."""
        return ActorPoolStrategy(
            min_size=self.smallest,
            max_size=self.largest,
            max_tasks_in_flight_per_actor=2 * self.calls_at_once,
            enable_true_multi_threading=self.calls_at_once > 1,
        )


@dataclass(frozen=True)
class CustomPool:
    """Actor pool of a custom stage, which adds masks if it has `settings`, or of a segmenter.

    A segmenter is the last custom stage after `prepare`, and it has the highest number.
    """

    number: int  # identifies the stage in the ledger; starts at 1
    spec: StageSpec
    after: Position
    pool: ActorPool
    batch_size: int | None
    timeout_s: float  # time limit per image
    settings: SegmenterSettings | None = None

    def actor(self) -> type[CustomStage]:
        """Return the actors' class, named after the stage. Ray and the progress bars show this name."""
        return type(self.spec.label, (CustomStage if self.settings is None else CustomSegmenter,), {})

    def arguments(self, ledger: RowLedger | None) -> tuple[Any, ...]:
        """Return the arguments for constructing an actor."""
        own = None if ledger is None else ledger.of_stage(self.number)
        arguments = self.spec, self.batch_size, self.timeout_s, own, self.pool.num_gpus > 0
        return arguments if self.settings is None else (*arguments, self.settings)

    def alone(self) -> type[CustomAlone]:
        """Return the class of the actor that tries a single row."""
        return CustomAlone if self.settings is None else SegmenterAlone


def pool_of(wanted: PoolConfig, smallest: int, largest: int, num_gpus: float) -> ActorPool:
    """Return a pool of the configured size. If that is auto, the pool has `smallest` to `largest` actors."""
    if wanted.actors != "auto":
        smallest, largest = (wanted.actors, wanted.actors) if isinstance(wanted.actors, int) else wanted.actors
    return ActorPool(smallest, largest, float(wanted.num_cpus), num_gpus, calls_at_once=1)


def custom_pools(config: Config, dataset: BuildDataset) -> tuple[tuple[CustomPool, ...], CustomPool | None]:
    """Return the custom stages' pools and the segmenter's, if any, which has its smallest size.

    Raises `UsageError` if a stage's code has changed since the first start.
    """
    pools: list[CustomPool] = []
    begun = dataset.manifest.config.get("stages", {})
    specs = config.load_stages()
    for number, (each, spec) in enumerate(zip(config.stages, specs, strict=False), start=1):
        _check_version(dataset, spec, begun.get(spec.name, {}).get("version"))
        if spec.masks:
            settings = segmenter_settings(each, artifact_iou=artifact_iou(config, dataset.manifest))
            pools.append(segmenter_pool(number, spec, each, settings, each.after))
        else:
            pools.append(custom_pool(number, spec, each))
    segmenter = config.segmenter
    if segmenter is None:
        return tuple(pools), None
    spec = specs[-1]
    _check_version(dataset, spec, dataset.manifest.config.get("segmenter", {}).get("version"))
    numerics = None if config.allow_mixed_numerics else dataset.numerics
    return tuple(pools), segmenter_pool(len(specs), spec, segmenter, segmenter_settings(segmenter, numerics))


def custom_pool(number: int, spec: StageSpec, stage: StageConfig) -> CustomPool:
    """Return the pool of a custom stage that makes no masks."""
    return _own_pool(number, spec, stage, stage.after)


def segmenter_pool(
    number: int,
    spec: StageSpec,
    segmenter: StageConfig | SegmenterConfig,
    settings: SegmenterSettings,
    after: Position = "prepare",
) -> CustomPool:
    """Return the pool of a segmenter, or of a stage that adds masks, which has its smallest size."""
    return _own_pool(number, spec, segmenter, after, settings)


def _own_pool(
    number: int,
    spec: StageSpec,
    stage: StageConfig | SegmenterConfig,
    after: Position,
    settings: SegmenterSettings | None = None,
) -> CustomPool:
    resources = stage.resources
    pool = pool_of(resources, 1, 1, resources.num_gpus)
    batch_size = None if stage.batch_size == "auto" else stage.batch_size
    return CustomPool(number, spec, after, pool, batch_size, resources.timeout_s, settings)


def _check_version(dataset: BuildDataset, spec: StageSpec, version: str | None) -> None:
    if version != spec.version:
        raise UsageError(
            f"the code of the stage {spec.name} has changed: its version here is {spec.version}, and that of "
            f"{dataset.location} is {version}. Restore it, or choose another output"
        )
