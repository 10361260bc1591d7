"""The dataset manifest `dataset.json`, in generations that are put if absent and never changed.

When the first build of a dataset starts, it writes `dataset.json`, which is generation 1. Each change to the catalog's
parts adds a generation: `dataset.g2.json`, `dataset.g3.json`, and so on, and so does each new segmenter or column of
`segmint apply`. Readers use the highest one. The first build fixes everything that determines the bytes of its shards.

`id.json` contains a random id. The dataset keeps this id when its manifest changes or its folder is moved. Versions
don't cover `id.json`.

Handle that writers use to share a dataset: its location and the facts that no writer changes.
"""

import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, NamedTuple, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from segmint.catalogs.dataset.commits import CommitLog, reserved_in
from segmint.catalogs.dataset.tombstones import Removals, read_removals
from segmint.catalogs.frozen import ExactCount, Frozen, Sha256
from segmint.catalogs.layout import (
    CATALOG,
    COMMITS,
    DATA_KINDS,
    DATASET_ID,
    MANIFEST,
    READABLE_VERSIONS,
    RESERVATIONS,
    SCHEMA_VERSION,
    canonical_json,
    fingerprint,
    is_known,
    json_sha256,
    parse_part_reservation_name,
    part_reservation_name,
    wrong_fields,
)
from segmint.catalogs.lineage import AppliedColumn, Lineage, StageColumn, TableColumn, trainings
from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import NotFoundError, ObjectTooLargeError
from segmint.infra.storage.location import Location
from segmint.infra.storage.stores import NO_TIME
from segmint.infra.uris import LOCAL, absolute, base_name, local_path, scheme
from segmint.infra.version import VERSION
from segmint.infra.wording import some

GROWING_FIELDS = frozenset({"applied", "applied_columns", "catalog", "licenses"})
"""Fields in which a later generation may differ from the first."""

_BUILD_FIELDS = frozenset({"config_sha256", "policy_date", "weights", "images_per_shard"})
"""Fields that determine the content of every shard, together with the shard's rows and the numerics."""

_SECTIONS = (
    "license",
    "ingest",
    "deidentify",
    "deidentify.faces",
    "deidentify.plates",
    "release",
    "masks",
    "model",
    "segmenter",
    "stages",
)
_ID = re.compile(rb'\{"dataset_id":"([0-9a-f]{32})"\}\n')
_LATER = re.compile(r"dataset\.g(?P<generation>[2-9]|[1-9]\d+)\.json", re.ASCII)


class CatalogPart(Frozen):
    """One part of the normalized catalog. Its first row has the ordinal `first_shard` · `images_per_shard`.

    `sha256` is the hash of this part's file. `source_sha256` is the hash of the catalog file from which the part was
    made.
    """

    path: str = Field(pattern=r"\A[ -~]*\z")  # characters that every store accepts
    rows: ExactCount
    sha256: str
    source_sha256: str
    first_shard: ExactCount


class ModelWeights(Frozen):
    """Weights of the model that produced the masks."""

    name: str
    sha256: str


class ModelTerms(Frozen):
    """License and terms of a model, as an SPDX identifier or a text, and the SHA-256 of its files. None: not stated."""

    license: str | None = Field(default=None, min_length=1)
    terms: str | None = Field(default=None, min_length=1)
    weights_sha256: Sha256 | None = None


class AppliedSegmenter(Frozen):
    """Segmenter that `segmint apply` ran over the finished dataset, and what was stated about its model.

    `name` is its dotted name, or that of SAM's weights. `identity` contains everything that determines its masks.
    """

    name: str
    identity: dict[str, Any]
    model: ModelTerms

    @property
    def sha256(self) -> str:
        """Hash of the identity, which is the column `model` of its masks."""
        return json_sha256(self.identity)


_OMITTED = ("lineage", "segmenter", "adding", "applied", "applied_columns")
"""Fields that the file omits if they are empty."""


