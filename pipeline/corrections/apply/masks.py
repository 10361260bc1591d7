"""Masks of another segmenter over a finished dataset: `segmint apply --masks`."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any, ClassVar, TypeVar

import pyarrow as pa

from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.handle import DatasetHandle
from segmint.catalogs.dataset.manifest import AppliedSegmenter, DatasetManifest, put_manifest
from segmint.catalogs.dataset.subsets import choose_images
from segmint.catalogs.dataset.versions.record import name_now
from segmint.catalogs.layout import SCHEMA_VERSION, DamagedDatasetError
from segmint.catalogs.reasons import Reason
from segmint.infra.errors import UnfinishedError, UsageError
from segmint.infra.progress import track
from segmint.infra.storage.location import Location
from segmint.infra.wording import listed, size
from segmint.operators.rows import Row
from segmint.operators.shards.committed_rows import read_file, read_table
from segmint.operators.shards.write import iter_rows
from segmint.pipeline.config.config import LOCAL, Config, ResourcesConfig, SegmenterConfig
from segmint.pipeline.corrections.apply.change import (
    MasksMode,
    NotAppliedError,
    is_done,
    is_replaced,
    with_found_masks,
)
from segmint.pipeline.corrections.apply.engine import STALL_TIMEOUT_S, ChosenImages, stage_run
from segmint.pipeline.corrections.apply.makers import MaskMaker, own_segmenter, sam
from segmint.pipeline.corrections.correction import (
    Revision,
    begin,
    clean_up,
    confirm_changes,
    record_version,
    revise_one,
)
from segmint.pipeline.corrections.mask_revision import (
    RevisionCounts,
    RevisionList,
    RevisionResult,
    is_unfinished,
    look_at_shards,
)

L = TypeVar("L", bound=RevisionList)
OpenRun = Callable[..., AbstractContextManager[Any]]

FAILED = "failed, and keep what they had; the same command tries them again"
"""Reason to skip images."""

BARREN_SHARDS = 200
"""A run ends unfinished after this many consecutive shards with images that failed, and none that got a result."""

_OF_MASKS = ("ordinal", "source", "annotator", "label_source", "model")
_OF_IMAGES = ("ordinal", "masks_model", "complete")
_KINDS = ("shards", "images", "masks", "rejects")


@dataclass(frozen=True, kw_only=True)
class ApplyList(RevisionList):
    """List of the changes that `apply` would make, or made. `masks` counts masks by outcome."""

    would_change = "masks of {} of {} would change"
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


@dataclass(frozen=True)
class ApplyResult(RevisionResult[L]):
    """Result of `apply`. `listed` contains what was done."""

    nothing: ClassVar[str] = "no image of {} needs this run"


@dataclass
class _ApplyCounts(RevisionCounts):
    chosen: list[ChosenImages] = field(default_factory=list)
    bytes: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class AppliedShard:
    """Result of writing a shard."""

    shard: int
    ids: tuple[int, ...]  # images that were processed
    images: int  # number of changed images
    masks: Counter[str]
    failed: Mapping[int, str]  # reasons, by id of the image


def list_masks(
    dataset: Location, segmenter: SegmenterConfig | Config, mode: MasksMode, select: str | None = None
) -> ApplyList:
    """List the changes that `apply_masks` would make. Raises the same errors before it changes anything."""
    handle = DatasetHandle.open(dataset)
    return _plan(handle, _maker(handle, segmenter), mode, select)[0]


def apply_masks(
    dataset: Location,
    segmenter: SegmenterConfig | Config,
    mode: MasksMode,
    select: str | None = None,
    confirm: Callable[[ApplyList], None] | None = None,
    now: datetime | None = None,
    resources: ResourcesConfig = LOCAL,
    stall_timeout: float = STALL_TIMEOUT_S,
    open_run: OpenRun = stage_run,
) -> ApplyResult[ApplyList]:
    """Make masks in the released images of a finished dataset, in place of its automatic masks or beside them.

    `segmenter` is a user's segmenter, or a configuration whose SAM makes the masks. Masks that people or imports made,
    changed, or labeled stay as they are, and so do images of which a person confirmed that no mask is missing. `select`
    is as in `choose_images`. An image that fails keeps its masks and doesn't stop the others. An interrupted call is
    continued by the same call, which only processes images that the segmenter hasn't been applied to yet.

    Raises `UsageError` if the dataset or the segmenter doesn't fit, or if it fails on a control image. Until then,
    nothing is changed. Raises `UnfinishedError` if Ray fails. `open_run` replaces `stage_run` in tests without Ray.
    """
    handle = begin(dataset)
    maker = _maker(handle, segmenter)
    found, images = _plan(handle, maker, mode, select)
    write = MasksWriter(handle, maker.segmenter.sha256, mode)

    put = partial(change_manifest, handle, partial(_with_segmenter, segmenter=maker.segmenter))

    def start() -> AbstractContextManager[Any]:
        return open_run(handle, maker.find_stage(), write, resources, stall_timeout)

    return run_stage(handle, found, images, start, put, confirm, now)


def run_stage(
    handle: DatasetHandle,
    found: L,
    images: Sequence[ChosenImages],
    start: Callable[[], AbstractContextManager[Any]],
    put: Callable[[], object],
    confirm: Callable[[L], None] | None,
    now: datetime | None,
) -> ApplyResult[L]:
    """Run a stage over images after confirmation, and record the version. `found` lists the changes.

    `start` opens the run, and `put` changes the manifest once the stage has passed the control image. If there are no
    images and nothing is to be completed, nothing happens.
    """
    shards = frozenset(handle.commits.committed())
    if not images and not is_unfinished(handle, shards):
        return ApplyResult(found, (), name_now(handle.location))
    confirm_changes(handle, found, confirm)
    total = RevisionCounts()
    changed: set[int] = set()
    failed: dict[int, str] = {}
    barren = 0
    if images:
        with start() as run:
            run.try_control()
            put()
            for each in track(run.over(images), "changed shards", len(images)):
                for image in each.ids:  # a second run of an image replaces the result of the first
                    failed.pop(image, None)
                failed |= each.failed
                total.images += each.images
                total.masks += each.masks
                changed |= {each.shard} if each.images else set()
                barren = barren + 1 if each.failed and not each.images else 0
                if barren == BARREN_SHARDS:
                    raise UnfinishedError(
                        f"in {barren} shards in a row, no image succeeded; the last reason: {[*failed.values()][-1]}. "
                        "Finished work is kept. Correct the class, or repeat the command."
                    )
    for image, why in sorted(failed.items()):
        total.leave(f"image {image}", FAILED, why)
    outcome = clean_up(handle, shards, {})
    version, outputs = record_version(handle, "apply", found.reason(), now)
    made = replace(
        found,
        images=total.images,
        masks=total.masks,
        skipped_images=total.left,
        examples=tuple(total.examples),
        more_examples=total.more_examples,
    )
    return ApplyResult(made, tuple(sorted(changed)), version, outputs, outcome.removed_links)


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


@dataclass(frozen=True)
class MasksWriter:
    """Writer of a shard's new masks; see `segmint.pipeline.corrections.apply.engine.Write`."""

    dataset: DatasetHandle
    model: str
    mode: MasksMode

    def __call__(self, images: ChosenImages, table: pa.Table) -> AppliedShard:
        """Commit the new masks as the shard's next generation. Images without a result keep their masks."""
        found, unmade = results_of(table)
        masks: Counter[str] = Counter()
        failed: dict[int, str] = {}

        def change(_: Commit, rows: Sequence[Row]) -> Sequence[Row]:
            masks.clear()
            failed.clear()
            after = []
            for row in rows:
                new = row
                if row["ordinal"] in found:
                    try:
                        new = with_found_masks(row, found[row["ordinal"]], self.model, self.mode)
                    except (NotAppliedError, DamagedDatasetError) as error:
                        failed[row["id"]] = str(error)
                if new is not row:
                    masks.update(_outcomes(row, new))
                after.append(new)
            return after

        rows = 0
        if found:
            revised = revise_one(self.dataset, images.shard, Revision(frozenset({images.shard}), change))
            rows = revised.rows if revised is not None else 0
        ids = tuple(ordinal + 1 for ordinal in images.ordinals)
        return AppliedShard(images.shard, ids, rows, masks, {**unmade, **failed})


