"""Engine of `segmint apply` and `segmint label`: a stage runs over chosen images of committed shards.

    committed shards -> read -> the stage's actors -> (describe) -> write

Ray Data streams the rows shard by shard through a pool of actors. As soon as all chosen rows of a shard have left the
stage, a task calls the caller's `write` function with them. A row that can't be processed arrives there with a `fault`
or a `reason`, so it never holds up the other rows of its shard. A row that kills its worker gets trials in fresh
workers, like a suspect of a build; see `segmint.pipeline.building.execution.quarantine`.
"""

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any

import pyarrow as pa
import ray.data
import ray.exceptions

from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.manifest import AppliedSegmenter, DatasetHandle, DatasetManifest, ModelTerms
from segmint.catalogs.dataset.versions import name_now
from segmint.catalogs.findings import Reason
from segmint.catalogs.layout import DamagedDatasetError, ShardSpan
from segmint.catalogs.lineage import StageColumn, TableColumn
from segmint.infra.assets import known_license, plain_name, resolve_default, sha256_of
from segmint.infra.errors import SegmintError, UnfinishedError, UsageError, last_line
from segmint.infra.log import get_logger
from segmint.infra.progress import Progress, track
from segmint.infra.ray_internals import iter_blocks, limit_waiting_blocks
from segmint.infra.ray_session import Cluster, local_cluster, ray_session
from segmint.infra.row_ledger import STAGE_ROWS, RowLedger
from segmint.infra.stopping import check_stopping
from segmint.infra.storage.storage import Storage
from segmint.operators.custom.contract import StageContractError, StageSpec, refusal
from segmint.operators.describe import describe_table
from segmint.operators.rows import DESCRIBED, DESCRIBED_MASK, PREPARED, Row, faulted, to_table
from segmint.operators.segment.overlap import HostThreads
from segmint.operators.segment.segment import Segment, SegmentSettings
from segmint.operators.segment.segment_alone import SegmentAlone
from segmint.operators.segmenter.segmenter import control_rows
from segmint.operators.shards.revise import read_committed_rows, with_latest_commit
from segmint.operators.shards.write import iter_rows, shard_table
from segmint.pipeline.building.dataset import name_weights
from segmint.pipeline.building.execution.quarantine import (
    MOST_SINGLE_TRIALS,
    ControlFailedError,
    Trial,
    UndecidedError,
)
from segmint.pipeline.building.execution.row_source import READ_CPUS
from segmint.pipeline.building.execution.stage_watch import ShardWriters, cut_at_borders, watched
from segmint.pipeline.building.execution.stages import (
    DESCRIBE,
    ActorPool,
    CustomPool,
    cpu_actors,
    custom_pool,
    pool_of,
)
from segmint.pipeline.building.first_numerics import first_device, numerics_of_masks, try_on_control
from segmint.pipeline.config.config import (
    ROWS_PER_BLOCK,
    Config,
    ResourcesConfig,
    SegmenterConfig,
    StageConfig,
    model_terms,
    recorded_artifact_iou,
    segment_settings,
    segmenter_settings,
)
from segmint.pipeline.corrections.correction import clean_up, confirm_changes, record_version
from segmint.pipeline.corrections.mask_revision import L, RevisionCounts, RevisionResult, is_unfinished

WINDOW_IMAGES = 100_000
"""Maximum number of images per Ray Data execution, unless a single shard has more."""

MOST_STALLED_WINDOWS = 3
"""A run ends unfinished after this many consecutive windows without a written shard or a trial."""

STALL_TIMEOUT_S = 1800.0
"""Default of `stall_timeout`, as in the configuration of a build."""

MOST_READERS = 4
"""Maximum number of shards that are read at the same time. Each takes as much memory as its tar."""

_WAITING_BLOCKS = 32
_RETRY_WAIT_S = 5.0

FAILED = "failed, and keep what they had; the same command tries them again"
"""Reason to skip images."""

BARREN_SHARDS = 200
"""A run ends unfinished after this many consecutive shards with images that failed, and none that got a result."""


@dataclass(frozen=True)
class ChosenImages:
    """Images of one shard that a stage processes."""

    shard: int
    ordinals: tuple[int, ...]  # ascending


