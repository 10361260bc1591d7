"""`segmint apply --stage`: add a stage's column to a finished dataset, fill in its missing rows, or remove the column.

Only the table with the column is rewritten; the tars keep their bytes. The manifest's next generation lists the column
before any shard contains it. A row is done if its value names the stage that computed it, so repeating the command only
judges the remaining rows: those of shards that are new or weren't reached, and of images that were redacted since.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.handle import DatasetHandle
from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.dataset.subsets import choose_images
from segmint.catalogs.layout import SCHEMA_VERSION
from segmint.catalogs.stages import STAGE_SHA256, AppliedColumn, StageField, TableColumn
from segmint.infra.errors import UsageError
from segmint.infra.progress import track
from segmint.infra.storage.location import Location
from segmint.infra.wording import size
from segmint.operators.custom.load import StageSpec
from segmint.operators.rows import Row
from segmint.operators.shards.committed_rows import read_file, read_table
from segmint.operators.shards.files import annotation_id, mask_index
from segmint.operators.shards.revise import with_latest_commit
from segmint.pipeline.config.config import LOCAL, ResourcesConfig, StageConfig
from segmint.pipeline.corrections.apply.engine import STALL_TIMEOUT_S, ChosenImages, stage_run
from segmint.pipeline.corrections.apply.makers import custom_stage
from segmint.pipeline.corrections.apply.masks import (
    AppliedShard,
    ApplyResult,
    OpenRun,
    change_manifest,
    results_of,
    run_stage,
)
from segmint.pipeline.corrections.correction import Revision, begin, revise_one
from segmint.pipeline.corrections.mask_revision import RevisionList, RevisionPlan, RevisionResult, correct_masks


@dataclass(frozen=True, kw_only=True)
class ColumnList(RevisionList):
    """List of the images that a stage would judge or did judge, or that lose the column."""

    would_change: ClassVar[str] = "a column of {} of {} would change"
    column: str
    version: str  # of the stage, or "removed"
    bytes: int  # size of the tables to rewrite

    def found(self) -> list[str]:
        rewritten = [f"rewritten: {size(self.bytes)} of Parquet; tars keep their bytes"] if self.images else []
        return [*rewritten, *self.skipped_lines(), *self.example_lines()]

    def reason(self) -> str:
        return f"{self.column}: {self.version}"


@dataclass(frozen=True)
class RemovalResult(RevisionResult[ColumnList]):
    """Result of removing a column."""

    nothing: ClassVar[str] = "no shard of {} has the column"


def column_of(spec: StageSpec) -> AppliedColumn:
    """Return the column that a stage adds to a finished dataset. Raise `UsageError` if the stage can't add one."""
    if spec.column is None or spec.labels or any(each.name == STAGE_SHA256 for each in spec.column.fields):
        expected = f"expected a stage with fields, none of them {STAGE_SHA256}, that sets no labels"
        raise UsageError(f"the stage {spec.stage} has no column to add: {expected}")
    return AppliedColumn(
        name=spec.name,
        table=spec.column.table,
        fields=(*spec.column.fields, StageField(name=STAGE_SHA256, type="string")),
        stage=spec.stage,
        version=spec.version,
        arguments=dict(spec.arguments),
        sha256=spec.sha256,
    )


def list_column(dataset: Location, stage: StageConfig, select: str | None = None) -> ColumnList:
    """List what `apply_column` would do. Raises the same errors as `apply_column` before it changes anything."""
    return _plan(DatasetHandle.open(dataset), column_of(stage.load()), select)[0]


def apply_column(
    dataset: Location,
    stage: StageConfig,
    select: str | None = None,
    confirm: Callable[[ColumnList], None] | None = None,
    now: datetime | None = None,
    resources: ResourcesConfig = LOCAL,
    stall_timeout: float = STALL_TIMEOUT_S,
    open_run: OpenRun = stage_run,
) -> ApplyResult[ColumnList]:
    """Add a stage's column to a dataset, or fill in the rows that the stage hasn't judged yet.

    If the stage rejects an image, fails, or kills its worker, the image keeps its place in the dataset, and its value
    stays null. The other arguments are as in `apply_masks`.

    Raises `UsageError` before any change if the stage adds no column, if the dataset has another column of its name, or
    if the stage fails on a control image.
    """
    handle, spec = begin(dataset), stage.load()
    column = column_of(spec)
    listed, images = _plan(handle, column, select)
    seen = replace(handle, stages=handle.manifest().columns)

    def start() -> AbstractContextManager[Any]:
        return open_run(seen, custom_stage(stage, spec), ColumnWriter(handle, column), resources, stall_timeout)

    put = partial(change_manifest, handle, partial(with_column, column=column))
    return run_stage(handle, listed, images, start, put, confirm, now)


