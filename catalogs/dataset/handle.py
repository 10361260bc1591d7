"""Handle that writers use to share a dataset: its location and the facts that no writer changes."""

from dataclasses import dataclass
from typing import Self

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.manifest import (
    DatasetManifest,
    LatestManifest,
    load_latest_manifest,
    manifest_generations,
)
from segmint.catalogs.dataset.tombstones import Removals, read_removals
from segmint.catalogs.layout import SCHEMA_VERSION
from segmint.catalogs.stages import StageColumn, TableColumn
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location

_FORMATS = ("annotations", "images")
"""Values of `release.format` in a dataset's configuration."""


@dataclass(frozen=True, kw_only=True)
class DatasetHandle:
    """Handle of a dataset for its writers. When pickled, it takes a few hundred bytes, however large the dataset is.

    The fields are fixed when the dataset is created or the command starts. The manifest, commits, and tombstones may
    change while the command runs, so each method reads them again.

    Attributes:
        location: the dataset's root.
        with_images: whether the dataset's tars contain the released JPEGs.
        build_sha256: the hash from the manifest that each commit records.
        stages: columns of custom stages that the build writes, or those in a shard's tables.
        schema_version: the version of the dataset's format, which corrections keep.
        catalog_uri: the source catalog's URI, if known; it lets a tombstone's relative URI match an absolute one.
        catalog_generation: the manifest's generation when the rows to write were read, or an earlier generation.
    """

    location: Location
    with_images: bool
    build_sha256: str = ""
    stages: tuple[StageColumn | TableColumn, ...] = ()
    schema_version: int = SCHEMA_VERSION
    catalog_uri: str | None = None
    catalog_generation: int = 1

    @classmethod
    def open(cls, location: Location, catalog_uri: str | None = None) -> Self:
        """Return the handle of the dataset at `location`.

        Raises `UsageError` if there is no dataset, and the errors of `of`.
        """
        return cls.of(location, load_latest_manifest(location), catalog_uri)

    @classmethod
    def of(cls, location: Location, latest: LatestManifest, catalog_uri: str | None = None) -> Self:
        """Return the handle of a dataset, based on its manifest.

        Raises `UsageError` if the manifest doesn't say whether the dataset contains images. Without this check, a
        correction might assume that it contains none, and drop its JPEGs.
        """
        release = latest.manifest.config.get("release", {})
        if release.get("format") not in _FORMATS:
            raise UsageError(
                f"{location}: the manifest doesn't say how images are released: release.format is "
                f"{release.get('format')!r}, expected one of {', '.join(_FORMATS)}"
            )
        return cls(
            location=location,
            with_images=release["format"] == "images",
            build_sha256=latest.manifest.build_sha256,
            stages=latest.manifest.stages,
            schema_version=latest.manifest.schema_version,
            catalog_uri=catalog_uri,
            catalog_generation=latest.generation,
        )

    def __str__(self) -> str:
        return str(self.location)

    @property
    def commits(self) -> CommitLog:
        """The dataset's commits. Each method of the log lists or reads them again."""
        return CommitLog(self.location)

    def latest(self) -> LatestManifest:
        """Read the latest manifest with its generation."""
        return load_latest_manifest(self.location)

    def manifest(self) -> DatasetManifest:
        """Read the latest manifest."""
        return self.latest().manifest

    def manifest_generation(self) -> int:
        """List the manifests, and return the highest generation."""
        return max(manifest_generations(self.location), default=1)

    def taken(self) -> Removals | None:
        """Read the dataset's takedowns. Returns None if it has no tombstones."""
        return read_removals(self.location, self.catalog_uri)
