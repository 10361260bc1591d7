"""Comparison of two versions or datasets for `segmint diff`, based on their commits, manifests, and tables."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from segmint.catalogs.dataset.commits import REJECTED, Commit
from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.dataset.reader import Dataset
from segmint.catalogs.dataset.tables import DatasetTables, TableFile, damage_named
from segmint.catalogs.dataset.tombstones import BLANK, TOMBSTONES, list_tombstones
from segmint.catalogs.dataset.versions import VersionName, name_now
from segmint.catalogs.layout import differing_keys
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.location import Location
from segmint.infra.wording import counted, some
from segmint.operators.rows import SCHEMAS

EXAMPLES = 10
"""Maximum number of images to name per kind of change."""

_SETTINGS = (
    "schema_version",
    "config",
    "numerics",
    "weights",
    "code_version",
    "images_per_shard",
    "policy_date",
    "published",
    "stages",
    "applied",
    "applied_columns",
    "name",
)

_CREDITS = ("attribution", "provider", "source_url", "country")
_PIXELS = ("source_sha256", "source_width", "source_height", "width", "height")

# Hashes of masks are summed: their order and ids don't matter, and two equal masks must not cancel out. Columns that
# depend on the redacted regions are left out, because the regions are compared separately.
_MASKS = """
SELECT image_id, count(*) AS masks, sum(hash(segmentation, bbox, area, predicted_iou, stability_score, crop_box,
       point_coords, output, label, label_score, label_source, source, annotator, seconds, prompts, origin,
       model)::HUGEINT) AS content
FROM {side}_masks GROUP BY image_id
"""

_PAIRS = f"""
CREATE TABLE pairs AS
WITH am AS ({_MASKS.format(side="a")}), bm AS ({_MASKS.format(side="b")})
SELECT coalesce(a.image_id, b.image_id) AS image_id, a.ordinal AS ordinal, coalesce(a.id, b.id) AS id,
       a.image_id IS NULL AS added, b.image_id IS NULL AS removed,
       a.license AS license_a, b.license AS license_b,
       a.license IS DISTINCT FROM b.license AS license,
       a.regions IS DISTINCT FROM b.regions AS regions,
       {" OR ".join(f"a.{name} IS DISTINCT FROM b.{name}" for name in _CREDITS)} AS credits,
       {" OR ".join(f"a.{name} IS DISTINCT FROM b.{name}" for name in _PIXELS)} AS pixels,
       am.masks IS DISTINCT FROM bm.masks OR am.content IS DISTINCT FROM bm.content AS masks
