"""Masks of another segmenter over a finished dataset: `segmint apply --masks`.

Change to an image's row for `segmint apply`: new masks replace the automatic masks, or are added to them.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import partial
from typing import Any

import pyarrow as pa

from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.manifest import AppliedSegmenter, DatasetHandle, DatasetManifest, put_manifest
from segmint.catalogs.dataset.subsets import choose_images
from segmint.catalogs.findings import Reason
from segmint.catalogs.layout import SCHEMA_VERSION, DamagedDatasetError
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.wording import listed, size
from segmint.operators.rows import AUTOMATIC, IMPORT, MASKS_PER_IMAGE_LIMIT, PERSON, Row
from segmint.operators.shards.put import counts_of
from segmint.operators.shards.revise import read_shard_table
from segmint.pipeline.config.config import LOCAL, Config, ResourcesConfig, SegmenterConfig
from segmint.pipeline.corrections.apply.engine import (
    STALL_TIMEOUT_S,
    AppliedShard,
    ApplyCounts,
    ChosenImages,
    FindStage,
    Run,
    apply_stage,
    own_segmenter,
    results_of,
    run_on_ray,
    sam,
)
from segmint.pipeline.corrections.correction import Revision, begin, revise_one
from segmint.pipeline.corrections.import_merge import changed_masks, numbered_masks
from segmint.pipeline.corrections.mask_revision import RevisionList, RevisionResult, look_at_all, planned


class MasksMode(StrEnum):
    """What happens to the automatic masks of an image that gets new ones."""

    REPLACE = "replace"
    ADD = "add"


def is_untouched(mask: Mapping[str, Any]) -> bool:
    """Return whether a mask is automatic, and no person or import has labeled it. `apply` may only remove such masks.

    `mask` contains the columns `source`, `annotator`, and `label_source`.
    """
    by_people = mask["annotator"] is not None or mask["label_source"] in (PERSON, IMPORT)
    return bool(mask["source"] == AUTOMATIC) and not by_people


def is_replaced(mask: Mapping[str, Any], model: str, mode: MasksMode) -> bool:
    """Return whether the masks of the segmenter `model` replace this one. They always replace its own earlier masks."""
    return is_untouched(mask) and (mode is MasksMode.REPLACE or mask["model"] == model)


def is_done(image: Mapping[str, Any], masks: Sequence[Mapping[str, Any]], model: str, mode: MasksMode) -> bool:
    """Return whether an image needs no run of the segmenter `model`: it had one, and no other masks are to be replaced.

    `image` contains the columns `masks_model` and `complete`. If a person confirmed that no mask is missing, nothing is
    to be done either.
    """
    if image["complete"]:
        return True
    others = (mask for mask in masks if mask["model"] != model)
    return bool(image["masks_model"] == model) and not any(is_replaced(mask, model, mode) for mask in others)


class NotAppliedError(Exception):
    """Raised if an image can't get the new masks. The message is the reason."""


def with_found_masks(row: Row, found: Row, model: str, mode: MasksMode) -> Row:
    """Return a described row with the masks that the segmenter `model` found, numbered from `next_mask`.

    `found` is a described row of the same image: its `masks` are the new ones, and `release_sha256` names the JPEG in
    which they were found. A new mask that equals a remaining one pixel for pixel is left out. If the image was
    rejected, taken down, or is done already, the same object is returned.

    Raises `NotAppliedError` if the image's JPEG is another one by now, or if there are too few numbers. Raises
    `DamagedDatasetError` if the row's masks are damaged.
    """
    if row["reason"] is not None or is_done(row, row["masks"], model, mode):
        return row
    if row["release_sha256"] != found["release_sha256"]:
        raise NotAppliedError("it was redacted in the meantime")
    kept = [mask for mask in numbered_masks(row) if not is_replaced(mask, model, mode)]
    there = {counts_of(mask) for mask in kept}
    first = int(row["next_mask"])
    new: list[Row] = []
    for mask in found["masks"]:
        if counts_of(mask) not in there:
            new.append({**mask, "index": first + len(new), "model": model})
    if first + len(new) > MASKS_PER_IMAGE_LIMIT:
        raise NotAppliedError(f"{Reason.TOO_MANY_MASKS}: {len(new):,} new masks from number {first:,}")
    return {
        **row,
        **changed_masks(row, [*kept, *new]),
        "next_mask": first + len(new),
        "masks_model": model,
    }


