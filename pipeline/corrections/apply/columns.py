"""`segmint apply --stage`: add a stage's column to a finished dataset, fill in its missing rows, or remove the column.

Only the table with the column is rewritten; the tars keep their bytes. The manifest's next generation lists the column
before any shard contains it. A row is done if its value names the stage that computed it, so repeating the command only
judges the remaining rows: those of shards that are new or weren't reached, and of images that were redacted since.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.handle import DatasetHandle
from segmint.catalogs.dataset.manifest import DatasetManifest, put_manifest
from segmint.catalogs.dataset.outputs import shown_outputs
from segmint.catalogs.dataset.subsets import choose_images
from segmint.catalogs.dataset.versions.record import VersionName, name_now
from segmint.catalogs.layout import SCHEMA_VERSION, image_stem
from segmint.catalogs.stages import STAGE_SHA256, AppliedColumn, StageColumn, StageField
from segmint.infra.errors import UsageError
from segmint.infra.progress import track
from segmint.infra.storage.location import Location
from segmint.infra.threads import map_ahead
from segmint.infra.wording import counted, size
from segmint.operators.custom.load import StageSpec
from segmint.operators.rows import Row
from segmint.operators.schemas import MASKS_PER_IMAGE_LIMIT
from segmint.operators.shards.committed_rows import read_file, read_table
from segmint.operators.shards.files import mask_index
from segmint.operators.shards.revise import with_latest_commit
from segmint.pipeline.config.config import LOCAL, ResourcesConfig, StageConfig
from segmint.pipeline.corrections.apply.engine import STALL_TIMEOUT_S, ChosenImages, stage_run
from segmint.pipeline.corrections.apply.makers import custom_stage
from segmint.pipeline.corrections.apply.masks import OpenRun
from segmint.pipeline.corrections.correction import (
    Revision,
    begin,
    clean_up,
    confirm_changes,
    record_version,
    revise,
    revise_one,
)
from segmint.pipeline.corrections.mask_revision import SHOWN, is_unfinished

_THREADS = 16


def column_of(spec: StageSpec) -> AppliedColumn:
    """Return the column that a stage adds to a finished dataset. Raise `UsageError` if the stage can't add one."""
    if spec.masks or spec.column is None or spec.labels:
        raise UsageError(
            f"the stage {spec.stage} has no column to add: expected a stage with fields, and without labels"
        )
    if any(each.name == STAGE_SHA256 for each in spec.column.fields):
        raise UsageError(f"the stage {spec.stage} has a field {STAGE_SHA256}, which segmint adds: choose another name")
    return AppliedColumn(
        name=spec.name,
        table=spec.column.table,
        fields=(*spec.column.fields, StageField(name=STAGE_SHA256, type="string")),
        stage=spec.stage,
        version=spec.version,
        arguments=dict(spec.arguments),
        sha256=spec.sha256,
    )


@dataclass(frozen=True)
class ColumnList:
    """List of the rows that a stage would judge, or that would lose the column."""

    dataset: str
    name: str
    column: str
    table: str
    removes: bool
    images: int  # images without the column's values, or with values that are removed
    shards: tuple[int, ...]  # shards whose table is rewritten
    bytes: int  # size of these tables

    @property
    def rows(self) -> int:
        """Number of images."""
        return self.images

    def lines(self) -> list[str]:
        what = f"lose {self.column}" if self.removes else f"get {self.column}"
        return [
            f"{counted(self.images, 'image')} of {self.dataset} would {what}",
            f"{size(self.bytes)} of Parquet in {self.table}/ would be rewritten, in "
            f"{counted(len(self.shards), 'shard')}; tars keep their bytes",
        ]


@dataclass(frozen=True)
class ColumnResult:
    """Result of adding, filling in, or removing a column."""

    listed: ColumnList
    changed_shards: tuple[int, ...]
    version: VersionName
    judged: int = 0  # images with new values
    not_judged: int = 0  # images whose values stay null
    examples: tuple[str, ...] = ()  # of these images, with the reasons
    outputs: tuple[str, ...] = ()  # outputs recorded in the dataset, which contain the former tables

    def lines(self) -> list[str]:
        listed = self.listed
        shards = f"in {counted(len(self.changed_shards), 'shard')}"
        done = f"{listed.column} was removed {shards}" if listed.removes else f"{counted(self.judged, 'image')} got "
        done += "" if listed.removes else f"{listed.column} {shards}"
        if not self.changed_shards and not self.not_judged:
            done = f"nothing to do: {listed.column} is " + ("in no shard" if listed.removes else "in every row")
        null = f"{counted(self.not_judged, 'image')} without a value, because the stage gave none; repeat the command"
        more = self.not_judged - len(self.examples)
        return [
            done,
            *([null] if self.not_judged else []),
            *(f"  {line}" for line in self.examples),
            *([f"  and {more:,} more"] if more else []),
            *shown_outputs(listed.dataset, self.outputs, "create it again"),
            self.version.line(),
        ]


