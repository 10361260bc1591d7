"""Values that stages compute in a finished dataset: new columns, and the labels of masks.

`segmint apply --stage`: add a stage's column to a finished dataset, fill in its missing rows, or remove the column.

Only the table with the column is rewritten; the tars keep their bytes. The manifest's next generation lists the column
before any shard contains it. A row is done if its value names the stage that computed it, so repeating the command only
judges the remaining rows: those of shards that are new or weren't reached, and of images that were redacted since.

`segmint label`: label the masks that no person has labeled, or remove the labels that models set.

Labels only occur in the masks tables, not in the JSON in tars, so only these tables change.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any, ClassVar, Self, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.manifest import DatasetHandle, DatasetManifest
from segmint.catalogs.dataset.mask_labels import MASK_LABEL, MODEL, is_of_model, may_label
from segmint.catalogs.layout import SCHEMA_VERSION
from segmint.catalogs.lineage import STAGE_SHA256, AppliedColumn, StageField, TableColumn
from segmint.infra.errors import UsageError
from segmint.infra.ray_session import Cluster
from segmint.infra.storage.location import Location
from segmint.infra.wording import counted, size
from segmint.operators.custom.contract import StageSpec
from segmint.operators.rows import Row
from segmint.operators.shards.put import OneTable, annotation_id, mask_index
from segmint.operators.shards.revise import ColumnChange, kept_columns, read_shard_table
from segmint.pipeline.config.config import LOCAL, ResourcesConfig, StageConfig, StagePoolConfig
from segmint.pipeline.corrections.apply.engine import (
    STALL_TIMEOUT_S,
    AppliedShard,
    AppliedStage,
    ApplyCounts,
    ChosenImages,
    Run,
    apply_stage,
    custom_stage,
    results_of,
    run_here,
    run_on_ray,
)
from segmint.pipeline.corrections.apply.masks import change_manifest, selected
from segmint.pipeline.corrections.correction import RAY_FROM_SHARDS, Revision, begin, revise_one
from segmint.pipeline.corrections.mask_revision import (
    RevisionCounts,
    RevisionList,
    RevisionPlan,
    RevisionResult,
    correct_masks,
    look_at_all,
    planned,
)


@dataclass(frozen=True, kw_only=True)
class ColumnList(RevisionList):
    """List of the images that a stage would judge or did judge."""

    would_change: ClassVar[str] = "a column of {} of {} would change"
    nothing: ClassVar[str] = "no image of {} needs this run"
    column: str
    version: str  # of the stage, or "removed"
    bytes: int  # size of the tables to rewrite

    def found(self) -> list[str]:
        rewritten = [f"rewritten: {size(self.bytes)} of Parquet; tars keep their bytes"] if self.images else []
        return [*rewritten, *self.skipped_lines(), *self.example_lines()]

    def reason(self) -> str:
        return f"{self.column}: {self.version}"


C = TypeVar("C", bound=ColumnList)


@dataclass(frozen=True, kw_only=True)
class RemovalList(ColumnList):
    """List of the images that lose a column."""

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
    return _plan_addition(DatasetHandle.open(dataset), column_of(stage.load()), select)[0]


def apply_column(
    dataset: Location,
    stage: StageConfig,
    select: str | None = None,
    confirm: Callable[[ColumnList], None] | None = None,
    now: datetime | None = None,
    resources: ResourcesConfig = LOCAL,
    stall_timeout: float = STALL_TIMEOUT_S,
    run: Run = run_on_ray,
) -> RevisionResult[ColumnList]:
    """Add a stage's column to a dataset, or fill in the rows that the stage hasn't judged yet.

    If the stage rejects an image, fails, or kills its worker, the image keeps its place in the dataset, and its value
    stays null. The other arguments are as in `apply_masks`.

    Raises `UsageError` before any change if the stage adds no column, if the dataset has another column of its name, or
    if the stage fails on a control image.
    """
    handle, spec = begin(dataset), stage.load()
    column = column_of(spec)
    listed, images = _plan_addition(handle, column, select)
    seen = replace(handle, stages=handle.manifest().columns)
    write = partial(write_column, handle, column)
    put = partial(change_manifest, handle, partial(with_column, column=column))
    results = run(seen, custom_stage(stage, spec), write, images, put, resources, stall_timeout)
    return apply_stage(handle, "apply", listed, images, results, confirm, now)


def list_removal(dataset: Location, stage: str) -> RemovalList:
    """List what `remove_column` would do. Raises the same errors as `remove_column` before it changes anything."""
    handle = DatasetHandle.open(dataset)
    return _plan_removal(handle, applied_by(handle.manifest(), stage))


def remove_column(
    dataset: Location,
    stage: str,
    confirm: Callable[[RemovalList], None] | None = None,
    now: datetime | None = None,
    resources: ResourcesConfig = LOCAL,
) -> RevisionResult[RemovalList]:
    """Remove the column that the stage with this dotted name added. The other arguments are as in `apply_column`.

    Raises `UsageError` before any change if `apply` added no column of this stage.
    """
    handle = begin(dataset)
    column = applied_by(handle.manifest(), stage)
    listed = _plan_removal(handle, column)
    mark = partial(change_manifest, handle, partial(without_column, column=column))

    def confirmed(listed: RemovalList) -> None:
        if confirm is not None:
            confirm(listed)
        mark()

    if not listed.images:
        mark()
    plan = RevisionPlan(listed, frozenset(handle.commits.committed()), _unchanged)
    without = partial(_without, column.name)
    return correct_masks(handle, "apply", plan, confirmed, now, only=column.table, columns=without, resources=resources)


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


def write_values(
    dataset: DatasetHandle,
    kind: OneTable,
    set_columns: Callable[[Row, Row | None], Row],
    images: ChosenImages,
    table: pa.Table,
    columns: ColumnChange = kept_columns,
) -> AppliedShard:
    """Commit what a stage returned for the rows of one table of a shard as the shard's next generation.

    `set_columns` maps a row to its columns that may change. It also gets the stage's result for the row, or None if
    there is no result, or if the image has another JPEG by now than the one that the stage saw. `columns` is as in
    `Revision`.
    """
    done, found = results_of(images, table)
    results: dict[Any, tuple[str, Row]] = {}
    for image in found.values():
        rows = [image]
        if kind == "masks":
            rows = []
            for position, mask in enumerate(image["masks"]):
                rows.append({**mask, "annotation_id": annotation_id(image["id"], mask_index(mask, position))})
        for row in rows:
            results[_key(row)] = image["release_sha256"], row
    changed: list[int] = []  # ordinals of rows with new values

    def change(commit: Commit, rows: Sequence[Row]) -> Sequence[Row]:
        changed.clear()
        seen = rows
        if kind == "masks":
            table_of_images = read_shard_table(dataset.location, commit, "images")
            seen = table_of_images.select(["ordinal", "release_sha256"]).to_pylist()
        jpegs = {row["ordinal"]: row["release_sha256"] for row in seen}
        after = []
        for row in rows:
            jpeg, result = results.get(_key(row), ("", None))
            if jpeg != jpegs[row["ordinal"]]:
                result = None
            values = set_columns(row, result)
            if all(row.get(name) == value for name, value in values.items()):
                after.append(row)
                continue
            after.append({**row, **values})
            if result is not None:
                changed.append(row["ordinal"])
        return after

    if found:
        revise_one(dataset, images.shard, Revision(frozenset({images.shard}), change, only=kind, columns=columns))
    done.rows, done.images = len(changed), len(set(changed))
    return done


def write_column(dataset: DatasetHandle, column: AppliedColumn, images: ChosenImages, table: pa.Table) -> AppliedShard:
    """Commit a column's values in a shard; see `segmint.pipeline.corrections.apply.engine.Write`.

    Images without a result have no value, and values that another stage computed become null.
    """
    name = column.arrow_field.name

    def set_column(row: Row, result: Row | None) -> Row:
        if result is not None:
            return {name: {**(result[name] or {}), STAGE_SHA256: column.sha256}}
        before = row.get(name)
        return {name: before if before is not None and before.get(STAGE_SHA256) == column.sha256 else None}

    columns = partial(with_applied, dataset.location, column)
    return write_values(dataset, column.table, set_column, images, table, columns)


def with_applied(dataset: Location, column: AppliedColumn, found: tuple[TableColumn, ...]) -> tuple[TableColumn, ...]:
    """Return a table's columns of stages with an applied one.

    Raises `UsageError` if the column was removed in the meantime.
    """
    if column not in DatasetHandle.open(dataset).manifest().columns:
        raise UsageError(f"stage_{column.name} was removed in the meantime")
    return (*_without(column.name, found), column.in_table)


def _key(row: Row) -> Any:
    """Return what identifies a row of `images`, or a mask with these pixels."""
    return (row["annotation_id"], row["segmentation"]["counts"]) if "annotation_id" in row else row["ordinal"]


def _without(name: str, found: tuple[TableColumn, ...]) -> tuple[TableColumn, ...]:
    return tuple(each for each in found if each.arrow_field.name != f"stage_{name}")


def _unchanged(_: Commit, rows: Sequence[Row]) -> Sequence[Row]:
    return rows


def _plan_addition(
    dataset: DatasetHandle, column: AppliedColumn, select: str | None
) -> tuple[ColumnList, list[ChosenImages]]:
    """Return the planned changes, and the images to judge."""
    check_column(dataset.manifest(), column)
    wanted = selected(dataset, select)

    def choose(table: pa.Table) -> set[int]:
        ordinals = unjudged(table, column)
        return ordinals if wanted is None else ordinals & wanted

    return _plan(ColumnList, dataset, column, f"{column.stage}, version {column.version}", choose)


def _plan_removal(dataset: DatasetHandle, column: AppliedColumn) -> RemovalList:
    def choose(table: pa.Table) -> set[int]:
        return set(table.column("ordinal").to_pylist()) if column.arrow_field in list(table.schema) else set()

    return _plan(RemovalList, dataset, column, "removed", choose)[0]


def _plan(
    list_class: type[C],
    dataset: DatasetHandle,
    column: AppliedColumn,
    version: str,
    choose: Callable[[pa.Table], set[int]],
) -> tuple[C, list[ChosenImages]]:
    """Return the planned changes, and the images that `choose` returns for each shard's table."""
    kind = column.table

    def count(commit: Commit) -> ApplyCounts:
        counts = ApplyCounts()
        counts.choose(commit, choose(read_shard_table(dataset.location, commit, kind)), [kind])
        return counts

    total = look_at_all(dataset, ApplyCounts(), count)
    name = column.arrow_field.name
    listed = planned(list_class, dataset, total, (), column=name, version=version, bytes=total.bytes[kind])
    return listed, total.chosen


