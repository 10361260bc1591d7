"""`segmint redact`: redacts more regions in committed images."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.manifest import DatasetManifest, load_manifest
from segmint.catalogs.dataset.regions import WantedRegion, read_regions
from segmint.infra.errors import UsageError, raise_problems
from segmint.infra.storage.location import Location
from segmint.infra.wording import counted
from segmint.operators.rows import Row
from segmint.operators.shards.committed_rows import read_committed_rows, read_file
from segmint.operators.shards.corrected_rows import redact_row
from segmint.operators.shards.replace import check_purge, remove_replaced, replace_shard
from segmint.operators.shards.tables import read_table
from segmint.pipeline.corrections.common import latest_commits, release_config, remove_report, rewrite_index

Regions = dict[int, list[WantedRegion]]  # by ordinal


@dataclass(frozen=True)
class Redacted:
    """The result of a redaction."""

    dataset: str
    regions: int  # asked for
    images: int  # with these regions
    changed_images: int  # the others already had these regions
    changed_shards: tuple[int, ...]
    removed_links: tuple[str, ...] = ()  # of report/, with what they led to, which was left alone

    def to_dict(self) -> dict[str, Any]:
        """Return the answer for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the answer as lines for people."""
        return [
            f"{counted(self.regions, 'region')} in {counted(self.images, 'image')}; changed: "
            f"{counted(self.changed_images, 'image')} of {counted(len(self.changed_shards), 'shard')}, the others had "
            "these regions already",
            "what was there before is gone, older versions included",
            *(f"only the link was removed, look where it led: {link}" for link in self.removed_links),
        ]


def redact(dataset: Location, regions: Location) -> Redacted:
    """Redact the regions in the file `regions` in the images of a dataset.

    Raises `UsageError` before anything is changed: for a mistake in the file, an image that does not exist, a box that
    leaves its image, a dataset without images, or a store whose older versions cannot be removed. After an
    interruption at any point, the same call completes the work.
    """
    manifest = load_manifest(dataset)
    config = release_config(manifest)
    if config.format != "images":
        raise UsageError(f"{dataset} holds annotations only, no images to redact")
    wanted = read_regions(regions)
    by_ordinal: Regions = {}
    for region in wanted:
        by_ordinal.setdefault(region.ordinal, []).append(region)
    check_purge(dataset)
    shards = {ordinal // manifest.images_per_shard for ordinal in by_ordinal}
    commits = latest_commits(dataset, shards)
    raise_problems(_problems(dataset, manifest, commits, by_ordinal))

    changed: dict[int, int] = {}
    for shard, commit in commits.items():
        before = read_committed_rows(dataset, commit)
        after = [redact_row(row, by_ordinal.get(row["ordinal"], ()), config) for row in before]
        different = sum(one is not other for one, other in zip(before, after, strict=True))
        if different:
            replace_shard(dataset, commit, after, with_images=True)
            changed[shard] = different
    remove_replaced(dataset, commits)
    links = remove_report(dataset)
    rewrite_index(dataset, manifest)
    return Redacted(str(dataset), len(wanted), len(by_ordinal), sum(changed.values()), tuple(changed), tuple(links))


def _problems(
    dataset: Location, manifest: DatasetManifest, commits: Mapping[int, Commit], by_ordinal: Regions
) -> list[str]:
    """Return what is wrong with the regions, in order of the images."""
    found = []
    by_shard: dict[int, list[int]] = {}
    for ordinal in sorted(by_ordinal):
        by_shard.setdefault(ordinal // manifest.images_per_shard, []).append(ordinal)
    for shard, ordinals in by_shard.items():
        images: dict[int, Row] = {}
        if shard in commits:
            data = read_file(dataset, commits[shard].file("images"))
            images = {row["ordinal"]: row for row in read_table(data, "images").to_pylist()}
        for ordinal in ordinals:
            found += _problems_of_image(images.get(ordinal), by_ordinal[ordinal])
    return found


def _problems_of_image(image: Row | None, regions: Sequence[WantedRegion]) -> list[str]:
    if image is None:
        return [f"{region.where}, id: the dataset has no image {region.id}" for region in regions]
    width, height = image["width"], image["height"]
    return [
        f"{region.where}: the box of {region.w} x {region.h} pixels at ({region.x}, {region.y}) leaves image "
        f"{region.id}, which was released with {width} x {height} pixels"
        for region in regions
        if region.x + region.w > width or region.y + region.h > height
    ]