@dataclass
class ApplyCounts(RevisionCounts):
    """Counts of the images that a stage has to process, and of the bytes to rewrite."""

    chosen: list[ChosenImages] = field(default_factory=list)
    bytes: Counter[str] = field(default_factory=Counter)  # by folder

    def choose(self, commit: Commit, ordinals: Iterable[int], kinds: Iterable[str]) -> None:
        """Choose images of a shard, whose files of these kinds are then rewritten."""
        chosen = ChosenImages(commit.shard, tuple(sorted(ordinals)))
        self.images = len(chosen.ordinals)
        if chosen.ordinals:
            self.chosen.append(chosen)
            self.bytes.update({kind: commit.file(kind).size for kind in kinds})


@dataclass(frozen=True)
class AppliedStage:
    """Stage that runs over committed rows, and the resources of its actors.

    With `makes_masks`, an actor's input has the columns of `PREPARED` without an original, as a segmenter gets them in
    a build, and its output those of `SEGMENTED`, which are then described. Otherwise, its input has the columns of
    `DESCRIBED` and those of the dataset's other stages, as a stage after `describe` gets them.
    """

    label: str  # name in messages, in rejected rows, and of the progress bar
    title: str  # for messages, as in "the segmenter bright.Bright"
    actor: type[Any]  # class of the actors
    arguments: Callable[[RowLedger | None], tuple[Any, ...]]  # arguments for constructing an actor
    alone: Callable[..., Any]  # class of the actor that tries a single row
    alone_arguments: tuple[Any, ...]
    pool: ActorPool
    timeout_s: float  # time limit per image
    makes_masks: bool = False
    gpu_kind: str | None = None  # Ray's name for the GPUs to use

    def schema(self, dataset: DatasetHandle) -> pa.Schema:
        """Return the schema of an actor's input."""
        return PREPARED if self.makes_masks else described_schema(dataset.stages, self.label)

    def control(self, dataset: DatasetHandle) -> pa.Table:
        """Return the control image as an actor gets it."""
        if self.makes_masks:
            return control_rows(adds=False)
        described = describe_table(control_rows(adds=True)).to_pylist()
        return to_table(described, self.schema(dataset))


FindStage = Callable[[], Callable[[Cluster], AppliedStage]]
"""Function that resolves what depends on the machines, before a Ray session starts.

It returns a function that sizes the stage for a cluster.
"""


@dataclass
class AppliedShard:
    """Result of writing a shard."""

    shard: int
    ids: tuple[int, ...]  # images that were processed
    failed: dict[int, str]  # reasons, by id of the image
    images: int = 0  # number of changed images
    rows: int = 0  # number of changed rows, if only one table changed
    masks: Counter[str] = field(default_factory=Counter)


Write = Callable[[ChosenImages, pa.Table], AppliedShard]
"""Function that stores a shard's results. It must be picklable, and runs in a Ray task, maybe more than once.

The table contains exactly the chosen rows, in order: the output of the stage's actors. Rows with a `reason` or a
`fault` have no result.
"""

Run = Callable[..., Generator[AppliedShard, None, None]]
"""`run_on_ray`, or a function that takes its place."""


def results_of(images: ChosenImages, table: pa.Table) -> tuple[AppliedShard, dict[int, Row]]:
    """Return the result of a shard that isn't written yet, and the rows with a result, by ordinal.

    Images that were taken down are in neither.
    """
    found: dict[int, Row] = {}
    failed: dict[int, str] = {}
    for row in iter_rows(table.drop_columns(["release"])):
        if row["fault"] is not None:
            failed[row["id"]] = row["fault"]
        elif row["reason"] is None:
            found[row["ordinal"]] = row
        elif row["reason"] != Reason.TAKEN_DOWN:
            failed[row["id"]] = f"{row['stage']}: {row['reason']}: {row['detail']}"
    return AppliedShard(images.shard, tuple(ordinal + 1 for ordinal in images.ordinals), failed), found