def check_column(manifest: DatasetManifest, column: AppliedColumn) -> bool:
    """Return whether a manifest lists a column. Raise `UsageError` if the dataset can't have it."""
    if manifest.schema_version != SCHEMA_VERSION:
        raise UsageError(
            f"a dataset of format {manifest.schema_version} can't get columns: build it again with this version"
        )
    for known in manifest.columns:
        if known == column:
            return True
        if known.name == column.name and isinstance(known, AppliedColumn):
            raise UsageError(
                f"stage_{known.name} was added by another version of {known.stage}, or with other arguments. To "
                f"compute it again, run `segmint apply … --stage {known.stage} --remove`, then this command"
            )
        if known.name == column.name:
            raise UsageError(f"stage_{known.name} is a column of the dataset's build: give the stage another name")
    return False


def put_column(dataset: DatasetHandle, column: AppliedColumn) -> None:
    """List a column in the manifest's next generation, unless the manifest lists it."""
    while True:
        manifest, generation = dataset.latest()
        if check_column(manifest, column):
            return
        put_manifest(
            dataset.location,
            manifest.model_copy(update={"applied_columns": (*manifest.applied_columns, column)}),
            generation + 1,
        )


def put_removal(dataset: DatasetHandle, column: AppliedColumn) -> None:
    """Mark a column as removed in the manifest's next generation, unless it is."""
    while True:
        manifest, generation = dataset.latest()
        if column.removed or column not in manifest.applied_columns:
            return
        marked = column.model_copy(update={"removed": True})
        applied = tuple(marked if each == column else each for each in manifest.applied_columns)
        put_manifest(dataset.location, manifest.model_copy(update={"applied_columns": applied}), generation + 1)


def unjudged(table: pa.Table, column: AppliedColumn) -> set[int]:
    """Return the ordinals of images that the column's stage hasn't judged, from the column's table."""
    field = column.arrow_field
    if field in list(table.schema):
        stages = pc.struct_field(table.column(field.name), STAGE_SHA256)
        table = table.filter(pc.fill_null(pc.not_equal(stages, column.sha256), True))
    return set(table.column("ordinal").to_pylist())


def list_column(dataset: Location, stage: StageConfig, select: str | None = None) -> ColumnList:
    """List what `apply_column` would do. Raises the same errors as `apply_column` before it changes anything."""
    return _plan(DatasetHandle.open(dataset), column_of(stage.load()), select).listed


def apply_column(
    dataset: Location,
    stage: StageConfig,
    select: str | None = None,
    confirm: Callable[[ColumnList], None] | None = None,
    now: datetime | None = None,
    resources: ResourcesConfig = LOCAL,
    stall_timeout: float = STALL_TIMEOUT_S,
    open_run: OpenRun = stage_run,
) -> ColumnResult:
    """Add a stage's column to a dataset, or fill in the rows that the stage hasn't judged yet.

    If the stage rejects an image, fails, or kills its worker, the image keeps its place in the dataset, and its value
    stays null. The other arguments are as in `apply_masks`.

    Raises `UsageError` before any change if the stage adds no column, if the dataset has another column of its name, or
    if the stage fails on a control image.
    """
    handle = begin(dataset)
    spec = stage.load()
    column = column_of(spec)
    plan = _plan(handle, column, select)
    listed, committed = plan.listed, frozenset(handle.commits.committed())
    if not plan.chosen and check_column(handle.manifest(), column) and not is_unfinished(handle, committed):
        return ColumnResult(listed, (), name_now(handle.location))
    confirm_changes(handle, listed, confirm)
    written = []
    if plan.chosen:
        seen = replace(handle, stages=handle.manifest().columns)
        write = WriteColumn(handle, column)
        with open_run(seen, custom_stage(stage, spec), write, resources, stall_timeout) as run:
            run.try_control()
            put_column(handle, column)
            written = list(run.over(plan.chosen))
    put_column(handle, column)
    lines = [line for each in written for line in each.not_judged]
    judged = sum(each.judged for each in written)
    reason = f"{column.arrow_field.name}: {column.stage}, version {column.version}, {counted(judged, 'image')}"
    shards = tuple(sorted({each.shard for each in written if each.changed}))
    clean_up(handle, committed, {})
    version, outputs = record_version(handle, "apply", reason, now)
    return ColumnResult(listed, shards, version, judged, len(lines), tuple(lines[:SHOWN]), outputs)