def results_of(table: pa.Table) -> tuple[dict[int, Row], dict[int, str]]:
    """Return the rows with a result, by ordinal, and why others have none, by id. Images taken down are in neither."""
    found: dict[int, Row] = {}
    unmade: dict[int, str] = {}
    for row in iter_rows(table.drop_columns(["release"])):
        if row["fault"] is not None:
            unmade[row["id"]] = row["fault"]
        elif row["reason"] is None:
            found[row["ordinal"]] = row
        elif row["reason"] != Reason.TAKEN_DOWN:
            unmade[row["id"]] = f"{row['stage']}: {row['reason']}: {row['detail']}"
    return found, unmade


def _outcomes(before: Row, after: Row) -> Counter[str]:
    new = after["next_mask"] - before["next_mask"]
    kept = len(after["masks"]) - new
    return Counter(new=new, replaced=len(before["masks"]) - kept, kept=kept)


def _maker(dataset: DatasetHandle, segmenter: SegmenterConfig | Config) -> MaskMaker:
    """Return the maker of the masks. Raises `UsageError` if it doesn't fit the dataset."""
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
    dataset: DatasetHandle, maker: MaskMaker, mode: MasksMode, select: str | None
) -> tuple[ApplyList, list[ChosenImages]]:
    """Return the planned changes, and the images to process."""
    chosen = None
    if select is not None:
        chosen = frozenset((choose_images(dataset.location, select).ids - 1).tolist())
    model, total = maker.segmenter.sha256, _ApplyCounts()
    nothing: list[int] = []
    committed = ((shard, nothing) for shard in sorted(dataset.commits.committed()))
    count = partial(_count, dataset.location, model, mode, chosen)
    changing, _ = look_at_shards(dataset.location, committed, total, count)
    found = ApplyList(
        dataset=str(dataset),
        name=dataset.manifest().name,
        images=total.images,
        masks={kind: total.masks[kind] for kind in ("replaced", "kept")},
        shards=changing,
        skipped_images={},
        examples=(),
        segmenter=maker.segmenter.name,
        sha256=model,
        mode=str(mode),
        bytes={kind: total.bytes[kind] for kind in _KINDS},
    )
    return found, total.chosen