def apply_stage(
    dataset: DatasetHandle,
    command: str,
    listed: L,
    images: Sequence[ChosenImages],
    results: Generator[AppliedShard, None, None],
    confirm: Callable[[L], None] | None,
    now: datetime | None,
) -> RevisionResult[L]:
    """Run a stage over images after confirmation, and record the version of `command`. `listed` lists the changes.

    `results` is what `run_on_ray` returned, and hasn't begun yet. If there are no images and nothing is to be
    completed, nothing happens. Raises `UnfinishedError` after `BARREN_SHARDS` consecutive shards without a result.
    """
    shards = frozenset(dataset.commits.committed())
    if not images and not is_unfinished(dataset, shards):
        return RevisionResult(listed, (), name_now(dataset.location))
    confirm_changes(dataset, listed, confirm)
    total = RevisionCounts()
    changed: set[int] = set()
    failed: dict[int, str] = {}
    barren = 0
    with closing(results):
        for each in track(results if images else (), "changed shards", len(images)):
            for image in each.ids:  # a second run of an image replaces the result of the first
                failed.pop(image, None)
            failed |= each.failed
            total.images += each.images
            total.masks += each.masks
            if each.images:
                changed.add(each.shard)
            barren = barren + 1 if each.failed and not each.images else 0
            if barren == BARREN_SHARDS:
                raise UnfinishedError(
                    f"in {barren} shards in a row, no image succeeded; the last reason: {[*failed.values()][-1]}. "
                    "Finished work is kept. Correct the class, or repeat the command."
                )
    for image, why in sorted(failed.items()):
        total.leave(f"image {image}", FAILED, why)
    outcome = clean_up(dataset, shards, {})
    version, outputs = record_version(dataset, command, listed.reason(), now)
    return RevisionResult(listed.done(total), tuple(sorted(changed)), version, outputs, outcome.removed_links)


def run_here(
    dataset: DatasetHandle,
    find_stage: FindStage,
    write: Write,
    images: Iterable[ChosenImages],
    *_: Any,
) -> Generator[AppliedShard, None, None]:
    """Run a stage in this process, which ends if an image kills a worker. For the arguments, see `run_on_ray`."""
    stage = find_stage()(local_cluster(0))
    actor = stage.actor(*stage.arguments(None))
    for each in images:
        tables = [actor(table) for table in read_chosen(dataset, stage.schema(dataset), each)]
        if stage.makes_masks:
            tables = [describe_table(table) for table in tables]
        yield write(each, pa.concat_tables(tables))


def run_on_ray(
    dataset: DatasetHandle,
    find_stage: FindStage,
    write: Write,
    images: Sequence[ChosenImages],
    put: Callable[[], object] | None,
    resources: ResourcesConfig,
    stall_timeout: float,
) -> Generator[AppliedShard, None, None]:
    """Run a stage over these images on a cluster or a local Ray. Yield the result of each shard, in any order.

    `put` is called once the stage has passed the control image, and before any shard is written. Without `put`, there
    is no trial with the control image. `stall_timeout` is in seconds.

    Raises `UsageError` if the stage fails on the control image; see `try_on_control`. Raises `UnfinishedError` if
    several windows in a row write no shard, and `StageContractError` if the stage violates its contract. Shards that
    were written stay.
    """
    stage_on = find_stage()
    with ray_session(resources.address, object_store_memory=resources.object_store_memory) as cluster:
        stage = stage_on(cluster)
        if put is not None:
            worker, controls = partial(stage.alone, *stage.alone_arguments), [stage.control(dataset)]
            try_on_control(stage.title, stage.pool, stage.timeout_s, worker, controls, cluster, stall_timeout)
            put()
        writers = resources.writers_for(stage.pool.largest)
        yield from StageRun(dataset, stage, write, writers, stall_timeout).over(images)


