"""Engine of `segmint apply`: a stage runs in a pool of actors over chosen images of committed shards.

    committed shards -> read -> the stage's actors -> (describe) -> write

Ray Data streams the rows shard by shard. As soon as all chosen rows of a shard have left the stage, a task calls the
caller's `write` function with them. A row that can't be processed arrives there with a `fault` or a `reason`, so it
never holds up the other rows of its shard. A row that kills its worker gets trials in fresh workers, like a suspect of
a build; see `segmint.pipeline.building.execution.quarantine`.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import pyarrow as pa
import ray.data
import ray.exceptions

from segmint.catalogs.dataset.handle import DatasetHandle
from segmint.catalogs.layout import DamagedDatasetError
from segmint.catalogs.shard_ranges import ShardSpan
from segmint.catalogs.stages import StageColumn, TableColumn
from segmint.infra.errors import SegmintError, UnfinishedError, last_line
from segmint.infra.log import get_logger
from segmint.infra.progress import Progress
from segmint.infra.ray_internals import iter_blocks, limit_waiting_blocks
from segmint.infra.ray_session import RETRIES, Cluster, ray_session
from segmint.infra.row_ledger import STAGE_ROWS, RowLedger
from segmint.infra.stopping import check_stopping
from segmint.operators.custom.contract import StageContractError, refusal
from segmint.operators.describe import describe_table
from segmint.operators.rows import Row, faulted, rejected, to_table
from segmint.operators.schemas import DESCRIBED, DESCRIBED_MASK, PREPARED
from segmint.operators.segmenter.segmenter import control_rows
from segmint.operators.shards.committed_rows import read_committed_rows
from segmint.operators.shards.revise import with_latest_commit
from segmint.operators.shards.write import shard_table
from segmint.pipeline.building.dataset.segmenter_trial import problem_on, try_on_control
from segmint.pipeline.building.execution.pools import ActorPool
from segmint.pipeline.building.execution.shard_writers import ShardWriters, cut_at_borders
from segmint.pipeline.building.execution.stage_watch import watched
from segmint.pipeline.building.execution.stages import DESCRIBE_CPUS
from segmint.pipeline.building.execution.trials import ControlFailedError, Trial, UndecidedError
from segmint.pipeline.config.config import ROWS_PER_BLOCK, ResourcesConfig

WINDOW_IMAGES = 100_000
"""Maximum number of images per Ray Data execution, unless a single shard has more."""

MOST_STALLED_WINDOWS = 3
"""A run ends unfinished after this many consecutive windows without a written shard or a trial."""

MOST_SINGLE_TRIALS = 8
"""Maximum number of images that get a trial after one window."""

STALL_TIMEOUT_S = 1800.0
"""Default of `stall_timeout`, as in the configuration of a build."""

READ_CPUS = 0.25
"""Logical CPUs per task that reads a shard. Must differ from the actors' CPUs, or Ray would fuse the stages."""

MOST_READERS = 4
"""Maximum number of shards that are read at the same time. Each takes as much memory as its tar."""

_WAITING_BLOCKS = 32
_RETRY_WAIT_S = 5.0

R = TypeVar("R")


@dataclass(frozen=True)
class ChosenImages:
    """Images of one shard that a stage processes."""

    shard: int
    ordinals: tuple[int, ...]  # ascending


@dataclass(frozen=True)
class AppliedStage:
    """Stage that runs over committed rows, and the resources of its actors.

    An actor's input has the columns of `PREPARED` without an original, as a segmenter gets them in a build. With
    `described`, it has those of `DESCRIBED` and the columns of the dataset's other stages, as a stage after `describe`
    gets them.
    """

    label: str  # name in messages, in rejected rows, and of the progress bar
    title: str  # for messages, as in "the segmenter bright.Bright"
    actor: type[Any]  # class of the actors
    arguments: Callable[[RowLedger | None], tuple[Any, ...]]  # arguments for constructing an actor
    alone: Callable[..., Any]  # class of the actor that tries a single row
    alone_arguments: tuple[Any, ...]
    pool: ActorPool
    timeout_s: float  # time limit per image
    described: bool
    makes_masks: bool = False  # whether the actors return rows of `SEGMENTED`, which are then described
    gpu_kind: str | None = None  # Ray's name for the GPUs to use