FROM a_images a FULL JOIN b_images b USING (image_id)
LEFT JOIN am ON am.image_id = a.image_id LEFT JOIN bm ON bm.image_id = b.image_id
"""

_WHY_REMOVED = f"""
SELECT coalesce(named.reason, blank.reason, 'not there') AS reason, count(*) AS images
FROM pairs LEFT JOIN (SELECT image_id, arg_min(reason, ordinal) AS reason FROM b_rejects GROUP BY image_id) named
ON named.image_id = pairs.image_id  -- the first row's, because the others are its duplicates
LEFT JOIN b_rejects blank ON ? AND blank.image_id = '{BLANK}' AND blank.ordinal = pairs.ordinal
WHERE removed GROUP BY 1 ORDER BY 2 DESC, 1
"""

_IN_BOTH = "NOT added AND NOT removed"
_KINDS = {"masks": "masks", "license": "licenses", "regions": "redactions", "credits": "credits", "pixels": "pixels"}
"""Possible changes of an image that is in both versions, as columns of `pairs` and their names in the result."""


@dataclass(frozen=True)
class DiffSide:
    """Side of a comparison, with its version and totals."""

    dataset: str
    name: str
    version: VersionName
    shards: int
    images: int
    masks: int
    rejected: Mapping[str, int]  # number of rejected rows by reason
    catalog_rows: int
    tombstones: int


@dataclass(frozen=True)
class ChangedImages:
    """Images with one kind of change. `count` is their number, and `first` contains the first `image_id`s."""

    count: int = 0
    first: tuple[str, ...] = ()


@dataclass(frozen=True)
class VersionDiff:
    """Changes from `a` to `b`. Images are matched by `image_id`."""

    a: DiffSide
    b: DiffSide
    shards_compared: int  # number of shards whose commits differ; all others are identical
    added: ChangedImages
    removed: ChangedImages
    removed_why: Mapping[str, int]  # number of removed images by the reason why `b` rejected them, or `not there`
    changed: Mapping[str, ChangedImages]  # by kind of change: masks, licenses, redactions, credits, pixels
    licenses: Mapping[str, tuple[int, int]]  # images in `a` and `b`, in compared shards, if different
    settings: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)  # by dotted key

    @property
    def same(self) -> bool:
        """True if both have the same digest."""
        return self.a.version.digest == self.b.version.digest

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "same": self.same}

    def lines(self) -> list[str]:
        head = [f"A: {self.a.dataset}: {self.a.version}", f"B: {self.b.dataset}: {self.b.version}"]
        if self.same:
            same = "no difference: manifests, catalogs, commits, and tombstones are the same. The data files weren't"
            return [*head, f"{same} read (`segmint verify` reads them)"]
        why = ""
        if self.removed_why:
            why = f" ({some([f'{reason} {count:,}' for reason, count in self.removed_why.items()])})"
        lines = [
            *head,
            _line("images", f"{self.a.images:,} in A, {self.b.images:,} in B"),
            *_image_lines("added", self.added),
            *_image_lines("removed", self.removed, why),
            _line("masks", f"{self.a.masks:,} in A, {self.b.masks:,} in B"),
        ]
        for kind, images in self.changed.items():
            lines += _image_lines(kind, images, " with others" if images.count else "")
        licenses = [f"{name or 'none'} {b - a:+,}" for name, (a, b) in self.licenses.items()]
        if licenses:
            lines.append(_line("licenses", some(licenses)))
        refused = []
        for reason in sorted(self.a.rejected.keys() | self.b.rejected.keys()):
            before, after = self.a.rejected.get(reason, 0), self.b.rejected.get(reason, 0)
            if before != after:
                refused.append(f"{reason} {before:,} to {after:,}")
        if refused:
            lines.append(_line("rejected", some(refused)))
        if self.a.catalog_rows != self.b.catalog_rows:
            lines.append(_line("catalog", f"{self.a.catalog_rows:,} to {self.b.catalog_rows:,} rows"))
        if self.a.tombstones != self.b.tombstones:
            lines.append(_line("takedowns", f"{self.a.tombstones:,} to {self.b.tombstones:,}"))
        for key, (a, b) in self.settings.items():
            lines.append(_line("setting", f"{key}: {a!r} in A, {b!r} in B"))
        return [*lines, f"compared {counted(self.shards_compared, 'shard')} whose commits differ"]


@dataclass
class _SideTotals:
    """Totals over all commits of a side, and the tables of the commits that differ."""

    dataset: Location
    shards: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    files: dict[str, list[TableFile]] = field(default_factory=dict)

    def add(self, commit: Commit | None, *, differs: bool) -> None:
        if commit is None:
            return
        self.shards += 1
        self.counts.update(commit.counts)
        if not differs:
            return
        for kind in SCHEMAS:
            entry = commit.file(kind)
            self.files.setdefault(kind, []).append(TableFile(str(self.dataset / entry.path), entry.size))


def diff_datasets(
    a: Location, b: Location, version_a: int | str | None = None, version_b: int | str | None = None
) -> VersionDiff:
    """Compare two datasets, or two versions of a dataset. Without a version, a side is the dataset's current state.

    Shards with equal commits aren't read. `a.storage` reads both sides. Raises `UsageError` if a dataset or version
    doesn't exist, or if a correction has removed a version's files. Raises `DamagedDatasetError` for unreadable tables.
    """
    before, after = Dataset.open(a, version_a), Dataset.open(b, version_b)
    totals, others = _SideTotals(before.location), _SideTotals(after.location)
    compared = 0
    for one, other in _by_shard(before.commits(), after.commits()):
        compared += one != other
        totals.add(one, differs=one != other)
        others.add(other, differs=one != other)
    files, schemas = {}, {}
    for side, found in (("a", totals), ("b", others)):
        for kind, schema in SCHEMAS.items():
            schemas[f"{side}_{kind}"] = schema
            if kind in found.files:
                files[f"{side}_{kind}"] = found.files[kind]
    same = _same_catalog(before.manifest, after.manifest)
    with DatasetTables(a, files, schemas, ScratchFolder()) as tables:
        with damage_named():
            tables.connection.execute(_PAIRS)
        why = tables.query(_WHY_REMOVED, [same]).to_pylist()
        return VersionDiff(
            a=_side(before, totals),
            b=_side(after, others),
            shards_compared=compared,
            added=_images(tables, "added"),
            removed=_images(tables, "removed"),
            removed_why={row["reason"]: row["images"] for row in why},
            changed={name: _images(tables, f"{column} AND {_IN_BOTH}") for column, name in _KINDS.items()},
            licenses=_licenses(tables),
            settings=_settings(before.manifest, after.manifest),
        )


def _by_shard(a: Iterator[Commit], b: Iterator[Commit]) -> Iterator[tuple[Commit | None, Commit | None]]:
    """Pair the commits of both sides by shard, in order. A side without the shard has None."""
    one, other = next(a, None), next(b, None)
    while one is not None or other is not None:
        if other is None or (one is not None and one.shard < other.shard):
            yield one, None
            one = next(a, None)
        elif one is None or other.shard < one.shard:
            yield None, other
            other = next(b, None)
        else:
            yield one, other
            one, other = next(a, None), next(b, None)


def _same_catalog(one: DatasetManifest, other: DatasetManifest) -> bool:
    """Return whether ordinals refer to the same images on both sides, judging by first catalog part and shard size."""
    first, second = one.catalog[:1], other.catalog[:1]
    sources = [part.source_sha256 for part in (*first, *second)]
    return len(set(sources)) == 1 and one.images_per_shard == other.images_per_shard


def _side(dataset: Dataset, totals: _SideTotals) -> DiffSide:
    version = dataset.version
    if version is None:
        name = name_now(dataset.location)
        tombstones = len(list_tombstones(dataset.location))
    else:
        name = version.name
        tombstones = sum(path.startswith(f"{TOMBSTONES}/") for path in version.files)
    return DiffSide(
        dataset=str(dataset.location),
        name=dataset.manifest.name,
        version=name,
        shards=totals.shards,
        images=totals.counts["images"],
        masks=totals.counts["masks"],
        rejected={n.removeprefix(REJECTED): c for n, c in sorted(totals.counts.items()) if n.startswith(REJECTED)},
        catalog_rows=sum(part.rows for part in dataset.manifest.catalog),
        tombstones=tombstones,
    )


def _images(tables: DatasetTables, condition: str) -> ChangedImages:
    count = tables.query(f"SELECT count(*) AS n FROM pairs WHERE {condition}").to_pylist()[0]["n"]
    first = tables.query(f"SELECT image_id FROM pairs WHERE {condition} ORDER BY id, image_id LIMIT {EXAMPLES}")
    return ChangedImages(count, tuple(first.column("image_id").to_pylist()))


def _licenses(tables: DatasetTables) -> dict[str, tuple[int, int]]:
    rows = tables.query(
        "SELECT coalesce(license, '') AS license, sum(a) AS a, sum(b) AS b FROM ("
        "SELECT license, 1 AS a, 0 AS b FROM a_images UNION ALL SELECT license, 0, 1 FROM b_images) "
        "GROUP BY 1 HAVING sum(a) <> sum(b) ORDER BY 1"
    )
    return {row["license"]: (int(row["a"]), int(row["b"])) for row in rows.to_pylist()}


def _settings(one: DatasetManifest, other: DatasetManifest) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ, by dotted key. A missing setting is None."""
    before, after = _settings_of(one), _settings_of(other)
    return {key: (_at(before, key), _at(after, key)) for key in differing_keys(before, after)}


def _settings_of(manifest: DatasetManifest) -> dict[str, Any]:
    return {**manifest.model_dump(mode="json", include=set(_SETTINGS)), "config": manifest.config}


def _at(tree: Mapping[str, Any], key: str) -> Any:
    value: Any = tree
    for step in key.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(step)
    return value


def _line(name: str, text: str) -> str:
    return f"{name:<14}{text}"


def _image_lines(name: str, images: ChangedImages, rest: str = "") -> list[str]:
    if not images.count:
        return []
    named = ", ".join(images.first)
    if images.count > len(images.first):
        named += ", …"
    return [_line(f"  {name}", f"{counted(images.count, 'image')}{rest}: {named}")]