class DatasetManifest(Frozen):
    """Content of `dataset.json`. The dataset's first build fixes all fields except those in `GROWING_FIELDS`.

    `config` is the tree of the configuration's identity keys. `numerics` contains everything that determines the last
    bits of the results. Licenses are judged as of `policy_date`. `lineage` is the lineage of `weights` if segmint
    trained them; otherwise, it is empty, and the file omits the field. `stages` lists the columns of custom stages in
    the order of the tables. `published` is False for a working dataset, because nobody has checked its licenses and
    faces. `segmenter` contains what was stated about the segmenter's model; if SAM made the masks, the file omits it.
    `adding` contains the same for each stage that adds masks, by its name; without such stages, the file omits it.
    `applied` contains the segmenters that `segmint apply` ran later, by their hash; without any, the file omits it.
    `applied_columns` lists the columns that it added, in order, including those that it removed again.
    """

    schema_version: int = SCHEMA_VERSION
    name: str
    config: dict[str, Any]
    config_sha256: str
    numerics: dict[str, Any]
    code_version: str
    weights: ModelWeights
    licenses: dict[str, Any] = Field(default_factory=dict)
    catalog: tuple[CatalogPart, ...]
    images_per_shard: int = Field(gt=0, lt=1 << 53)
    policy_date: date
    published: bool = True
    stages: tuple[StageColumn, ...] = ()
    lineage: Lineage = ()
    segmenter: ModelTerms | None = None
    adding: dict[str, ModelTerms] = Field(default_factory=dict)
    applied: dict[str, AppliedSegmenter] = Field(default_factory=dict)
    applied_columns: tuple[AppliedColumn, ...] = ()

    @field_validator("config")
    @classmethod
    def _sections(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Reject sections of the configuration that aren't objects, because every reader indexes into them."""
        for name in _SECTIONS:
            part: Any = config
            for key in name.split("."):
                part = part.get(key, {})
                if not isinstance(part, dict):
                    raise ValueError(f"{name}: expected an object, not {type(part).__name__}")
        for name, stage in config.get("stages", {}).items():
            if not isinstance(stage, dict):
                raise ValueError(f"stages.{name}: expected an object, not {type(stage).__name__}")
        return config

    @model_validator(mode="after")
    def _one_column_each(self) -> Self:
        if len({column.name for column in self.columns}) < len(self.columns):
            raise ValueError("two stages have the same name")
        return self

    @property
    def columns(self) -> tuple[StageColumn, ...]:
        """Columns of custom stages: those of the build, and those that were applied and not removed."""
        return (*self.stages, *(column for column in self.applied_columns if not column.removed))

    @property
    def round(self) -> int:
        """Number of training runs that led to the weights of the model that produced the masks."""
        return trainings(self.lineage)

    @property
    def build_sha256(self) -> str:
        """Hash of the configuration, policy date, weights, and shard size. Each commit records this hash."""
        return json_sha256(self.model_dump(mode="json", include=set(_BUILD_FIELDS)))

    @property
    def numerics_fingerprint(self) -> str:
        """Fingerprint of the numerics, twelve hexadecimal digits. Each commit records this fingerprint."""
        return fingerprint(self.numerics)

    @property
    def shards(self) -> int:
        """Number of shards in the dataset, committed or not."""
        if not self.catalog:
            return 0
        last = self.catalog[-1]
        return last.first_shard + -(-last.rows // self.images_per_shard)

    def ordinals(self, shard: int) -> tuple[int, int]:
        """Return the ordinals [start, stop) of a shard. Raises `ValueError` if the dataset doesn't have the shard."""
        for part in self.catalog:
            first = part.first_shard * self.images_per_shard
            start = shard * self.images_per_shard
            if first <= start < first + part.rows:
                return start, min(start + self.images_per_shard, first + part.rows)
        raise ValueError(f"there is no shard {shard}: the dataset has {self.shards}")

    def to_json(self) -> bytes:
        omitted = {name for name in _OMITTED if not getattr(self, name)}
        return canonical_json(self.model_dump(mode="json", exclude=omitted))

    @classmethod
    def from_json(cls, data: bytes, where: str = MANIFEST) -> "DatasetManifest":
        """Parse a manifest's file.

        Raises `UsageError`, which names `where`, if the file is invalid or has another schema version.
        """
        try:
            value = json.loads(data)
            version = value.get("schema_version") if isinstance(value, dict) else None
            if type(version) is not int or version not in READABLE_VERSIONS:
                raise UsageError(_other_format(where, version, value))
            canonical_json(value)  # rejects values that JSON can't represent: NaN, infinities, lone surrogates
            manifest = cls.model_validate(value)
            manifest.to_json()  # rejects nesting that is too deep to be compared
            return manifest
        except ValidationError as error:
            raise UsageError(f"{where} is not a dataset's manifest: {wrong_fields(error)}") from error
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where} is not a dataset's manifest: {str(error)[:200]}") from error


def _other_format(where: str, version: object, value: object) -> str:
    """Return the message for a manifest with an unsupported `schema_version`."""
    if type(version) is not int:
        return f"{where} is not a dataset's manifest: its schema_version is {version!r}, expected {SCHEMA_VERSION}"
    writer = value.get("code_version") if isinstance(value, dict) else None
    written_by = f"segmint {writer}" if isinstance(writer, str) and len(writer) < 40 else "the segmint that wrote it"
    known = " and ".join(map(str, READABLE_VERSIONS))
    return (
        f"{where} has schema_version {version}, and segmint {VERSION} reads only {known}: open the dataset "
        f"with {written_by}, or build it again with this version in an empty folder"
    )


class LatestManifest(NamedTuple):
    """A manifest with its generation, counted from 1."""

    manifest: DatasetManifest
    generation: int


def manifest_name(generation: int) -> str:
    """Return the file name of a generation: `dataset.json` for the first, then `dataset.g2.json`, and so on."""
    return MANIFEST if generation == 1 else f"dataset.g{generation}.json"


def parse_manifest_name(name: str) -> int | None:
    """Return the generation of a manifest's file, or None if the name is not a manifest's."""
    if name == MANIFEST:
        return 1
    match = _LATER.fullmatch(name)
    return None if match is None else int(match["generation"])


def manifest_generations(dataset: Location) -> list[int]:
    """List the dataset's root once, and return the generations of its manifest, ascending."""
    numbers = (parse_manifest_name(entry.name) for entry in dataset.list())
    return sorted(number for number in numbers if number is not None)


def read_generation(dataset: Location, generation: int) -> DatasetManifest | None:
    """Read one generation of a dataset's manifest. Returns None if it doesn't exist."""
    file = dataset / manifest_name(generation)
    try:
        data = file.read()
    except NotFoundError:
        return None
    return DatasetManifest.from_json(data, str(file))


def read_latest_manifest(dataset: Location) -> LatestManifest | None:
    """Read the latest manifest and its generation. Returns None if there is no dataset."""
    for generation in reversed(manifest_generations(dataset)):
        manifest = read_generation(dataset, generation)
        if manifest is not None:
            return LatestManifest(manifest, generation)
    return None


def read_manifest(dataset: Location) -> DatasetManifest | None:
    """Read the latest manifest. Returns None if there is no dataset."""
    latest = read_latest_manifest(dataset)
    return None if latest is None else latest.manifest


def load_latest_manifest(dataset: Location) -> LatestManifest:
    """Read the latest manifest and its generation. Raises `UsageError` if there is no dataset."""
    latest = read_latest_manifest(dataset)
    if latest is None:
        raise no_manifest(dataset)
    return latest


def dataset_files(dataset: Location) -> list[str]:
    """Return the paths of all commits, data files, catalog parts, tombstones, fingerprints, and versions.

    This lists each of their folders once.
    """
    folders = (COMMITS, CATALOG, *DATA_KINDS, "tombstones", "fingerprints", "versions")
    paths = (f"{folder}/{entry.name}" for folder in folders for entry in (dataset / folder).list())
    return [path for path in paths if is_known(path)]


def is_dataset(folder: Location) -> bool:
    """Return whether a folder contains files of a segmint dataset, even if its manifest is missing."""
    return bool(manifest_generations(folder) or dataset_files(folder))


def no_manifest(dataset: Location) -> UsageError:
    """Return the error for a folder without a manifest, which may be a damaged dataset or not a dataset at all."""
    if files := dataset_files(dataset):
        return UsageError(f"{dataset} has no {MANIFEST}, but {some(files)}. Run `segmint repair {dataset}`")
    if dataset.name.endswith((".yaml", ".yml")):
        return UsageError(f"{dataset} is a configuration: expected a dataset's folder, such as its `output`")
    return UsageError(f"{dataset} is not a segmint dataset: no {MANIFEST}. Check the path, or build a dataset there")


def load_manifest(dataset: Location) -> DatasetManifest:
    """Read the latest manifest. Raises `UsageError` if there is no dataset."""
    return load_latest_manifest(dataset).manifest


def require_published(manifest: DatasetManifest, dataset: Location, action: str) -> None:
    """Raise `UsageError` if a dataset is a working dataset, because nobody has checked its licenses or faces.

    `action` describes the refused action in the message, such as `signed`.
    """
    if not manifest.published:
        raise UsageError(
            f"{dataset} can't be {action}: it's the working dataset of a folder, and nobody checked its licenses or "
            "faces. To publish images, build a dataset with `segmint build`."
        )


def name_of(manifest: DatasetManifest | None, uri: str) -> str:
    """Return the dataset's name from its manifest.

    Without a manifest, return the name of the folder or prefix `uri`.
    """
    return base_name(absolute(uri)) if manifest is None else manifest.name


def put_manifest(dataset: Location, manifest: DatasetManifest, generation: int) -> bool:
    """Write a generation of a dataset's manifest if it doesn't exist yet. Returns False if a different one exists.

    The caller must first put the files that the manifest names.
    """
    return (dataset / manifest_name(generation)).put_if_absent(manifest.to_json())


def read_dataset_id(dataset: Location) -> str | None:
    """Return the random id of a dataset, 32 hexadecimal digits, or None if `id.json` is missing or damaged."""
    try:
        match = _ID.fullmatch((dataset / DATASET_ID).read(max_bytes=1024))
    except (NotFoundError, ObjectTooLargeError):
        return None
    return None if match is None else match[1].decode()


def dataset_keys(dataset: Location) -> tuple[str, ...]:
    """Return the names of a dataset's folders in caches: first the one to use, then another one to clean up.

    A cache uses the dataset's id as the name of the dataset's folder. Before the dataset had an id, its folder was
    named by twelve hexadecimal digits: a hash of the dataset's location, after links and `..` are resolved. If the id
    is missing or damaged, this function returns only the hash.
    """
    local = scheme(dataset.uri) == LOCAL
    place = fingerprint(os.path.realpath(local_path(dataset.uri)) if local else dataset.uri.rstrip("/"))
    number = read_dataset_id(dataset)
    return (place,) if number is None else (number, place)


def put_dataset_id(dataset: Location) -> None:
    """Write a random id to `id.json` unless the file exists.

    If several writers do this at the same time, the first one wins.
    """
    if not (dataset / DATASET_ID).exists():
        (dataset / DATASET_ID).put_if_absent(canonical_json({"dataset_id": secrets.token_hex(16)}))


def put_with_parts(dataset: Location, manifest: DatasetManifest, generation: int, parts: Mapping[str, Path]) -> bool:
    """Put new catalog parts, and then the generation of the manifest that names them.

    Returns whether this writer won. `parts` maps paths below the dataset to local files. A reservation protects the
    parts from deletion until the generation exists. If another writer puts the generation first, a sweep deletes the
    parts later.
    """
    paths = sorted(parts)
    reservation = dataset / RESERVATIONS / part_reservation_name(generation, fingerprint(paths))
    reservation.put_if_absent(canonical_json({"generation": generation, "paths": paths}))
    for path, file in parts.items():
        (dataset / path).put_file(file)
    won = put_manifest(dataset, manifest, generation)
    if won:
        for path, file in parts.items():
            if not (dataset / path).exists():  # deleted by a process that checked before the reservation was put
                (dataset / path).put_file(file)
    delete_part_reservations(dataset, generation)
    return won


def delete_part_reservations(dataset: Location, generation: int) -> None:
    """Delete the reservations of catalog parts for this and earlier generations.

    The manifest's `generation` must exist.
    """
    for entry in (dataset / RESERVATIONS).list():
        reserved = parse_part_reservation_name(entry.name)
        if reserved is not None and reserved <= generation:
            (dataset / RESERVATIONS / entry.name).delete()


def parts_in_use(dataset: Location, since: datetime = NO_TIME) -> frozenset[str]:
    """Return the paths of catalog parts that must not be deleted: those that the manifest names, and reserved ones.

    A reservation counts if it is for a generation after the latest and was made at `since` or later. A writer deletes
    its reservation only after it has put the manifest. Therefore, this function reads the reservations before the
    manifest. To delete parts, list them first, then call this function, and delete the other parts immediately
    afterward.

    Raises `UsageError` if the dataset doesn't exist, and `DamagedDatasetError` if a reservation can't be read.
    """
    reservations = [
        (generation, reserved_in(dataset / RESERVATIONS / entry.name))
        for entry in (dataset / RESERVATIONS).list()
        if (generation := parse_part_reservation_name(entry.name)) is not None and not NO_TIME < entry.modified < since
    ]
    manifest, latest = load_latest_manifest(dataset)
    named = frozenset(part.path for part in manifest.catalog)
    return named.union(*(paths for generation, paths in reservations if generation > latest))


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
