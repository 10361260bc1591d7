"""What a report and a dataset card say of a dataset beside its statistics: from its manifest, commits and tables."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from segmint.catalogs.dataset.commits import Commit, CommitLog
from segmint.catalogs.dataset.manifest import DatasetManifest, load_manifest, name_of
from segmint.catalogs.dataset.tables import DatasetTables
from segmint.catalogs.dataset.tombstones import read_tombstones, taken_images
from segmint.infra.storage.storage import Storage
from segmint.operators.prepare.deidentify import BUNDLED_DETECTORS

_CREDITS_SHOWN = 200


@dataclass(frozen=True)
class Credit:
    """Whom to credit for images: one license, provider and attribution; each None where the images say none."""

    license: str | None
    provider: str | None
    attribution: str | None
    images: int


@dataclass(frozen=True)
class Obliterated:
    """Regions of one kind that one detector, or a person (`manual`), had obliterated."""

    kind: str
    source: str
    regions: int
    images: int


@dataclass(frozen=True)
class Detector:
    """A detector that a build looked for one kind of region with; `name` is None where it looked for none."""

    kind: str  # faces or plates
    name: str | None  # of a file: the start of its SHA-256

    @property
    def bundled(self) -> bool:
        """Whether it is one of those that come with segmint, which are for trials."""
        return self.name in BUNDLED_DETECTORS


@dataclass(frozen=True)
class Facts:
    """A dataset in figures. What a foreign dataset does not say is None, or empty."""

    name: str
    kind: str  # segmint or sa1b
    manifest: DatasetManifest | None
    commits: tuple[Commit, ...]
    images: int
    masks: int
    bytes: int | None  # of the committed files
    taken_down: int | None
    licenses: tuple[tuple[str | None, int], ...]  # with their images, the most frequent first; None: not given
    credits: tuple[Credit, ...]  # the most frequent first
    credits_total: int
    obliterated: tuple[Obliterated, ...]
    detectors: tuple[Detector, ...]
    released: tuple[int, int] | None  # the median width and height of the images
    sources: tuple[int, int] | None  # and of those they were made from

    @property
    def with_images(self) -> bool:
        """Whether the dataset holds pixels, and not annotations alone."""
        return self.config("release").get("format") != "annotations"

    @property
    def rejected(self) -> int | None:
        """How many rows were refused; None where nobody knows."""
        return None if self.manifest is None else sum(commit.counts.get("rejected", 0) for commit in self.commits)

    def config(self, key: str) -> Mapping[str, Any]:
        """One part of the configuration that the dataset was built with; empty where it is not known."""
        part = self.manifest.config.get(key) if self.manifest is not None else None
        return part if isinstance(part, Mapping) else {}


def gather_facts(tables: DatasetTables, storage: Storage) -> Facts:
    """Reads a dataset's manifest, commits and tombstones, and asks its tables.

    Raises `DamagedDatasetError` where one of these cannot be read.
    """
    manifest = load_manifest(storage, tables.uri) if tables.kind == "segmint" else None
    commits = tuple(CommitLog(storage, tables.uri).read_all()) if manifest is not None else ()
    credits_total, found = _credits(tables)
    return Facts(
        name=name_of(manifest, tables.uri),
        kind=tables.kind,
        manifest=manifest,
        commits=commits,
        images=_number(tables, "SELECT count(*) FROM images"),
        masks=_number(tables, "SELECT count(*) FROM masks"),
        bytes=sum(file.size for commit in commits for file in commit.files) if manifest is not None else None,
        taken_down=len(taken_images(read_tombstones(storage, tables.uri))) if manifest is not None else None,
        licenses=_licenses(tables),
        credits=found,
        credits_total=credits_total,
        obliterated=_obliterated(tables) if manifest is not None else (),
        detectors=_detectors(manifest) if manifest is not None else (),
        released=_median_size(tables, "width", "height"),
        sources=_median_size(tables, "source_width", "source_height"),
    )


def _number(tables: DatasetTables, sql: str) -> int:
    return int(tables.query(sql).column(0)[0].as_py())


def _licenses(tables: DatasetTables) -> tuple[tuple[str | None, int], ...]:
    rows = tables.query("SELECT license, count(*) AS images FROM images GROUP BY ALL ORDER BY images DESC, license")
    return tuple((row["license"], row["images"]) for row in rows.to_pylist())


def _credits(tables: DatasetTables) -> tuple[int, tuple[Credit, ...]]:
    grouped = "SELECT license, provider, attribution, count(*) AS images FROM images GROUP BY ALL"
    total = _number(tables, f"SELECT count(*) FROM ({grouped})")
    rows = tables.query(f"{grouped} ORDER BY images DESC, license, provider, attribution LIMIT {_CREDITS_SHOWN}")
    return total, tuple(Credit(**row) for row in rows.to_pylist())


def _obliterated(tables: DatasetTables) -> tuple[Obliterated, ...]:
    rows = tables.query(
        "SELECT region.kind AS kind, region.source AS source, count(*) AS regions, count(DISTINCT id) AS images "
        "FROM (SELECT id, unnest(regions) AS region FROM images) GROUP BY ALL ORDER BY kind, source"
    )
    return tuple(Obliterated(**row) for row in rows.to_pylist())


def _detectors(manifest: DatasetManifest) -> tuple[Detector, ...]:
    config = manifest.config.get("deidentify") or {}
    found = []
    for kind in ("faces", "plates"):
        name = (config.get(kind) or {}).get("detector")
        found.append(Detector(kind, None if name in (None, "none") else str(name)))
    return tuple(found)


def _median_size(tables: DatasetTables, width: str, height: str) -> tuple[int, int] | None:
    middle = ", ".join(
        f"approx_quantile({column}, 0.5) AS {name}" for column, name in ((width, "width"), (height, "height"))
    )
    (row,) = tables.query(f"SELECT {middle} FROM images").to_pylist()
    if row["width"] is None or row["height"] is None:
        return None
    return round(row["width"]), round(row["height"])