Write = Callable[[ChosenImages, pa.Table], R]
"""Function that stores a shard's results. It must be picklable, and runs in a Ray task, maybe more than once.

The table contains exactly the chosen rows, in order: the output of the stage's actors. Rows with a `reason` or a
`fault` have no result. A shard whose images killed their workers is written a second time, with these images only.
"""


@dataclass(frozen=True)
class StageRun(Generic[R]):
    """Run of a stage over a dataset, on a Ray cluster."""

    dataset: DatasetHandle
    stage: AppliedStage
    cluster: Cluster
    write: Write[R]
    writers: int
    stall_timeout: float

    def try_control(self) -> None:
        """Run the stage on a control image. Raises `UsageError` if it fails; see `try_on_control`."""
        stage = self.stage
        problem = partial(problem_on, partial(stage.alone, *stage.alone_arguments), [self._control()])
        try_on_control(stage.title, stage.pool, stage.timeout_s, problem, self.cluster, self.stall_timeout)

    def over(self, images: Sequence[ChosenImages]) -> Iterator[R]:
        """Process these images, and yield what `write` returns for each shard, in any order.

        Raises `UnfinishedError` if several windows in a row write no shard, and `StageContractError` if the stage
        violates its contract. Shards that were written stay.
        """
        known: dict[int, Row] = {}  # verdict columns of images that killed their workers, by ordinal
        passed: set[int] = set()  # images that killed a worker, but passed their trial
        left = list(images)
        stalled = 0
        while left:
            window = _first_window(left)
            ledger = RowLedger()
            done: set[int] = set()
            failure: Exception | None = None
            try:
                with Progress() as progress:
                    for shard, result in self._run_window(window, ledger, known, progress):
                        done.add(shard)
                        yield result
            except (ray.exceptions.RayError, SegmintError, OSError) as error:
                check_stopping()  # an interrupt may have caused the error
                refused = refusal(error)
                if refused is not None:
                    raise StageContractError(refused) from error
                failure = error
                get_logger("apply").warning("window failed", error=last_line(error))
            tried = self._try_suspects(ledger, window, known, passed)
            unfinished = [each for each in window if each.shard not in done]
            left = [*left[len(window) :], *unfinished]
            for shard, ordinals in tried.items():
                if shard in done:
                    judged = ChosenImages(shard, tuple(sorted(known.keys() & ordinals)))
                    if judged.ordinals:
                        yield self.write(judged, _verdicts(judged, known))
                    if again := ordinals - known.keys():
                        left.append(ChosenImages(shard, tuple(sorted(again))))
            stalled = 0 if done or tried else stalled + 1
            if failure is not None and stalled == MOST_STALLED_WINDOWS:
                raise UnfinishedError(
                    f"the correction isn't finished: {last_line(failure)}. Finished work is kept. Repeat the command."
                ) from failure
            if unfinished and not done:
                time.sleep(_RETRY_WAIT_S)

    def _run_window(
        self, window: Sequence[ChosenImages], ledger: RowLedger, known: Mapping[int, Row], progress: Progress
    ) -> Iterator[tuple[int, R]]:
        """Run one Ray Data execution. Yield each shard with the result of `write`."""
        bars = {f"({self.stage.actor.__name__})": self.stage.label}
        rows = sum(len(each.ordinals) for each in window)
        with watched(progress, rows, self.stall_timeout, stages=bars) as watch:
            limit_waiting_blocks(ray.data.DataContext.get_current(), _WAITING_BLOCKS)
            with closing(ShardWriters(self.writers, watch.check, _write_answers)) as writers:
                spans = (ShardSpan(each.shard, 0, len(each.ordinals)) for each in window)
                of_shard = {each.shard: each for each in window}
                for span, cuts in cut_at_borders(iter_blocks(self._flow(window, ledger, known)), spans):
                    for result in writers.submit((of_shard[span.shard], self.write), cuts):
                        yield result
                        watch.moved()
                for result in writers.drain():
                    yield result
                    watch.moved()

    def _flow(self, window: Sequence[ChosenImages], ledger: RowLedger, known: Mapping[int, Row]) -> ray.data.Dataset:
        """Return the rows of a window after the stage, in order."""
        stage, pool = self.stage, self.stage.pool
        blocks = {"batch_size": None, "batch_format": "pyarrow", "udf_modifying_row_count": False}
        read = ShardReader(self.dataset, stage.label, stage.described, known)
        rows = ray.data.from_arrow([_to_block(each) for each in window]).map_batches(
            read.tables,
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=READ_CPUS,
            concurrency=min(MOST_READERS, pool.largest + 1, len(window)),
        )
        rows = rows.repartition(target_num_rows_per_block=ROWS_PER_BLOCK).map_batches(
            stage.actor,
            fn_constructor_args=stage.arguments(ledger),
            compute=pool.strategy(),
            max_concurrency=pool.calls_at_once,
            num_cpus=pool.num_cpus,
            num_gpus=pool.num_gpus or None,
            accelerator_type=stage.gpu_kind if pool.num_gpus else None,
            max_restarts=RETRIES,
            max_task_retries=RETRIES,
            **{**blocks, **({"batch_size": ROWS_PER_BLOCK} if pool.num_gpus else {})},
        )
        if stage.makes_masks:
            rows = rows.map_batches(describe_table, num_cpus=DESCRIBE_CPUS, max_retries=RETRIES, **blocks)
        return rows

    def _try_suspects(
        self, ledger: RowLedger, window: Sequence[ChosenImages], known: dict[int, Row], passed: set[int]
    ) -> dict[int, set[int]]:
        """Run the trials of a window's suspects, one after another. Return the tried images by shard.

        The verdict on an image that kills its worker again is added to `known`. So is a fault, if there is no verdict,
        or if an image that has passed a trial killed a worker again.
        """
        stage = self.stage
        suspects = [number % STAGE_ROWS for number in ledger.suspects()]
        read = ShardReader(self.dataset, stage.label, stage.described, {})
        tried: dict[int, set[int]] = {}
        for ordinal in suspects[:MOST_SINGLE_TRIALS]:
            shard = next(each.shard for each in window if ordinal in each.ordinals)
            row = ray.remote(num_cpus=READ_CPUS)(_read_one).remote(read, shard, ordinal)
            start = stage.gpu_kind, self.stall_timeout
            trial = Trial(stage.alone, stage.alone_arguments, stage.pool, stage.timeout_s, row, self._control(), *start)
            tried.setdefault(shard, set()).add(ordinal)
            try:
                if ordinal in passed:
                    raise UndecidedError("it killed its worker again, although it had passed a trial")
                verdict = trial.judge(ordinal, stage.label)
            except UndecidedError as error:
                known[ordinal] = faulted({}, stage.label, error)
                if isinstance(error, ControlFailedError):
                    break
                continue
            if verdict is None:
                passed.add(ordinal)
            else:
                known[ordinal] = rejected({}, stage.label, verdict)
            get_logger("apply").warning("tried alone", ordinal=ordinal, verdict=str(verdict or "none: it passed"))
        return tried

    def _control(self) -> pa.Table:
        """Return the control image as the stage's actors get it."""
        if not self.stage.described:
            return control_rows(adds=False)
        described = describe_table(control_rows(adds=True)).to_pylist()
        return to_table(described, described_schema(self.dataset.stages, self.stage.label))