def _count(
    dataset: Location, model: str, mode: MasksMode, chosen: frozenset[int] | None, commit: Commit, _: Any
) -> _ApplyCounts:
    """Count the images of a shard that need the segmenter, and their masks."""
    of_image: dict[int, list[Row]] = {}
    for mask in _columns(dataset, commit, "masks", _OF_MASKS):
        of_image.setdefault(mask["ordinal"], []).append(mask)
    counts = _ApplyCounts()
    ordinals: list[int] = []
    for image in _columns(dataset, commit, "images", _OF_IMAGES):
        ordinal = image["ordinal"]
        masks = of_image.get(ordinal, [])
        if (chosen is not None and ordinal not in chosen) or is_done(image, masks, model, mode):
            continue
        ordinals.append(ordinal)
        replaced = sum(is_replaced(mask, model, mode) for mask in masks)
        counts.masks.update(replaced=replaced, kept=len(masks) - replaced)
    counts.images = len(ordinals)
    if ordinals:
        counts.chosen = [ChosenImages(commit.shard, tuple(ordinals))]
        counts.bytes.update({kind: commit.file(kind).size for kind in _KINDS})
    return counts


def _columns(dataset: Location, commit: Commit, kind: str, names: Sequence[str]) -> list[Row]:
    rows: list[Row] = read_table(read_file(dataset, commit.file(kind)), kind).select(list(names)).to_pylist()
    return rows
