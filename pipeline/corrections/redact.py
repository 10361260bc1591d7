"""`segmint redact`: redact more regions in committed images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.inventory import unknown_files
from segmint.catalogs.dataset.manifest import DatasetHandle, DatasetManifest
from segmint.catalogs.dataset.outputs import OTHER_CACHES, forget_dataset, shown_outputs
from segmint.catalogs.dataset.regions import WantedRegion, read_regions
from segmint.catalogs.dataset.tombstones import by_shard
from segmint.catalogs.dataset.versions import VersionName
from segmint.catalogs.layout import image_stem
from segmint.infra.errors import UsageError, raise_problems
from segmint.infra.storage.location import Location
from segmint.infra.wording import counted, some
from segmint.operators.prepare.release import ReleaseConfig
from segmint.operators.rows import Row
from segmint.operators.shards.corrected_rows import redact_row
from segmint.operators.shards.revise import read_file, read_table
from segmint.pipeline.config.config import LOCAL, ResourcesConfig
from segmint.pipeline.corrections.correction import (
    Revision,
    begin,
    confirm_changes,
    link_lines,
    record_version,
    revise,
    while_unchanged,
)

Regions = dict[int, list[WantedRegion]]  # by ordinal

SHOWN = 20
"""Maximum number of images in the text form of the list. JSON contains all images."""


@dataclass(frozen=True)
class RedactResult:
    """Result of a redaction."""

    dataset: str
    regions: int  # requested
    images: int  # with these regions
    changed_images: int  # all other images already contained these regions
    changed_shards: tuple[int, ...]
    version: VersionName
    removed_links: tuple[str, ...] = ()  # links in report/ with their targets, which were left untouched
    outputs: tuple[str, ...] = ()  # outputs recorded in the dataset, which may contain the previous pixels
    caches: tuple[str, ...] = ()  # caches of the images, with the files that were deleted or left there
    unknown_files: tuple[str, ...] = ()  # temporary and foreign files, which may show the previous pixels

    def lines(self) -> list[str]:
        unchanged = ""
        if self.changed_images < self.images:
            unchanged = f"; {counted(self.images - self.changed_images, 'image')} already had these regions"
        return [
            f"{counted(self.regions, 'region')} in {counted(self.images, 'image')}; changed: "
            f"{counted(self.changed_images, 'image')} in {counted(len(self.changed_shards), 'shard')}{unchanged}",
            *(["the previous pixels were deleted, including older versions"] if self.changed_images else []),
            *shown_outputs(self.dataset, self.outputs, "delete it or create it again"),
            *(f"cache: {line}" for line in self.caches),
            OTHER_CACHES,
            *(f"not a committed file, check what it shows and names: {path}" for path in self.unknown_files),
            *link_lines(self.removed_links),
            self.version.line(),
        ]


@dataclass(frozen=True)
class RedactionList:
    """Changes that a redaction would make."""

    dataset: str
    name: str
    images: Mapping[int, int]  # number of requested regions by image number
    shards: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Number of images."""
        return len(self.images)

    def lines(self) -> list[str]:
        shown = list(self.images.items())[:SHOWN]
        return [
            f"{counted(self.rows, 'image')} of {self.dataset} would be redacted permanently where regions are new, in "
            f"{counted(len(self.shards), 'shard')}: {some(self.shards)}",
            *(f"  {image_stem(image)}: {counted(regions, 'region')}" for image, regions in shown),
            *([f"  and {self.rows - SHOWN:,} more"] if self.rows > SHOWN else []),
        ]


def list_redaction(dataset: Location, regions: Location) -> RedactionList:
    """List the changes that `redact` would make. Raises the same errors as `redact` before it changes anything."""
    return _plan(DatasetHandle.open(dataset), regions).listed


