"""`segmint label`: label the masks that no person has labeled, or remove the labels that models set.

Labels only occur in the masks tables, not in the JSON in tars, so only these tables change.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Self

import pyarrow as pa

from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.handle import DatasetHandle
from segmint.catalogs.dataset.mask_labels import MASK_LABEL, MODEL, is_of_model, may_label
from segmint.infra.errors import UsageError
from segmint.infra.ray_session import Cluster
from segmint.infra.storage.location import Location
from segmint.infra.wording import counted
from segmint.operators.custom.load import StageSpec
from segmint.operators.rows import Row
from segmint.operators.shards.committed_rows import read_shard_table
from segmint.pipeline.config.config import LOCAL, ResourcesConfig, StageConfig, StagePoolConfig
from segmint.pipeline.corrections.apply.columns import write_values
from segmint.pipeline.corrections.apply.engine import (
    AppliedShard,
    AppliedStage,
    ApplyCounts,
    ChosenImages,
    apply_stage,
    run_here,
    run_on_ray,
)
from segmint.pipeline.corrections.apply.makers import custom_stage
from segmint.pipeline.corrections.correction import RAY_FROM_SHARDS, begin
from segmint.pipeline.corrections.mask_revision import (
    RevisionCounts,
    RevisionList,
    RevisionPlan,
    RevisionResult,
    correct_masks,
    look_at_all,
    planned,
)

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
    return _plan(DatasetHandle.open(dataset), stage)[0]


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
    listed, total = _plan(handle, stage)
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


def _plan(dataset: DatasetHandle, stage: StageSpec | None) -> tuple[LabelList, ApplyCounts]:
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