def list_removal(dataset: Location, stage: str) -> ColumnList:
    """List what `remove_column` would do. Raises the same errors as `remove_column` before it changes anything."""
    handle = DatasetHandle.open(dataset)
    return _plan(handle, applied_by(handle.manifest(), stage), removes=True)[0]


def remove_column(
    dataset: Location,
    stage: str,
    confirm: Callable[[ColumnList], None] | None = None,
    now: datetime | None = None,
    resources: ResourcesConfig = LOCAL,
) -> RemovalResult:
    """Remove the column that the stage with this dotted name added. The other arguments are as in `apply_column`.

    Raises `UsageError` before any change if `apply` added no column of this stage.
    """
    handle = begin(dataset)
    column = applied_by(handle.manifest(), stage)
    listed, _ = _plan(handle, column, removes=True)
    mark = partial(change_manifest, handle, partial(without_column, column=column))

    def confirmed(listed: ColumnList) -> None:
        if confirm is not None:
            confirm(listed)
        mark()

    if not listed.images:
        mark()
    plan = RevisionPlan(listed, frozenset(handle.commits.committed()), _unchanged, {})
    without = partial(_without, column.name)
    return correct_masks(
        handle, "apply", plan, RemovalResult, confirmed, now, only=column.table, columns=without, resources=resources
    )


def applied_by(manifest: DatasetManifest, stage: str) -> AppliedColumn:
    """Return the column that a stage added last, which may be removed in the manifest, but not in all shards yet."""
    found = [column for column in manifest.applied_columns if column.stage == stage]
    if not found:
        raise UsageError(f"`segmint apply` added no column of the stage {stage}")
    return found[-1]


def check_column(manifest: DatasetManifest, column: AppliedColumn) -> None:
    """Raise `UsageError` if a dataset can't get a column."""
    if manifest.schema_version != SCHEMA_VERSION:
        raise UsageError(f"a dataset of format {manifest.schema_version} can't get columns: build it again")
    for known in manifest.columns:
        if known.name == column.name and known != column:
            if not isinstance(known, AppliedColumn):
                raise UsageError(f"stage_{known.name} is a column of the dataset's build: give the stage another name")
            raise UsageError(
                f"stage_{known.name} was added by another version of {known.stage}, or with other arguments. To "
                f"compute it again, run `segmint apply … --stage {known.stage} --remove`, then this command"
            )


def with_column(manifest: DatasetManifest, column: AppliedColumn) -> DatasetManifest:
    """Return a manifest with this applied column."""
    check_column(manifest, column)
    if column in manifest.columns:
        return manifest
    return manifest.model_copy(update={"applied_columns": (*manifest.applied_columns, column)})


def without_column(manifest: DatasetManifest, column: AppliedColumn) -> DatasetManifest:
    """Return a manifest in which this applied column is marked as removed."""
    removed = column.model_copy(update={"removed": True})
    applied = tuple(removed if each == column else each for each in manifest.applied_columns)
    return manifest.model_copy(update={"applied_columns": applied})


def unjudged(table: pa.Table, column: AppliedColumn) -> set[int]:
    """Return the ordinals of images that the column's stage hasn't judged, from the column's table.

    Raises `UsageError` if the table still contains a removed column of the same name with other fields.
    """
    name = column.arrow_field.name
    if column.arrow_field in list(table.schema):
        other = pc.not_equal(pc.struct_field(table.column(name), STAGE_SHA256), column.sha256)
        table = table.filter(pc.fill_null(other, True))
    elif name in table.column_names:
        raise UsageError(f"{name} wasn't removed from all shards: repeat `segmint apply … --stage … --remove`")
    return set(table.column("ordinal").to_pylist())


