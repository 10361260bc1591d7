"""`segmint label`: label the masks that no person has labeled, or remove the labels that models set.

Labels only occur in the masks tables, not in the JSON in tars, so only these tables change.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.handle import DatasetHandle
from segmint.catalogs.dataset.mask_labels import MASK_LABEL, MODEL, is_of_model, may_label
from segmint.catalogs.layout import image_name
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.wording import counted
from segmint.operators.custom.contract import StageRow
from segmint.operators.custom.load import StageSpec
from segmint.operators.rows import Row
from segmint.operators.shards.committed_rows import read_file, read_table, tar_members
from segmint.pipeline.config.config import LOCAL, ResourcesConfig
from segmint.pipeline.corrections.correction import begin
from segmint.pipeline.corrections.mask_revision import (
    RevisionCounts,
    RevisionList,
    RevisionPlan,
    RevisionResult,
    correct_masks,
    look_at_shards,
    planned,
)


@dataclass(frozen=True, kw_only=True)
class LabelList(RevisionList):
    """List of the labels that would be set or removed. `masks` counts these labels and the labels that are `kept`."""

    would_change = "labels of {} of {} would change"
    labeler: str  # the stage's name in the version, or "" to remove labels
    sha256: str  # the stage's version, or ""

    def reason(self) -> str:
        """Return the reason that the version records."""
        what = f"{self.labeler}, SHA-256 {self.sha256[:12]}" if self.labeler else "labels of models removed"
        changed = self.counted_masks("labeled" if self.labeler else "removed") or "no mask"
        return f"{what}: {changed} in {counted(self.images, 'image')}"


@dataclass(frozen=True)
class LabelResult(RevisionResult[LabelList]):
    """Result of labeling."""

    nothing = "no label to change in {}"


def list_labels(dataset: Location, stage: StageSpec | None) -> LabelList:
    """List the changes that `label` would make. Raises the same errors as `label` before it changes anything."""
    return _plan(DatasetHandle.open(dataset), stage).listed


def label(
    dataset: Location,
    stage: StageSpec | None,
    confirm: Callable[[LabelList], None] | None = None,
    now: datetime | None = None,
    resources: ResourcesConfig = LOCAL,
) -> LabelResult:
    """Label masks with a model, or remove all labels that models set.

    `stage` must behave like `MaskLabels`, because this function doesn't check the stage's results. If `stage` is None,
    the labels are removed. Only masks without a label, or with a label from another model, are labeled, so repeating an
    interrupted call completes it. If a masks table contained no labels of models before labeling, removing the labels
    restores the table's original bytes. The other arguments are as in `correct_masks`.

    Raises `UsageError` if the dataset has no images, and `StageContractError` if a worker can't start the same stage.
    """
    handle = begin(dataset)
    plan = _plan(handle, stage)
    on_ray = stage is None or stage.arguments.get("device", "cpu") == "cpu"
    return correct_masks(
        handle, "label", plan, LabelResult, confirm, now, only="masks", on_ray=on_ray, resources=resources
    )


@dataclass(frozen=True)
class LabelChange:
    """Change to a shard's masks: set the labels of a stage, or remove the labels that models set."""

    dataset: Location
    stage: StageSpec | None

    def __call__(self, commit: Commit, rows: Sequence[Row]) -> Sequence[Row]:
        """Return the next rows of the masks table. Rows that don't change are the same objects."""
        after = list(rows)
        for place, columns in self._columns(commit, self.changing(rows)):
            after[place] = {**rows[place], **columns}
        return after

    def changing(self, rows: Iterable[Row]) -> dict[int, list[tuple[int, Row]]]:
        """Return the masks to change, each with its position in the table, grouped by image number."""
        found: dict[int, list[tuple[int, Row]]] = {}
        for place, row in enumerate(rows):
            source = None if self.stage is None else f"{MODEL}{self.stage.version}"
            if is_of_model(row["label_source"]) if source is None else may_label(row, source):
                found.setdefault(row["id"], []).append((place, row))
        return found

    def _columns(self, commit: Commit, images: dict[int, list[tuple[int, Row]]]) -> Iterator[tuple[int, Row]]:
        """Yield the position of each mask that changes, with the new values of its label columns."""
        if self.stage is None:
            for masks in images.values():
                yield from ((place, dict.fromkeys(MASK_LABEL)) for place, _ in masks)
            return
        names = {image_name(image) for image in images}
        members = tar_members(read_file(self.dataset, commit.file("shards"))) if images else ()
        jpegs = {name: data for name, data in members if name in names}
        for image, masks in images.items():
            row = StageRow({"id": image, "release": jpegs[image_name(image)], "masks": [mask for _, mask in masks]})
            (labeled,) = _started(self.stage)([row])
            for (place, _), value in zip(masks, labeled.mask_values, strict=True):
                yield place, {name: value[name] for name in MASK_LABEL}


_STARTED: list[tuple[StageSpec, Any]] = []


def _started(stage: StageSpec) -> Any:
    """Return a stage's callable. Each process starts a stage only once."""
    for known, call in _STARTED:
        if known == stage:
            return call
    _STARTED.append((stage, stage.start()))
    return _STARTED[-1][1]


def _plan(dataset: DatasetHandle, stage: StageSpec | None) -> RevisionPlan[LabelList]:
    if stage is not None and not dataset.with_images:
        raise UsageError(f"{dataset} only contains annotations, so there are no images to label")
    change, total = LabelChange(dataset.location, stage), RevisionCounts()
    committed = frozenset(dataset.commits.committed())
    nothing: list[int] = []
    shards = ((shard, nothing) for shard in sorted(committed))
    looked = look_at_shards(dataset.location, shards, total, partial(_count, dataset.location, change))
    labeler, sha256 = ("", "") if stage is None else (stage.name, stage.version)
    kinds = ("removed",) if stage is None else ("labeled", "kept")
    return planned(LabelList, dataset, committed, change, total, looked, kinds, labeler=labeler, sha256=sha256)


def _count(dataset: Location, change: LabelChange, commit: Commit, _: Any) -> RevisionCounts:
    """Count the labels that would change in a shard."""
    table = read_table(read_file(dataset, commit.file("masks")), "masks")
    images = change.changing(table.select(["id", "label", "label_source"]).to_pylist())
    counts = RevisionCounts(images=len(images))
    labels = sum(map(len, images.values()))
    counts.masks.update({"removed" if change.stage is None else "labeled": labels})
    if change.stage is not None:
        counts.masks.update(kept=table.num_rows - labels)
    return counts