_DAY_S = 86_400.0
"""Time limit per image and for a stalled run: a model on a CPU may take hours for an image with thousands of masks."""


@dataclass(frozen=True, kw_only=True)
class LabelList(RevisionList):
    """List of the labels that would be set or removed. `masks` counts these labels and the labels that are `kept`."""

    would_change = "labels of {} of {} would change"
    nothing = "no label to change in {}"
    labeler: str  # the stage's name in the version, or "" to remove labels
    sha256: str  # the stage's version, or ""

    def found(self) -> list[str]:
        return [*super().found(), *self.skipped_lines(), *self.example_lines()]

    def reason(self) -> str:
        """Return the reason that the version records."""
        what = f"{self.labeler}, SHA-256 {self.sha256[:12]}" if self.labeler else "labels of models removed"
        changed = self.counted_masks("labeled" if self.labeler else "removed") or "no mask"
        return f"{what}: {changed} in {counted(self.images, 'image')}"

    def done(self, counts: RevisionCounts) -> Self:
        masks = {**self.masks, "labeled": counts.masks["labeled"]}
        return replace(super().done(counts), masks=masks)


def list_labels(dataset: Location, stage: StageSpec | None) -> LabelList:
    """List the changes that `label` would make. Raises the same errors as `label` before it changes anything."""
    return _plan_labels(DatasetHandle.open(dataset), stage)[0]