@contextmanager
def stage_run(
    dataset: DatasetHandle,
    stage_on: Callable[[Cluster], AppliedStage],
    write: Write[R],
    resources: ResourcesConfig,
    stall_timeout: float = STALL_TIMEOUT_S,
) -> Iterator[StageRun[R]]:
    """Connect to a cluster, or start a local Ray. Yield the run of the stage, which `stage_on` sizes for the cluster.

    `stall_timeout` is in seconds.
    """
    with ray_session(resources.address, object_store_memory=resources.object_store_memory) as cluster:
        stage = stage_on(cluster)
        yield StageRun(dataset, stage, cluster, write, resources.writers_for(stage.pool.largest), stall_timeout)


@dataclass(frozen=True)
class ShardReader:
    """Reader of chosen rows of committed shards, as the actors of a stage get them."""

    dataset: DatasetHandle
    label: str  # of the stage, whose own column of an earlier run is left out
    described: bool  # as in `AppliedStage`
    known: Mapping[int, Row]  # verdict columns, by ordinal

    def tables(self, block: pa.Table) -> Iterator[pa.Table]:
        """Read the rows of a block of `ChosenImages`, each shard as a whole."""
        for each in block.to_pylist():
            yield from self.read(ChosenImages(each["shard"], tuple(each["ordinals"])))

    def read(self, images: ChosenImages) -> Iterator[pa.Table]:
        """Yield tables of at most `ROWS_PER_BLOCK` rows, which contain exactly these images in order.

        An image that was taken down in the meantime comes with its verdict. Raises `DamagedDatasetError` if the shard
        can't be read.
        """
        location = self.dataset.location
        rows = with_latest_commit(location, images.shard, lambda commit: read_committed_rows(location, commit))
        if rows is None:
            raise DamagedDatasetError(f"{location}: shard {images.shard} has no commit")
        of_ordinal = {row["ordinal"]: row for row in rows}
        schema = described_schema(self.dataset.stages, self.label) if self.described else PREPARED
        for first in range(0, len(images.ordinals), ROWS_PER_BLOCK):
            part = images.ordinals[first : first + ROWS_PER_BLOCK]
            chosen = [{**of_ordinal[ordinal], **self.known.get(ordinal, {})} for ordinal in part]
            yield to_table(chosen, schema)