@dataclass(frozen=True)
class StageRun:
    """Run of a stage over a dataset, on the connected Ray."""

    dataset: DatasetHandle
    stage: AppliedStage
    write: Write
    writers: int
    stall_timeout: float

    def over(self, images: Sequence[ChosenImages]) -> Iterator[AppliedShard]:
        """Process these images, each shard of which occurs once; see `run_on_ray`."""
        passed: set[int] = set()  # images that killed a worker, but passed their trial
        left = list(images)
        stalled = 0
        while left:
            window = first_window(left)
            ledger = RowLedger()
            done: set[int] = set()
            failure: Exception | None = None
            try:
                with Progress() as progress:
                    for result in self._run_window(window, ledger, progress):
                        done.add(result.shard)
                        yield result
            except (ray.exceptions.RayError, SegmintError, OSError) as error:
                check_stopping()  # an interrupt may have caused the error
                refused = refusal(error)
                if refused is not None:
                    raise StageContractError(refused) from error
                failure = error
                get_logger("apply").warning("window failed", error=last_line(error))
            tried = self._try_suspects(ledger, window, passed)
            left = left[len(window) :]
            for each in window:
                failed = {ordinal + 1: tried[ordinal] for ordinal in each.ordinals if tried.get(ordinal)}
                if failed:
                    yield AppliedShard(each.shard, tuple(failed), failed)
                again = passed & tried.keys() if each.shard in done else set(each.ordinals)
                again = again.intersection(each.ordinals) - {image - 1 for image in failed}
                if again:
                    left.append(ChosenImages(each.shard, tuple(sorted(again))))
            stalled = 0 if done or tried else stalled + 1
            if failure is not None and stalled == MOST_STALLED_WINDOWS:
                raise UnfinishedError(
                    f"the correction isn't finished: {last_line(failure)}. Finished work is kept. Repeat the command."
                ) from failure
            if not done:
                time.sleep(_RETRY_WAIT_S)

    def _run_window(
        self, window: Sequence[ChosenImages], ledger: RowLedger, progress: Progress
    ) -> Iterator[AppliedShard]:
        """Run one Ray Data execution, and yield the result of each shard."""
        bars = {f"({self.stage.actor.__name__})": self.stage.label}
        rows = sum(len(each.ordinals) for each in window)
        with watched(progress, rows, self.stall_timeout, stages=bars) as watch:
            limit_waiting_blocks(ray.data.DataContext.get_current(), _WAITING_BLOCKS)
            with closing(ShardWriters(self.writers, watch.check, _write_rows)) as writers:
                spans = (ShardSpan(each.shard, 0, len(each.ordinals)) for each in window)
                of_shard = {each.shard: each for each in window}
                for span, cuts in cut_at_borders(iter_blocks(self._flow(window, ledger)), spans):
                    for result in writers.submit((of_shard[span.shard], self.write), cuts):
                        yield result
                        watch.moved()
                for result in writers.drain():
                    yield result
                    watch.moved()

    def _flow(self, window: Sequence[ChosenImages], ledger: RowLedger) -> ray.data.Dataset:
        """Return the rows of a window after the stage, in order."""
        stage, pool = self.stage, self.stage.pool
        rows = ray.data.from_arrow([to_block(each) for each in window]).map_batches(
            partial(read_blocks, dataset=self.dataset, schema=stage.schema(self.dataset)),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=READ_CPUS,
            concurrency=min(MOST_READERS, pool.largest + 1, len(window)),
        )
        rows = rows.repartition(target_num_rows_per_block=ROWS_PER_BLOCK).map_batches(
            stage.actor,
            fn_constructor_args=stage.arguments(ledger),
            accelerator_type=stage.gpu_kind if pool.num_gpus else None,
            **pool.options(ROWS_PER_BLOCK),
        )
        if stage.makes_masks:
            rows = rows.map_batches(describe_table, **DESCRIBE)
        return rows

    def _try_suspects(self, ledger: RowLedger, window: Sequence[ChosenImages], passed: set[int]) -> dict[int, str]:
        """Run the trials of a window's suspects, one after another. Return why each tried image fails, by ordinal.

        The reason is empty for an image that passed, which is added to `passed`. An image also fails without a verdict,
        or if it killed a worker again after it had passed a trial.
        """
        stage = self.stage
        suspects = [number % STAGE_ROWS for number in ledger.suspects()]
        read = ray.remote(num_cpus=READ_CPUS)(_read_one)
        tried: dict[int, str] = {}
        for ordinal in suspects[:MOST_SINGLE_TRIALS]:
            shard = next(each.shard for each in window if ordinal in each.ordinals)
            trial = Trial(
                worker=stage.alone,
                arguments=stage.alone_arguments,
                pool=stage.pool,
                timeout_s=stage.timeout_s,
                row=read.remote(self.dataset, stage.schema(self.dataset), ChosenImages(shard, (ordinal,))),
                control=stage.control(self.dataset),
                gpu_kind=stage.gpu_kind,
                start_timeout_s=self.stall_timeout,
            )
            try:
                if ordinal in passed:
                    raise UndecidedError("it killed its worker again, although it had passed a trial")
                verdict = trial.judge(ordinal, stage.label)
            except UndecidedError as error:
                tried[ordinal] = faulted({}, stage.label, error)["fault"]
                if isinstance(error, ControlFailedError):
                    break
                continue
            if verdict is None:
                passed.add(ordinal)
                tried[ordinal] = ""
            else:
                tried[ordinal] = f"{stage.label}: {verdict.reason}: {verdict.detail}"
            get_logger("apply").warning("tried alone", ordinal=ordinal, verdict=str(verdict or "none: it passed"))
        return tried