@dataclass(frozen=True)
class ColumnChange:
    """Change to a table's rows: set the values of a column.

    `values` maps the key of a row to the SHA-256 of the JPEG that the stage saw, and the value. If the image has
    another JPEG by now, the value isn't set. Values that another stage computed become null.
    """

    dataset: Location
    column: AppliedColumn
    values: Mapping[Any, tuple[str, Row]]

    def __call__(self, commit: Commit, rows: Sequence[Row]) -> Sequence[Row]:
        images = rows
        if self.column.table == "masks":
            table = read_table(read_file(self.dataset, commit.file("images")), "images")
            images = table.select(["ordinal", "release_sha256"]).to_pylist()
        jpegs = {row["ordinal"]: row["release_sha256"] for row in images}
        name, after = self.column.arrow_field.name, []
        for row in rows:
            before = row.get(name)
            now = before if before is not None and before.get(STAGE_SHA256) == self.column.sha256 else None
            jpeg, value = self.values.get(_key(row), ("", None))
            if jpeg == jpegs[row["ordinal"]]:
                now = value
            after.append(row if now == before else {**row, name: now})
        return after

    def columns(self, found: tuple[TableColumn, ...]) -> tuple[TableColumn, ...]:
        """Return a table's columns of stages with this one, unless it was removed in the meantime."""
        if self.column not in DatasetHandle.open(self.dataset).manifest().columns:
            raise UsageError(f"stage_{self.column.name} was removed in the meantime")
        return (*_without(self.column.name, found), self.column.in_table)


def _key(row: Row) -> Any:
    """Return what identifies a row of `images`, or a mask with these pixels."""
    return (row["annotation_id"], row["segmentation"]["counts"]) if "annotation_id" in row else row["ordinal"]


def _without(name: str, found: tuple[TableColumn, ...]) -> tuple[TableColumn, ...]:
    return tuple(each for each in found if each.arrow_field.name != f"stage_{name}")


def _unchanged(_: Commit, rows: Sequence[Row]) -> Sequence[Row]:
    return rows


@dataclass(frozen=True)
class ColumnWriter:
    """Writer of a column's values in a shard; see `segmint.pipeline.corrections.apply.engine.Write`."""

    dataset: DatasetHandle
    column: AppliedColumn

    def __call__(self, images: ChosenImages, table: pa.Table) -> AppliedShard:
        """Commit the values as the shard's next generation. Images without a result have none."""
        found, failed = results_of(table)
        name, own = self.column.arrow_field.name, {STAGE_SHA256: self.column.sha256}
        values: dict[Any, tuple[str, Row]] = {}
        for row in found.values():
            rows = [row]
            if self.column.table == "masks":
                rows = []
                for position, mask in enumerate(row["masks"]):
                    rows.append({**mask, "annotation_id": annotation_id(row["id"], mask_index(mask, position))})
            for each in rows:
                values[_key(each)] = row["release_sha256"], {**(each[name] or {}), **own}
        change = ColumnChange(self.dataset.location, self.column, values)
        revision = Revision(frozenset({images.shard}), change, only=self.column.table, columns=change.columns)
        revised = revise_one(self.dataset, images.shard, revision) if found else None
        judged = len(found) if revised is not None and revised.changed else 0
        ids = tuple(ordinal + 1 for ordinal in images.ordinals)
        return AppliedShard(images.shard, ids, judged, Counter(), failed)


def _plan(
    dataset: DatasetHandle, column: AppliedColumn, select: str | None = None, *, removes: bool = False
) -> tuple[ColumnList, list[ChosenImages]]:
    """Return the planned changes, and the images to judge, or with the column to remove."""
    manifest = dataset.manifest()
    wanted = None
    if not removes:
        check_column(manifest, column)
    if select is not None:
        wanted = frozenset((choose_images(dataset.location, select).ids - 1).tolist())
    look = partial(_look, dataset.location, column, wanted, removes)
    images, total = list[ChosenImages](), 0
    for shard in track(sorted(dataset.commits.committed()), "shards"):
        ordinals, bytes = with_latest_commit(dataset.location, shard, look) or ((), 0)
        if ordinals:
            images.append(ChosenImages(shard, ordinals))
            total += bytes
    listed = ColumnList(
        dataset=str(dataset),
        name=manifest.name,
        images=sum(len(each.ordinals) for each in images),
        masks={},
        shards=tuple(each.shard for each in images),
        skipped_images={},
        examples=(),
        column=column.arrow_field.name,
        version="removed" if removes else f"{column.stage}, version {column.version}",
        bytes=total,
    )
    return listed, images


def _look(
    dataset: Location, column: AppliedColumn, wanted: frozenset[int] | None, removes: bool, commit: Commit
) -> tuple[tuple[int, ...], int]:
    """Return the ordinals of a shard's images to judge, or with the column, and the table's size if it's rewritten."""
    entry = commit.file(column.table)
    table = read_table(read_file(dataset, entry), column.table)
    if removes:
        there = column.arrow_field in list(table.schema)
        ordinals = set(table.column("ordinal").to_pylist()) if there else set()
    else:
        ordinals = unjudged(table, column)
    if wanted is not None:
        ordinals &= wanted
    return tuple(sorted(ordinals)), entry.size if ordinals else 0