_OF_MASKS = ("ordinal", "source", "annotator", "label_source", "model")
_OF_IMAGES = ("ordinal", "masks_model", "complete")
_KINDS = ("shards", "images", "masks", "rejects")


@dataclass(frozen=True, kw_only=True)
class ApplyList(RevisionList):
    """List of the changes that `apply` would make, or made. `masks` counts masks by outcome."""

    would_change = "masks of {} of {} would change"
    nothing = "no image of {} needs this run"
    segmenter: str  # its name
    sha256: str  # of its identity: the column `model` of its masks
    mode: str
    bytes: Mapping[str, int]  # bytes of the files to rewrite, by folder, because tars contain the masks

    def found(self) -> list[str]:
        sizes = listed(f"{size(self.bytes[kind])} in {kind}" for kind in self.bytes)
        rewritten = [f"rewritten: {size(sum(self.bytes.values()))}: {sizes}"] if self.images else []
        return [*super().found(), *rewritten, *self.skipped_lines(), *self.example_lines()]

    def reason(self) -> str:
        return f"{self.segmenter}, SHA-256 {self.sha256[:12]}, --masks {self.mode}"


def list_masks(
    dataset: Location, segmenter: SegmenterConfig | Config, mode: MasksMode, select: str | None = None
) -> ApplyList:
    """List the changes that `apply_masks` would make. Raises the same errors before it changes anything."""
    handle = DatasetHandle.open(dataset)
    return _plan(handle, _maker(handle, segmenter)[0], mode, select)[0]


def apply_masks(
    dataset: Location,
    segmenter: SegmenterConfig | Config,
    mode: MasksMode,
    select: str | None = None,
    confirm: Callable[[ApplyList], None] | None = None,
    now: datetime | None = None,
    resources: ResourcesConfig = LOCAL,
    stall_timeout: float = STALL_TIMEOUT_S,
    run: Run = run_on_ray,
) -> RevisionResult[ApplyList]:
    """Make masks in the released images of a finished dataset, in place of its automatic masks or beside them.

    `segmenter` is a user's segmenter, or a configuration whose SAM makes the masks. Masks that people or imports made,
    changed, or labeled stay as they are, and so do images of which a person confirmed that no mask is missing. `select`
    is as in `choose_images`. An image that fails keeps its masks and doesn't stop the others. An interrupted call is
    continued by the same call, which only processes images that the segmenter hasn't been applied to yet.

    Raises `UsageError` if the dataset or the segmenter doesn't fit, or if it fails on a control image. Until then,
    nothing is changed. Raises `UnfinishedError` if Ray fails.
    """
    handle = begin(dataset)
    applied, find_stage = _maker(handle, segmenter)
    found, images = _plan(handle, applied, mode, select)
    write = partial(write_masks, handle, applied.sha256, mode)
    put = partial(change_manifest, handle, partial(_with_segmenter, segmenter=applied))
    results = run(handle, find_stage, write, images, put, resources, stall_timeout)
    return apply_stage(handle, "apply", found, images, results, confirm, now)


def change_manifest(dataset: DatasetHandle, change: Callable[[DatasetManifest], DatasetManifest]) -> None:
    """Put the changed manifest as the dataset's next generation, unless `change` returns an equal one."""
    while True:
        manifest, generation = dataset.latest()
        changed = change(manifest)
        if changed == manifest or put_manifest(dataset.location, changed, generation + 1):
            return


def _with_segmenter(manifest: DatasetManifest, segmenter: AppliedSegmenter) -> DatasetManifest:
    applied = dict(sorted({**manifest.applied, segmenter.sha256: segmenter}.items()))
    return manifest.model_copy(update={"applied": applied})