def label(
    dataset: Location,
    stage: StageSpec | None,
    confirm: Callable[[LabelList], None] | None = None,
    now: datetime | None = None,
    resources: ResourcesConfig = LOCAL,
    ray_from: int = RAY_FROM_SHARDS,
) -> RevisionResult[LabelList]:
    """Label masks with a model, or remove all labels that models set.

    `stage` must behave like `MaskLabels`. If `stage` is None, the labels are removed. Only masks without a label, or
    with a label from another model, are labeled, so repeating an interrupted call completes it. An image that fails
    keeps its labels and doesn't stop the others. If a masks table contained no labels of models before labeling,
    removing the labels restores the table's original bytes.

    If at least `ray_from` shards change, the stage runs in actors on `resources`, unless it runs on a GPU. The other
    arguments are as in `correct_masks`.

    Raises `UsageError` if the dataset has no images, and `StageContractError` if a worker can't start the same stage.
    """
    handle = begin(dataset)
    listed, total = _plan_labels(handle, stage)
    if stage is None:
        committed = frozenset(handle.commits.committed())
        plan = RevisionPlan(listed, committed, without_model_labels, dict(total.inspected))
        return correct_masks(handle, "label", plan, confirm, now, only="masks", resources=resources)
    on_ray = len(listed.shards) >= ray_from and stage.arguments.get("device", "cpu") == "cpu"
    run = run_on_ray if on_ray else run_here
    write = partial(_write_labels, handle, f"{MODEL}{stage.version}")
    results = run(handle, lambda: partial(_labeler, stage), write, total.chosen, None, resources, _DAY_S)
    return apply_stage(handle, "label", listed, total.chosen, results, confirm, now)