def redact(
    dataset: Location,
    regions: Location,
    confirm: Callable[[RedactionList], None] | None = None,
    resources: ResourcesConfig = LOCAL,
) -> RedactResult:
    """Redact the regions that the file `regions` lists, in a dataset's images.

    `confirm` is as in `confirm_changes`, and `resources` as in `revise`. Raises `UsageError` before any change if the
    file is invalid, an image doesn't exist, a box is outside its image, the dataset has no images, or the store's older
    versions can't be removed.
    """
    handle = begin(dataset)
    plan = _plan(handle, regions)
    confirm_changes(handle, plan.listed, confirm)
    revision = Revision(
        shards=frozenset(plan.listed.shards),
        change=lambda _, rows: [redact_row(row, plan.regions.get(row["ordinal"], ()), plan.config) for row in rows],
    )
    outcome = revise(handle, revision, resources)
    version, outputs = record_version(handle, "redact")
    return RedactResult(
        dataset=str(handle),
        regions=sum(plan.listed.images.values()),
        images=plan.listed.rows,
        changed_images=sum(each.rows for each in outcome.changed.values()),
        changed_shards=tuple(outcome.changed),
        version=version,
        removed_links=outcome.removed_links,
        outputs=outputs,
        caches=tuple(forget_dataset(dataset)),
        unknown_files=tuple(unknown_files(dataset)),
    )


@dataclass(frozen=True)
class _RedactionPlan:
    config: ReleaseConfig
    regions: Regions
    listed: RedactionList


def _plan(dataset: DatasetHandle, regions_file: Location) -> _RedactionPlan:
    return while_unchanged(dataset, lambda: _look(dataset, regions_file))


def _look(dataset: DatasetHandle, regions_file: Location) -> _RedactionPlan:
    manifest = dataset.manifest()
    config = release_config(manifest)
    if not dataset.with_images:
        raise UsageError(f"{dataset} only contains annotations, so there are no images to redact")
    regions: Regions = {}
    for region in read_regions(regions_file, WantedRegion):
        regions.setdefault(region.ordinal, []).append(region)
    shards = {ordinal // manifest.images_per_shard for ordinal in regions}
    commits = {commit.shard: commit for commit in dataset.commits.read_all(only=shards)}
    raise_problems(_problems(dataset.location, manifest, commits, regions))
    images = {ordinal + 1: len(each) for ordinal, each in sorted(regions.items())}
    return _RedactionPlan(config, regions, RedactionList(str(dataset), manifest.name, images, tuple(commits)))


def release_config(manifest: DatasetManifest) -> ReleaseConfig:
    """Return a dataset's release settings. Raises `UsageError` if the manifest lacks them."""
    try:
        return ReleaseConfig.model_validate(manifest.config.get("release"))
    except ValidationError as error:
        raise UsageError(f"the dataset's manifest doesn't say how images are released: {error}") from error


def _problems(
    dataset: Location, manifest: DatasetManifest, commits: Mapping[int, Commit], by_ordinal: Regions
) -> list[str]:
    """Return the problems with the regions, in order of the images."""
    found = []
    for shard, ordinals in by_shard(by_ordinal, manifest.images_per_shard).items():
        images: dict[int, Row] = {}
        if shard in commits:
            data = read_file(dataset, commits[shard].file("images"))
            images = {row["ordinal"]: row for row in read_table(data, "images").to_pylist()}
        for ordinal in sorted(ordinals):
            found += _problems_of_image(images.get(ordinal), by_ordinal[ordinal])
    return found


def _problems_of_image(image: Row | None, regions: Sequence[WantedRegion]) -> list[str]:
    if image is None:
        return [f"{region.where}, id: the dataset has no image {region.id}" for region in regions]
    width, height = image["width"], image["height"]
    return [
        f"{region.where}: the box of {region.w} x {region.h} pixels at ({region.x}, {region.y}) extends beyond image "
        f"{region.id}, which is {width} x {height} pixels"
        for region in regions
        if region.x + region.w > width or region.y + region.h > height
    ]