def write_masks(
    dataset: DatasetHandle, model: str, mode: MasksMode, images: ChosenImages, table: pa.Table
) -> AppliedShard:
    """Commit a shard's new masks as its next generation. Images without a result keep their masks.

    See `segmint.pipeline.corrections.apply.engine.Write`.
    """
    done, found = results_of(images, table)
    unmade = done.failed

    def change(_: Commit, rows: Sequence[Row]) -> Sequence[Row]:
        done.masks = Counter()
        done.failed = dict(unmade)
        after = []
        for row in rows:
            new = row
            if row["ordinal"] in found:
                try:
                    new = with_found_masks(row, found[row["ordinal"]], model, mode)
                except (NotAppliedError, DamagedDatasetError) as error:
                    done.failed[row["id"]] = str(error)
            if new is not row:
                made = new["next_mask"] - row["next_mask"]
                kept = len(new["masks"]) - made
                done.masks.update(new=made, replaced=len(row["masks"]) - kept, kept=kept)
            after.append(new)
        return after

    revised = revise_one(dataset, images.shard, Revision(frozenset({images.shard}), change)) if found else None
    if revised is not None:
        done.images = revised.rows
    return done


def _maker(dataset: DatasetHandle, segmenter: SegmenterConfig | Config) -> tuple[AppliedSegmenter, FindStage]:
    """Return the segmenter, and the stage that runs it. Raises `UsageError` if it doesn't fit the dataset."""
    if not dataset.with_images:
        raise UsageError(f"{dataset} only contains annotations, so there are no images to find masks in")
    if dataset.schema_version != SCHEMA_VERSION:
        raise UsageError(
            f"{dataset} has schema_version {dataset.schema_version}, which can't name the segmenter of a mask: build "
            "it again to apply one"
        )
    manifest = dataset.manifest()
    if isinstance(segmenter, SegmenterConfig):
        return own_segmenter(segmenter, manifest)
    return sam(segmenter, manifest)


def _plan(
    dataset: DatasetHandle, segmenter: AppliedSegmenter, mode: MasksMode, select: str | None
) -> tuple[ApplyList, list[ChosenImages]]:
    """Return the planned changes, and the images to process."""
    model = segmenter.sha256
    count = partial(_count, dataset.location, model, mode, selected(dataset, select))
    total = look_at_all(dataset, ApplyCounts(), count)
    found = planned(
        ApplyList,
        dataset,
        total,
        ("replaced", "kept"),
        segmenter=segmenter.name,
        sha256=model,
        mode=str(mode),
        bytes={kind: total.bytes[kind] for kind in _KINDS},
    )
    return found, total.chosen


def selected(dataset: DatasetHandle, select: str | None) -> frozenset[int] | None:
    """Return the ordinals of the images that `select` selects, as in `choose_images`, or None for all images."""
    return None if select is None else frozenset((choose_images(dataset.location, select).ids - 1).tolist())


def _count(
    dataset: Location, model: str, mode: MasksMode, wanted: frozenset[int] | None, commit: Commit
) -> ApplyCounts:
    """Count the images of a shard that need the segmenter, and their masks."""
    of_image: dict[int, list[Row]] = {}
    for mask in _columns(dataset, commit, "masks", _OF_MASKS):
        of_image.setdefault(mask["ordinal"], []).append(mask)
    counts = ApplyCounts()
    ordinals: list[int] = []
    for image in _columns(dataset, commit, "images", _OF_IMAGES):
        ordinal = image["ordinal"]
        masks = of_image.get(ordinal, [])
        if (wanted is not None and ordinal not in wanted) or is_done(image, masks, model, mode):
            continue
        ordinals.append(ordinal)
        replaced = sum(is_replaced(mask, model, mode) for mask in masks)
        counts.masks.update(replaced=replaced, kept=len(masks) - replaced)
    counts.choose(commit, ordinals, _KINDS)
    return counts


def _columns(dataset: Location, commit: Commit, kind: str, names: Sequence[str]) -> list[Row]:
    rows: list[Row] = read_shard_table(dataset, commit, kind).select(list(names)).to_pylist()
    return rows