def read_chosen(dataset: DatasetHandle, schema: pa.Schema, images: ChosenImages) -> Iterator[pa.Table]:
    """Yield tables of at most `ROWS_PER_BLOCK` rows, which contain exactly these images in order.

    An image that was taken down in the meantime comes with its verdict. Raises `DamagedDatasetError` if the shard can't
    be read.
    """
    location = dataset.location
    rows = with_latest_commit(location, images.shard, partial(read_committed_rows, location))
    if rows is None:
        raise DamagedDatasetError(f"{location}: shard {images.shard} has no commit")
    of_ordinal = {row["ordinal"]: row for row in rows}
    for first in range(0, len(images.ordinals), ROWS_PER_BLOCK):
        part = images.ordinals[first : first + ROWS_PER_BLOCK]
        yield to_table([of_ordinal[ordinal] for ordinal in part], schema)


def read_blocks(block: pa.Table, *, dataset: DatasetHandle, schema: pa.Schema) -> Iterator[pa.Table]:
    """Read the rows of a block that `to_block` returned, each shard as a whole."""
    for each in block.to_pylist():
        yield from read_chosen(dataset, schema, ChosenImages(each["shard"], tuple(each["ordinals"])))


def to_block(images: ChosenImages) -> pa.Table:
    """Return the numbers of images as a block for Ray Data."""
    return pa.table({"shard": pa.array([images.shard], pa.int64()), "ordinals": [list(images.ordinals)]})


def described_schema(stages: Sequence[StageColumn | TableColumn], without: str = "") -> pa.Schema:
    """Return the schema of described rows with the columns of custom stages, except the column named `without`."""
    others = [stage for stage in stages if stage.arrow_field.name != without]
    of_masks = [stage.arrow_field for stage in others if stage.table == "masks"]
    masks = pa.field("masks", pa.list_(pa.struct([*DESCRIBED_MASK, *of_masks])))
    described = DESCRIBED.set(DESCRIBED.get_field_index("masks"), masks)
    return pa.schema([*described, *(stage.arrow_field for stage in others if stage.table == "images")])


def _write_rows(task: tuple[ChosenImages, Write], cuts: Sequence[tuple[int, int]], *blocks: pa.Table) -> AppliedShard:
    images, write = task
    return write(images, shard_table(images.shard, images.ordinals, cuts, *blocks))


def _read_one(dataset: DatasetHandle, schema: pa.Schema, images: ChosenImages) -> pa.Table:
    return pa.concat_tables(read_chosen(dataset, schema, images))


def first_window(images: Sequence[ChosenImages]) -> list[ChosenImages]:
    """Return the first images, in shards of at most `WINDOW_IMAGES` together."""
    window: list[ChosenImages] = []
    room = WINDOW_IMAGES
    for each in images:
        room -= len(each.ordinals)
        if window and room < 0:
            break
        window.append(each)
    return window


def custom_stage(stage: StageConfig, spec: StageSpec) -> FindStage:
    """Return a custom stage, which gets described rows."""
    return _custom(custom_pool(1, spec, stage), f"the stage {stage.stage}")