def described_schema(stages: Sequence[StageColumn | TableColumn], without: str = "") -> pa.Schema:
    """Return the schema of described rows with the columns of custom stages, except the column named `without`."""
    others = [stage for stage in stages if stage.arrow_field.name != without]
    of_masks = [stage.arrow_field for stage in others if stage.table == "masks"]
    masks = pa.field("masks", pa.list_(pa.struct([*DESCRIBED_MASK, *of_masks])))
    described = DESCRIBED.set(DESCRIBED.get_field_index("masks"), masks)
    return pa.schema([*described, *(stage.arrow_field for stage in others if stage.table == "images")])


def _write_answers(
    task: tuple[ChosenImages, Write[R]], cuts: Sequence[tuple[int, int]], *blocks: pa.Table
) -> tuple[int, R]:
    images, write = task
    return images.shard, write(images, shard_table(images.shard, images.ordinals, cuts, *blocks))


def _verdicts(images: ChosenImages, known: Mapping[int, Row]) -> pa.Table:
    """Return rows with nothing but their numbers and verdicts."""
    rows = [
        {"ordinal": ordinal, "id": ordinal + 1, "image_id": "", "uri": "", **known[ordinal]}
        for ordinal in images.ordinals
    ]
    return to_table(rows, PREPARED)


def _read_one(read: ShardReader, shard: int, ordinal: int) -> pa.Table:
    (table,) = read.read(ChosenImages(shard, (ordinal,)))
    return table


def _to_block(images: ChosenImages) -> pa.Table:
    return pa.table({"shard": pa.array([images.shard], pa.int64()), "ordinals": [list(images.ordinals)]})


def _first_window(images: Sequence[ChosenImages]) -> list[ChosenImages]:
    """Return the first images, in shards of at most `WINDOW_IMAGES` together. No shard occurs twice."""
    window: list[ChosenImages] = []
    room = WINDOW_IMAGES
    for each in images:
        room -= len(each.ordinals)
        if window and (room < 0 or each.shard in [other.shard for other in window]):
            break
        window.append(each)
    return window