def list_removal(dataset: Location, stage: str) -> ColumnList:
    """List what `remove_column` would do. Raises the same errors as `remove_column` before it changes anything."""
    handle = DatasetHandle.open(dataset)
    return _plan(handle, applied_by(handle.manifest(), stage), removes=True).listed


def remove_column(
    dataset: Location,
    stage: str,
    confirm: Callable[[ColumnList], None] | None = None,
    now: datetime | None = None,
    resources: ResourcesConfig = LOCAL,
) -> ColumnResult:
    """Remove the column that the stage with this dotted name added. The other arguments are as in `apply_column`.

    Raises `UsageError` before any change if `apply` added no column of this stage.
    """
    handle = begin(dataset)
    column = applied_by(handle.manifest(), stage)
    listed = _plan(handle, column, removes=True).listed
    committed = frozenset(handle.commits.committed())
    if column.removed and not listed.shards and not is_unfinished(handle, committed):
        return ColumnResult(listed, (), name_now(handle.location))
    confirm_changes(handle, listed, confirm)
    put_removal(handle, column)
    without = partial(without_column, column.name)
    revision = Revision(committed, _unchanged, only=column.table, columns=without)
    outcome = revise(handle, revision, resources)
    version, outputs = record_version(handle, "apply", f"{column.arrow_field.name} removed", now)
    return ColumnResult(listed, tuple(outcome.changed), version, outputs=outputs)


def applied_by(manifest: DatasetManifest, stage: str) -> AppliedColumn:
    """Return the column that a stage added. If it was removed, a shard may still contain it after an interruption."""
    found = [column for column in manifest.applied_columns if column.stage == stage]
    found.sort(key=lambda column: not column.removed)
    if not found:
        known = ", ".join(sorted({column.stage for column in manifest.applied_columns if not column.removed})) or "none"
        raise UsageError(f"`segmint apply` added no column of the stage {stage}; stages with a column: {known}")
    return found[-1]


def _unchanged(_: Commit, rows: Sequence[Row]) -> Sequence[Row]:
    return rows


@dataclass(frozen=True)
class _ColumnPlan:
    listed: ColumnList
    chosen: tuple[ChosenImages, ...]


def _plan(
    dataset: DatasetHandle, column: AppliedColumn, select: str | None = None, *, removes: bool = False
) -> _ColumnPlan:
    """Look at the column's table in every committed shard."""
    manifest = dataset.manifest()
    if not removes:
        check_column(manifest, column)
    wanted = None
    if select is not None:
        wanted = frozenset((choose_images(dataset.location, select).ids - 1).tolist())

    def look(shard: int) -> tuple[ChosenImages, int] | None:
        return with_latest_commit(dataset.location, shard, partial(_look, dataset.location, column, wanted, removes))

    committed = sorted(dataset.commits.committed())
    looks = map_ahead(look, committed, _THREADS, 2 * _THREADS, "apply")
    found = [each for each in track(looks, "shards", len(committed)) if each is not None]
    listed = ColumnList(
        dataset=str(dataset),
        name=manifest.name,
        column=column.arrow_field.name,
        table=column.table,
        removes=removes,
        images=sum(len(chosen.ordinals) for chosen, _ in found),
        shards=tuple(chosen.shard for chosen, bytes in found if bytes),
        bytes=sum(bytes for _, bytes in found),
    )
    return _ColumnPlan(listed, tuple(chosen for chosen, _ in found if chosen.ordinals))


def _look(
    dataset: Location, column: AppliedColumn, wanted: frozenset[int] | None, removes: bool, commit: Commit
) -> tuple[ChosenImages, int]:
    """Return a shard's images to judge, or with values to remove, and the size of the table if it's rewritten."""
    entry = commit.file(column.table)
    table = read_table(read_file(dataset, entry), column.table)
    if removes:
        is_there = column.arrow_field in list(table.schema)
        rows = table.filter(pc.is_valid(table.column(column.arrow_field.name))) if is_there else table.slice(0, 0)
        ordinals = set(rows.column("ordinal").to_pylist())
    else:
        ordinals = unjudged(table, column)
        if wanted is not None:
            ordinals &= wanted
        is_there = bool(ordinals)
    return ChosenImages(commit.shard, tuple(sorted(ordinals))), entry.size if is_there else 0


