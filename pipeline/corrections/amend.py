"""`segmint amend`: correct the credits and countries of images from a catalog."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from segmint.catalogs.dataset.manifest import DatasetHandle, DatasetManifest, LatestManifest
from segmint.catalogs.dataset.outputs import line_of, read_notes, shown_outputs
from segmint.catalogs.dataset.versions import VersionName, name_now
from segmint.catalogs.parquet import AMENDABLE
from segmint.catalogs.source.amendments import (
    SHOWN,
    AmendedValue,
    Amendments,
    PinnedDifference,
    amend_parts,
    said,
    stage_amendments,
)
from segmint.catalogs.source.conform import shown
from segmint.catalogs.source.files import unchanged
from segmint.catalogs.source.sampling import WholeCatalog
from segmint.infra.errors import UsageError
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.location import Location
from segmint.infra.wording import counted, listed
from segmint.pipeline.building.dataset import ignored_columns
from segmint.pipeline.config.config import LOCAL, ResourcesConfig
from segmint.pipeline.corrections.correction import (
    begin,
    confirm_changes,
    credit,
    has_replaced_parts,
    link_lines,
    put_parts,
    record_version,
    remove_parts,
    revise,
    unfinished_shards,
    while_unchanged,
)

_WHY_FIXED = (
    "`segmint amend` can only change attribution, provider, source_url, and country, because the other columns define "
    "the image and its terms. Restore their values; all but uri can also be empty. To change an image's license, take "
    "it down and add it under a new image_id."
)


@dataclass(frozen=True)
class AmendmentList:
    """Changes that an amendment would make."""

    dataset: str
    catalog: str
    name: str
    rows: int  # rows of the dataset's catalog that would change
    values: Mapping[str, int]  # count by column
    examples: tuple[AmendedValue, ...]
    matched: int  # rows of the dataset that the catalog lists
    unknown: int  # rows of the catalog that match no row of the dataset
    first_unknown: str | None
    shards: tuple[int, ...]  # shards with an amended row, committed or not
    unfinished: tuple[int, ...]  # committed shards that an interrupted amendment left behind, which are completed
    former_parts: bool  # True if an interrupted correction left parts of the catalog with former values
    outputs: tuple[str, ...]  # outputs recorded in the dataset

    def lines(self) -> list[str]:
        values = sum(self.values.values())
        unknown = (
            f"{counted(self.unknown, 'row')} of {self.catalog} not in the dataset, such as {shown(self.first_unknown)}"
        )
        unfinished = counted(len(self.unfinished), "shard")
        return [
            f"{counted(self.rows, 'row')} of {self.dataset} would be amended{_by_column(self.values)}",
            *(f"  {shown(one.image_id)}: {one.column} {said(one.before)} -> {said(one.now)}" for one in self.examples),
            *([f"  and {values - SHOWN:,} more values"] if values > SHOWN else []),
            *([unknown] if self.unknown else []),
            *([f"completing an earlier amendment that didn't finish: {unfinished}"] if self.unfinished else []),
            *(["removing former parts of the catalog, which an earlier correction left"] if self.former_parts else []),
            *shown_outputs(self.dataset, self.outputs, "not updated"),
        ]


@dataclass(frozen=True)
class AmendResult:
    """Result of an amendment."""

    dataset: str
    rows: int  # rows of the dataset's catalog that this run changed
    values: Mapping[str, int]  # count by column
    unknown: int  # rows of the catalog that match no row of the dataset
    images: int  # images in committed shards that this run changed
    changed_shards: tuple[int, ...]
    version: VersionName
    outputs: tuple[str, ...] = ()  # outputs recorded in the dataset, which may contain the former values
    removed_links: tuple[str, ...] = ()  # links in report/ with their targets, which were left untouched

    def lines(self) -> list[str]:
        unknown = [f"{counted(self.unknown, 'row')} not in the dataset, skipped"] if self.unknown else []
        if not self.rows and not self.changed_shards:
            return [f"nothing to amend: {self.dataset} already has these values", *unknown, self.version.line()]
        return [
            f"{counted(self.rows, 'row')} of the catalog amended{_by_column(self.values)}; "
            f"{counted(self.images, 'image')} changed in {counted(len(self.changed_shards), 'shard')}",
            *unknown,
            "the previous values were deleted, including older versions",
            *shown_outputs(self.dataset, self.outputs, "create it again"),
            *link_lines(self.removed_links),
            self.version.line(),
        ]


def _by_column(values: Mapping[str, int]) -> str:
    """Return the number of amended values by column, for the end of a line."""
    if not values:
        return ""
    return f": {listed(f'{name} of {count:,}' for name, count in values.items())}"


def list_amendment(dataset: Location, catalog: Location, *, clear: bool = False) -> AmendmentList:
    """List the changes that `amend` would make. Raises the same errors as `amend` before it changes anything."""
    with ScratchFolder() as folder:
        handle = DatasetHandle.open(dataset)
        return _plan(handle, _stage(handle, catalog, clear, Path(folder))).listed


def amend(
    dataset: Location,
    catalog: Location,
    reason: str | None = None,
    *,
    clear: bool = False,
    now: datetime | None = None,
    confirm: Callable[[AmendmentList], None] | None = None,
    resources: ResourcesConfig = LOCAL,
) -> AmendResult:
    """Update the `AMENDABLE` columns of images from `catalog`, which identifies the images by image_id.

    If `catalog` lacks a value, the image keeps its value. With `clear`, the image loses the value instead, provided
    that `catalog` contains the column. `reason` is recorded (default: the catalog's name and SHA-256). `confirm` is as
    in `confirm_changes`, and `resources` as in `revise`. If nothing is to be changed or completed, `confirm` isn't
    called.

    First, `amend` writes the amended parts of the catalog and a manifest generation that names them. From then on,
    builds, growth, and repairs use the new values. Then `amend` commits the next generation of each shard. If it is
    interrupted, any later amendment completes it: it finds the shards whose images differ from the catalog, the files
    that weren't removed, and the former parts of the catalog.

    Raises `UsageError` before any change if the catalog can't be read, matches no row of the dataset, contradicts
    itself, or differs in a column of `FIXED`, or if the store's older versions can't be removed.
    """
    if reason is not None and not reason.strip():
        raise UsageError("--reason is empty. Give a reason, or omit the option.")
    reason = reason or f"from {catalog.name}, SHA-256 {catalog.sha256()[:12]}"
    with ScratchFolder() as folder:
        handle = begin(dataset)
        staged = _stage(handle, catalog, clear, Path(folder))
        plan = _plan(handle, staged)
        if not plan.found.parts and not plan.listed.unfinished and not plan.listed.former_parts:
            return AmendResult(str(handle), 0, {}, plan.found.unknown, 0, (), name_now(dataset))
        confirm_changes(handle, plan.listed, confirm)
        # Put the amended parts and a manifest that names them. If a growing build or another correction puts its
        # manifest first, amend the parts of that manifest instead.
        latest = plan.latest
        while plan.found.parts:
            amended = put_parts(dataset, latest, plan.found.parts)
            if amended is not None:
                latest = amended
                break
            plan = _plan(handle, staged)
            latest = plan.latest
        revision = credit(dataset, latest.generation, plan.found.shards.union(plan.listed.unfinished))
        outcome = revise(handle, revision, resources)
        version, outputs = record_version(handle, "amend", reason, now)
        remove_parts(dataset)  # last, because the former parts show that an amendment didn't finish
    return AmendResult(
        dataset=str(handle),
        rows=plan.found.rows,
        values=plan.found.values,
        unknown=plan.found.unknown,
        images=sum(each.rows for each in outcome.changed.values()),
        changed_shards=tuple(outcome.changed),
        version=version,
        outputs=outputs,
        removed_links=outcome.removed_links,
    )


@dataclass(frozen=True)
class _StagedCatalog:
    """Rows of a catalog on the local disk."""

    catalog: Location
    folder: Path
    rows: Path
    cleared: frozenset[str]  # columns whose values are removed where the catalog has none


def _stage(dataset: DatasetHandle, catalog: Location, clear: bool, folder: Path) -> _StagedCatalog:
    cleared: frozenset[str] = frozenset()
    with unchanged(catalog):
        rows = stage_amendments(catalog, folder, ignored=ignored_columns(dataset.manifest().config))
        if clear:
            cleared = frozenset(WholeCatalog(catalog).schema.names).intersection(AMENDABLE)
    return _StagedCatalog(catalog, folder, rows, cleared)


@dataclass(frozen=True)
class _AmendmentPlan:
    """Plan of an amendment, based on the latest generation of the manifest."""

    latest: LatestManifest
    found: Amendments
    listed: AmendmentList


def _plan(dataset: DatasetHandle, staged: _StagedCatalog) -> _AmendmentPlan:
    return while_unchanged(dataset, lambda: _look(dataset, staged))


def _look(dataset: DatasetHandle, staged: _StagedCatalog) -> _AmendmentPlan:
    latest = dataset.latest()
    found = _compare(dataset.location, latest.manifest, staged)
    listed = AmendmentList(
        dataset=str(dataset),
        catalog=str(staged.catalog),
        name=latest.manifest.name,
        rows=found.rows,
        values=found.values,
        examples=tuple(found.examples),
        matched=found.matched,
        unknown=found.unknown,
        first_unknown=found.first_unknown,
        shards=tuple(sorted(found.shards)),
        unfinished=tuple(unfinished_shards(dataset.location, dataset.commits.committed().keys())),
        former_parts=has_replaced_parts(dataset.location),
        outputs=tuple(line_of(note) for note in read_notes(dataset.location)),
    )
    return _AmendmentPlan(latest, found, listed)


def _compare(dataset: Location, manifest: DatasetManifest, staged: _StagedCatalog) -> Amendments:
    catalog, folder = staged.catalog, Path(tempfile.mkdtemp(dir=staged.folder))
    parts = []
    for number, part in enumerate(manifest.catalog):
        path = folder / f"part-{number}.parquet"
        (dataset / part.path).get_file(path)
        parts.append(path)
    found = amend_parts(staged.rows, parts, folder, images_per_shard=manifest.images_per_shard, clear=staged.cleared)
    if not found.matched:
        raise UsageError(
            f"no row of {catalog} matches a row of {dataset} by image_id, such as its first, "
            f"{shown(found.first_unknown)}. Nothing was changed."
            if found.unknown
            else f"{catalog} has no rows. Nothing was changed."
        )
    if found.contradiction is not None:
        raise UsageError(
            f"{catalog} contradicts itself, so nothing was changed: {found.contradiction}. Keep the correct one."
        )
    if found.different:
        lines = [_difference_line(column, difference) for column, difference in found.different.items()]
        raise UsageError(
            "\n  ".join([f"{catalog} doesn't match {dataset}, so nothing was changed:", *lines, _WHY_FIXED])
        )
    return found


def _difference_line(column: str, difference: PinnedDifference) -> str:
    return (
        f"{counted(difference.rows, 'row')} with another {column}; the first is row {difference.row}, image_id "
        f"{shown(difference.image_id)}: {shown(difference.pinned)} in the dataset, {shown(difference.found)} here"
    )