def _labeler(stage: StageSpec, cluster: Cluster) -> AppliedStage:
    """Return the stage that labels masks, with as many actors as fit beside a reader and a writer."""
    actors = max(1, min(cluster.most_workers, int(cluster.cpus) - 2))
    resources = StagePoolConfig(actors=(1, actors), timeout_s=_DAY_S)
    config = StageConfig(stage=stage.stage, arguments=dict(stage.arguments), batch_size=1, resources=resources)
    return custom_stage(config, stage)()(cluster)


def _write_labels(dataset: DatasetHandle, source: str, images: ChosenImages, table: pa.Table) -> AppliedShard:
    """Commit the labels that the model `source` set in a shard. Labels that people set in the meantime stay."""

    def set_label(row: Row, result: Row | None) -> Row:
        if result is None or result["label_source"] != source or not may_label(row, source):
            return {}
        return {name: result[name] for name in MASK_LABEL}

    done = write_values(dataset, "masks", set_label, images, table)
    done.masks["labeled"] = done.rows
    return done


def without_model_labels(_: Commit, rows: Sequence[Row]) -> Sequence[Row]:
    """Return the rows of a masks table without the labels that models set. The other rows are the same objects."""
    empty: Row = dict.fromkeys(MASK_LABEL)
    return [{**row, **empty} if is_of_model(row["label_source"]) else row for row in rows]


def _plan_labels(dataset: DatasetHandle, stage: StageSpec | None) -> tuple[LabelList, ApplyCounts]:
    if stage is not None and not dataset.with_images:
        raise UsageError(f"{dataset} only contains annotations, so there are no images to label")
    total = look_at_all(dataset, ApplyCounts(), partial(_count, dataset.location, stage))
    if stage is None:
        return planned(LabelList, dataset, total, ["removed"], labeler="", sha256=""), total
    kinds = ["labeled", "kept"]
    return planned(LabelList, dataset, total, kinds, labeler=stage.name, sha256=stage.version), total


def _count(dataset: Location, stage: StageSpec | None, commit: Commit) -> ApplyCounts:
    """Count the labels that would change in a shard."""
    table = read_shard_table(dataset, commit, "masks")
    changing: list[int] = []  # ordinals of masks
    for mask in table.select(["ordinal", "label", "label_source"]).to_pylist():
        if stage is None:
            changes = is_of_model(mask["label_source"])
        else:
            changes = may_label(mask, f"{MODEL}{stage.version}")
        if changes:
            changing.append(mask["ordinal"])
    counts = ApplyCounts()
    counts.choose(commit, set(changing), ["masks"])
    counts.masks.update({"removed" if stage is None else "labeled": len(changing)})
    counts.masks.update(kept=table.num_rows - len(changing))
    return counts