@dataclass(frozen=True)
class JudgedImage:
    """Values that a stage computed for an image, or for each of its masks by number and run lengths."""

    release_sha256: str  # of the JPEG that the stage saw
    value: Row | None = None
    of_masks: Mapping[tuple[int, str], Row] = field(default_factory=dict)


@dataclass(frozen=True)
class ColumnChange:
    """Change to a table's rows: set the values of a column.

    Values are only set if the image still has the JPEG, and the mask the run lengths, that the stage saw. Values that
    another stage computed become null.
    """

    dataset: Location
    column: AppliedColumn
    images: Mapping[int, JudgedImage]  # by ordinal

    def __call__(self, commit: Commit, rows: Sequence[Row]) -> Sequence[Row]:
        jpegs = {row["ordinal"]: row["release_sha256"] for row in self._images(commit, rows)}
        name, after = self.column.arrow_field.name, []
        for row in rows:
            before = row.get(name)
            now = before if before is not None and before.get(STAGE_SHA256) == self.column.sha256 else None
            judged = self.images.get(row["ordinal"])
            if judged is not None and judged.release_sha256 == jpegs.get(row["ordinal"]):
                now = self._value(judged, row) or now
            after.append(row if now == before else {**row, name: now})
        return after

    def _images(self, commit: Commit, rows: Sequence[Row]) -> Sequence[Row]:
        if self.column.table == "images":
            return rows
        table = read_table(read_file(self.dataset, commit.file("images")), "images")
        images: list[Row] = table.select(["ordinal", "release_sha256"]).to_pylist()
        return images

    def _value(self, judged: JudgedImage, row: Row) -> Row | None:
        if self.column.table == "images":
            return judged.value
        number = row["annotation_id"] - row["id"] * MASKS_PER_IMAGE_LIMIT
        return judged.of_masks.get((number, row["segmentation"]["counts"]))

    def columns(self, found: tuple[StageColumn, ...]) -> tuple[StageColumn, ...]:
        """Return a table's columns of stages with this one, unless it was removed in the meantime."""
        if not check_column(DatasetHandle.open(self.dataset).manifest(), self.column):
            raise UsageError(f"stage_{self.column.name} was removed in the meantime")
        return (
            *without_column(self.column.name, found),
            StageColumn.of_field(self.column.table, self.column.arrow_field),
        )


def without_column(name: str, found: tuple[StageColumn, ...]) -> tuple[StageColumn, ...]:
    """Return a table's columns of stages without the one with this name."""
    return tuple(each for each in found if each.name != name)


@dataclass(frozen=True)
class WrittenColumn:
    """Result of writing a column's values in one shard."""

    shard: int
    changed: bool
    judged: int
    not_judged: tuple[str, ...]  # one line per image


@dataclass(frozen=True)
class WriteColumn:
    """Task that writes the values of a stage, whose results are rows with the stage's column and verdicts."""

    dataset: DatasetHandle
    column: AppliedColumn

    def __call__(self, chosen: ChosenImages, results: pa.Table) -> WrittenColumn:
        """Write the values of one shard. Rows with a verdict or a fault have none."""
        images, failed = dict[int, JudgedImage](), list[str]()
        for row in results.to_pylist():
            if row["fault"] is not None or row["stage"] == self.column.arrow_field.name:
                failed.append(f"{image_stem(row['id'])}: {row['fault'] or row['detail']}")
            elif row["reason"] is None:
                images[row["ordinal"]] = self._judged(row)
        change = ColumnChange(self.dataset.location, self.column, images)
        revision = Revision(frozenset([chosen.shard]), change, only=self.column.table, columns=change.columns)
        revised = revise_one(self.dataset, chosen.shard, revision) if images else None
        changed = revised is not None and revised.changed
        return WrittenColumn(chosen.shard, changed, len(images), tuple(failed))

    def _judged(self, row: Row) -> JudgedImage:
        name = self.column.arrow_field.name
        if self.column.table == "images":
            return JudgedImage(row["release_sha256"], self._value(row[name]))
        of_masks = {}
        for position, mask in enumerate(row["masks"]):
            of_masks[mask_index(mask, position), mask["segmentation"]["counts"]] = self._value(mask[name])
        return JudgedImage(row["release_sha256"], of_masks=of_masks)

    def _value(self, value: Row | None) -> Row:
        return {**(value or {}), STAGE_SHA256: self.column.sha256}