def own_segmenter(segmenter: SegmenterConfig, manifest: DatasetManifest) -> tuple[AppliedSegmenter, FindStage]:
    """Return a user's segmenter. It drops redaction artifacts at least as strictly as the dataset's build.

    Raises `UsageError` if the segmenter is invalid, or if it needs what a dataset doesn't contain.
    """
    spec = segmenter.load()
    if spec.wants_original or spec.wants_prompts:
        wanted = "wants_original" if spec.wants_original else "wants_prompts"
        raise UsageError(
            f"the segmenter {segmenter.stage} sets {wanted}, which isn't in a dataset: only a build has it"
        )
    settings = segmenter_settings(segmenter, artifact_iou=recorded_artifact_iou(manifest.config))
    pool = custom_pool(1, spec, segmenter, replace(settings, rejects=False))
    filters = settings.filters.model_dump(mode="json", exclude_none=True)
    applied = AppliedSegmenter(
        name=segmenter.stage, identity={**spec.identity, "filters": filters}, model=model_terms(segmenter)
    )
    grows = segmenter.resources.actors == "auto"
    return applied, _custom(pool, f"the segmenter {segmenter.stage}", makes_masks=True, grows=grows)


def sam(config: Config, manifest: DatasetManifest) -> tuple[AppliedSegmenter, FindStage]:
    """Return SAM with the weights and settings of a configuration, without crops of originals.

    Raises `AssetError` if the weights aren't found.
    """
    asked = config.model.weights
    config = name_weights(config, None, first_device)
    weights = resolve_default(config.model.weights, asked, "model.weights", config.assets, Storage(config.storage))
    limits = [iou for iou in (recorded_artifact_iou(manifest.config), config.masks.artifact_iou) if iou is not None]
    artifact_iou = min(limits, default=None)
    masks = config.masks.model_dump(mode="json", exclude={"points_per_chunk"})
    masks["drop_redaction_artifacts"] = artifact_iou
    digest = sha256_of(weights)
    applied = AppliedSegmenter(
        name=plain_name(config.model.weights),
        identity={"model": {"weights": digest}, "masks": masks},
        model=ModelTerms(license=known_license(digest), weights_sha256=digest),
    )

    def find() -> Callable[[Cluster], AppliedStage]:
        settings = replace(segment_settings(config, numerics_of_masks(config, weights)), artifact_iou=artifact_iou)
        return partial(_sam_on, config=config, settings=settings, weights_bytes=weights.stat().st_size)

    return applied, find


def _custom(pool: CustomPool, title: str, *, makes_masks: bool = False, grows: bool = False) -> FindStage:
    """Return a stage with users' code. If it `grows`, it has as many actors as fit on the GPUs, if it uses any."""

    def size(cluster: Cluster) -> AppliedStage:
        gpus, sized = pool.pool.num_gpus, pool.pool
        if grows and 0 < gpus <= cluster.gpus:
            actors = int(cluster.gpus // gpus)
            sized = replace(sized, smallest=actors, largest=actors)
        return AppliedStage(
            label=pool.spec.label,
            title=title,
            actor=pool.actor(),
            arguments=pool.arguments,
            alone=pool.actor(),
            alone_arguments=pool.arguments(None),
            pool=sized,
            timeout_s=pool.timeout_s,
            makes_masks=makes_masks,
        )

    return lambda: size


def _sam_on(cluster: Cluster, *, config: Config, settings: SegmentSettings, weights_bytes: int) -> AppliedStage:
    resources, numerics = config.resources.segment, settings.numerics
    gpus = 1.0 if numerics.device == "cuda" else 0.0
    if resources.num_gpus != "auto":
        gpus = float(resources.num_gpus)
    if gpus:
        actors = max(1, int(cluster.gpus // gpus))
    else:
        actors = cpu_actors(cluster, numerics.threads, weights_bytes, rows=cluster.cores)
    pool = pool_of(resources, actors, actors, gpus)
    threads = HostThreads.of(numerics.device, pool.num_cpus, config.model.images_per_batch)
    kind = resources.accelerator_type

    def arguments(ledger: RowLedger | None) -> tuple[Any, ...]:
        return settings, False, ledger, resources.timeout_s, threads

    return AppliedStage(
        label="segment",
        title=f"SAM with the weights {settings.weights}",
        actor=Segment,
        arguments=arguments,
        alone=SegmentAlone,
        alone_arguments=(settings, resources.timeout_s),
        pool=replace(pool, calls_at_once=threads.calls(ROWS_PER_BLOCK)),
        timeout_s=resources.timeout_s,
        makes_masks=True,
        gpu_kind=None if kind == "auto" else kind,
    )
