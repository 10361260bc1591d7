"""Creates the dataset of a build, or opens it, checks its configuration and catalog, and adds the source's new rows."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from segmint.catalogs.dataset.commits import CommitLog, write_shards_index
from segmint.catalogs.dataset.growth import CatalogGrowth, compare_catalog
from segmint.catalogs.dataset.manifest import (
    CatalogPart,
    DatasetHandle,
    DatasetManifest,
    LatestManifest,
    ModelWeights,
    dataset_files,
    load_latest_manifest,
    load_manifest,
    put_dataset_id,
    put_manifest,
    put_with_parts,
    read_latest_manifest,
)
from segmint.catalogs.dataset.sweep import missing_files
from segmint.catalogs.dataset.tombstones import read_removals, read_tombstones, removed_images
from segmint.catalogs.layout import (
    MANIFEST,
    SCHEMA_VERSION,
    DamagedDatasetError,
    ShardPart,
    ShardSpan,
    choose_shards,
    differing_keys,
    is_part_path,
    json_sha256,
    part_path,
)
from segmint.catalogs.lineage import Lineage, lineage_of
from segmint.catalogs.parquet import AMENDABLE
from segmint.catalogs.source.conform import shown
from segmint.catalogs.source.files import catalog_sha256, joined, require_catalog, take_rows
from segmint.catalogs.source.normalize import NormalizedCatalog, normalize
from segmint.infra.arrays import Ints
from segmint.infra.assets import AUTO, default_weights, plain_name, resolve, resolve_default, sha256_of
from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.log import get_logger
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location, probe
from segmint.infra.storage.storage import Storage
from segmint.infra.version import VERSION
from segmint.infra.wording import some
from segmint.operators.audit.privacy import try_detector_files
from segmint.operators.opt_out import NO_LISTS, RefusalLists
from segmint.operators.segment.numerics import Numerics
from segmint.operators.shards.write import ShardTask
from segmint.pipeline.building.first_numerics import (
    first_device,
    first_numerics,
    first_release_numerics,
    require_gpu_for_bf16,
    try_segmenters,
)
from segmint.pipeline.config.config import Config, as_pinned, identity, model_terms, read_listed, read_refused


@dataclass(frozen=True)
class BuildDataset:
    """Dataset with its manifest, for use by a build."""

    location: Location
    manifest: DatasetManifest
    weights: Path | None  # this machine's copy of SAM's checkpoint; None if a segmenter makes the masks
    generation: int = 1  # generation of the manifest, or an earlier one
    refused: RefusalLists = NO_LISTS

    @property
    def numerics(self) -> Numerics:
        """Numerics that determine the exact bits of this dataset."""
        return Numerics.recorded(self.manifest.numerics)

    def sam_weights(self) -> Path:
        """Return this machine's copy of SAM's checkpoint. Don't call this if a segmenter makes the masks."""
        assert self.weights is not None
        return self.weights

    @property
    def rows(self) -> int:
        """Number of rows in all parts of the normalized catalog."""
        return sum(part.rows for part in self.manifest.catalog)

    def shards(self, wanted: tuple[int, int] | ShardPart | None = None) -> range:
        """Return the selected shards: the range `[first, last)`, a part of all shards, or all. See `choose_shards`."""
        return choose_shards(self.manifest.shards, wanted)

    def span(self, shard: int) -> ShardSpan:
        """Return a shard with its ordinals."""
        return ShardSpan(shard, *self.manifest.ordinals(shard))

    def spans(self, shards: Sequence[int]) -> list[ShardSpan]:
        """Return shards with their ordinals."""
        return [self.span(shard) for shard in shards]

    def read_runs(self, runs: Sequence[tuple[int, int]], columns: Sequence[str] | None = None) -> pa.Table:
        """Read the catalog rows of several runs of ordinals `[start, stop)`, in the order of `runs`.

        If `columns` is given, only these columns are read. Each part of the catalog is opened once.
        """
        ordinals = np.concatenate([np.arange(0), *(np.arange(start, stop) for start, stop in runs)])
        order = np.argsort(ordinals, kind="stable")
        table = self._take(ordinals[order], columns)
        return (
            table if np.array_equal(order, np.arange(len(order))) else table.take(np.argsort(order))
        ).combine_chunks()

    def _take(self, ordinals: Ints, columns: Sequence[str] | None) -> pa.Table:
        parts = self.manifest.catalog
        while True:
            try:
                return joined(take_rows(self.location / part.path, ordinals, columns) for part in parts)
            except NotFoundError:
                newer = load_manifest(self.location).catalog
                if newer == parts:
                    raise
                parts = newer  # a correction replaced a part and removed the old one

    def shard_task(self, config: Config, span: ShardSpan, handle: DatasetHandle | None = None) -> ShardTask:
        """Return a shard's writer task. To avoid creating the same handle for every shard, pass `handle`."""
        return ShardTask(
            shard=span.shard,
            start=span.start,
            stop=span.stop,
            dataset=handle or self.handle(config),
            numerics=self.numerics.fingerprint,
            max_reject_ratio=config.max_reject_ratio,
            max_faults=config.max_faults,
        )

    def handle(self, config: Config) -> DatasetHandle:
        """Return a handle for writers.

        The handle waits during outages and records the manifest generation of the rows.
        """
        storage = Storage(config.storage, outage_s=config.outage_timeout_s)
        return DatasetHandle.of(
            Location(storage, self.location.uri), LatestManifest(self.manifest, self.generation), config.catalog
        )

    def check_whole(self, shards: range) -> None:
        """Raise `DamagedDatasetError` for damaged takedown records, a missing or empty file, or a foreign commit."""
        read_removals(self.location)
        log = CommitLog(self.location)
        problems = [f"{path}: no such file, or an empty one" for path in missing_files(self.location, shards)]
        for commit in log.read_latest_of(list(log.committed().items())[:1]):  # only one; an audit compares all
            if commit.build_sha256 != self.manifest.build_sha256:
                problems.append(f"the commit of shard {commit.shard}: its build_sha256 isn't the manifest's")
        if problems:
            raise DamagedDatasetError(f"{self.location}: {some(problems)}. Run `segmint repair {self.location}`")

    def write_index(self) -> None:
        """Write the WebDataset index if every shard is committed."""
        if len(CommitLog(self.location).committed()) == self.manifest.shards:
            write_shards_index(self.location, self.manifest.name)


def open_or_create(
    config: Config,
    storage: Storage,
    *,
    grow: bool = False,
    shards: tuple[int, int] | ShardPart | None = None,
    require_room: Callable[[Config, BuildDataset], None] | None = None,
) -> BuildDataset:
    """Open the dataset at `config.output`. If the dataset doesn't exist, create it, unless `shards` names no shard.

    With `grow`, new rows of the catalog are added to the dataset. Raises `UsageError` if the dataset was created with a
    different configuration or catalog, if a bundled detector isn't installed, or if a custom stage is invalid. The
    error lists the keys or rows that differ. Before it creates a dataset, this function tries each detector file on a
    blank image, and each segmenter on a control image. It raises `UsageError` if one of them fails. Just before it
    writes the dataset, it calls `require_room` with it, which may raise the same.
    """
    find_file = partial(resolve, mirror=config.assets, storage=storage)
    config.deidentify.require_bundled(find_file)
    config.load_stages()
    require_catalog(Location(storage, config.catalog))
    read_listed(config)
    refused = read_refused(config)
    output = Location(storage, config.output)
    latest = read_latest_manifest(output)
    if latest is not None and latest.generation > 1 and not (output / MANIFEST).exists():
        raise DamagedDatasetError(
            f"{output / MANIFEST} is missing, although later generations exist. Run `segmint repair {output}`"
        )
    if latest is None:
        require_gpu_for_bf16(config)
    weights = None
    if config.segmenter is None:
        asked = config.model.weights
        config = name_weights(config, None if latest is None else latest.manifest, first_device)
        weights = resolve_default(config.model.weights, asked, "model.weights", config.assets, storage)
    if latest is None:
        try_detector_files(config.deidentify, find_file)
        try_segmenters(config)
        latest = begin(config, output, weights, shards, require_room)
    check_begun_alike(config, storage, latest.manifest, weights)
    put_dataset_id(output)
    manifest, generation = fit_catalog(config, storage, latest, grow=grow)
    return BuildDataset(output, manifest, weights, generation, refused)


def name_weights(config: Config, begun: DatasetManifest | None, device: Callable[[Config], str]) -> Config:
    """Return the configuration with `model.weights: auto` replaced by a name.

    An existing dataset keeps the name of its weights. For a new dataset (`begun` is None), the kind of device that
    `device` returns determines the name. Raises `UsageError` if the dataset's weights aren't a published file.
    """
    if config.model.weights != AUTO:
        return config
    name = default_weights(device(config)) if begun is None else as_pinned(config, begun.config).model.weights
    if begun is not None and name == AUTO:
        raise UsageError(
            f"{config.output} was created with the weights {begun.weights.name!r}, which aren't a published file: set "
            "model.weights to their path or URI"
        )
    return config.model_copy(update={"model": config.model.model_copy(update={"weights": name})})


def require_rows(config: Config, rows: int) -> None:
    """Raise `UsageError` if the catalog has no rows."""
    if rows == 0:
        raise UsageError(f"the catalog {config.catalog} has no rows")


def check_begun_alike(config: Config, storage: Storage, begun: DatasetManifest, weights: Path | None) -> None:
    """Raise `UsageError` if a dataset's identity or numerics differ from `config`, and list the keys that differ.

    Datasets of an earlier format, and those that were created in bf16 on a CPU, can only be read and corrected.
    """
    if begun.schema_version != SCHEMA_VERSION:
        raise UsageError(
            f"{config.output} has schema_version {begun.schema_version}, which segmint {VERSION} reads and corrects, "
            f"but doesn't build: continue with segmint {begun.code_version}, or choose another output"
        )
    numerics = Numerics.recorded(begun.numerics)
    if (numerics.device, numerics.precision) == ("cpu", "bf16"):
        raise UsageError(
            f"{config.output} was created in bf16 on a CPU, which segmint {VERSION} reads and corrects, but doesn't "
            f"build: continue with segmint {begun.code_version}, or choose another output"
        )
    _check_identity(config, storage, begun, weights)
    _check_numerics(config, numerics)


def begin(
    config: Config,
    output: Location,
    weights: Path | None,
    shards: tuple[int, int] | ShardPart | None = None,
    require_room: Callable[[Config, BuildDataset], None] | None = None,
) -> LatestManifest:
    """Pin the catalog, configuration, and numerics. If two drivers race, both use the winner's manifest.

    If this function refuses something, not even the folder `output` is created. Raises `DamagedDatasetError` if
    `output` contains files of a dataset but no manifest.
    """
    terms = None if config.segmenter is None else model_terms(config.segmenter)
    adding = {}
    for stage in config.stages:
        spec = stage.load()
        if spec.masks:
            adding[spec.name] = model_terms(stage)
    source = Location(output.storage, config.catalog)
    source_sha256 = catalog_sha256(
        source
    )  # first, so that `fit_catalog` compares the rows if the source changes meanwhile
    with ScratchFolder() as folder:
        catalog = normalize(source, Path(folder) / "part.parquet", ignored=ignored_columns(identity(config)))
        require_rows(config, catalog.rows)
        require_prompts(config, there="prompts" in pq.read_schema(catalog.path).names)
        path = part_path(0, catalog.sha256)
        remains = [each for each in dataset_files(output) if each != path]  # an interrupted start may leave `path`
        latest = read_latest_manifest(output)
        if latest is not None:
            return latest  # another driver was faster
        if remains:
            raise DamagedDatasetError(
                f"{output} contains {some(remains)}, but no {MANIFEST}, so the settings of these files are unknown. "
                + ("Delete it if a build left it" if all(map(is_part_path, remains)) else f"Restore {MANIFEST}")
                + f", or choose another output. `segmint repair {output}` lists the damage"
            )
        tree = identity(config, _hashes(config, output.storage, weights))
        lineage: Lineage = ()
        if weights is None:
            segmenter = config.load_stages()[-1]
            made_by = ModelWeights(name=segmenter.stage, sha256=segmenter.sha256)
            numerics = first_release_numerics(config, segmenter.sha256)
        else:
            made_by = ModelWeights(name=plain_name(config.model.weights), sha256=sha256_of(weights))
            numerics = first_numerics(config, weights)
            lineage = lineage_of(config.model.weights, made_by.sha256, output.storage)
        part = catalog_part(path, catalog, source_sha256, first_shard=0)
        manifest = DatasetManifest(
            name=config.name,
            config=tree,
            config_sha256=json_sha256(tree),
            numerics=numerics.to_dict(),
            code_version=VERSION,
            weights=made_by,
            licenses=count_licenses(catalog.path),
            catalog=(part,),
            images_per_shard=config.images_per_shard,
            policy_date=config.license.policy_date or datetime.now(UTC).date(),
            lineage=lineage,
            segmenter=terms,
            adding=adding,
            stages=tuple(spec.column for spec in config.load_stages() if spec.column is not None),
        )
        choose_shards(manifest.shards, shards)  # raises if there are none
        if require_room is not None:
            require_room(config, BuildDataset(output, manifest, weights))
        probe(output)
        (output / path).put_file(catalog.path)
    if put_manifest(output, manifest, 1):
        return LatestManifest(manifest, 1)
    latest = read_latest_manifest(output)
    if latest is None:
        raise SegmintError(f"{config.output}: {MANIFEST} can be neither written nor read. Run the build again")
    return latest


def _check_identity(config: Config, storage: Storage, begun: DatasetManifest, weights: Path | None) -> None:
    before = begun.config
    now = identity(as_pinned(config, before), _hashes(config, storage, weights))
    differences = [f"{key}: {_leaf(before, key)} before, {_leaf(now, key)} now" for key in differing_keys(before, now)]
    if differences:
        raise UsageError(
            f"{config.output} was created with a different configuration, so its shards would be inconsistent:\n  "
            + "\n  ".join(differences)
            + "\nRestore these keys, or choose another output"
        )


def _leaf(tree: Mapping[str, Any], key: str) -> str:
    value: Any = tree
    for step in key.split("."):
        if not isinstance(value, Mapping) or step not in value:
            return "absent"
        value = value[step]
    return repr(value)


def _check_numerics(config: Config, begun: Numerics) -> None:
    wanted = {
        "model.device": (config.model.device, begun.device),
        "model.precision": (config.model.precision, begun.precision),
        "model.decoder_precision": (config.model.decoder_precision, begun.decoder_precision or "auto"),
        "model.encoder": (config.model.encoder, begun.encoder),
        "model.kernels": (config.model.kernels, begun.kernels or config.model.kernels),  # "" with a GPU
        "model.threads": (config.model.threads, begun.threads),
        "masks.points_per_chunk": (config.masks.points_per_chunk, begun.points_per_chunk),
        "deidentify.device": ("cuda" if config.detectors_share else "cpu", "cuda" if begun.detectors else "cpu"),
    }
    differences = [
        f"{key}: {before!r} before, {now!r} now" for key, (now, before) in wanted.items() if now not in ("auto", before)
    ]
    if differences:
        raise UsageError(
            f"{config.output} was created with different numerics, so its masks would differ in their last bits:\n  "
            + "\n  ".join(differences)
            + "\nRestore these keys, set them to auto, or choose another output"
        )


def _hashes(config: Config, storage: Storage, weights: Path | None) -> dict[str, str]:
    """Return the SHA-256 of each model or detector file, keyed by its name in the configuration."""
    known = {} if weights is None else {config.model.weights: sha256_of(weights)}
    files = [*config.deidentify.detector_files.values(), config.deidentify.left_alone]
    for file in filter(None, files):
        known[file] = sha256_of(resolve(file, mirror=config.assets, storage=storage))
    return known


def fit_catalog(config: Config, storage: Storage, latest: LatestManifest, *, grow: bool) -> LatestManifest:
    """Compare the dataset's catalog with `config.catalog`, add new rows if `grow` is set, and return the manifest.

    The rows are only compared if the bytes of the sources differ. New rows become a separate part of the catalog. If
    several builds race to grow a dataset, one build wins. The others continue with the winner's manifest if they have
    the same catalog. Raises `UsageError` if a pinned row is missing or has changed, or if there are new rows and `grow`
    is false.
    """
    manifest, generation = latest
    output = Location(storage, config.output)
    source = Location(storage, config.catalog)
    digest = catalog_sha256(source)
    if digest == manifest.catalog[-1].source_sha256:
        return latest
    first_shard = manifest.shards
    with ScratchFolder() as folder:
        growth = compare_catalog(
            source,
            Path(folder) / "part.parquet",
            parts=[output / part.path for part in manifest.catalog],
            first_ordinal=first_shard * manifest.images_per_shard,
            taken=removed_images(read_tombstones(output)).values(),
            ignored=ignored_columns(manifest.config),
        )
        if not growth.keeps_all:
            raise UsageError(_why_another(config, manifest, growth))
        if growth.new.rows == 0:
            return latest
        if not grow:
            raise UsageError(
                f"the catalog {config.catalog} has {growth.new.rows} new rows that are not in {config.output}: "
                "pass --grow to add them as new shards, or use the catalog as it was before"
            )
        path = part_path(len(manifest.catalog), growth.new.sha256)
        licenses = Counter(manifest.licenses) + Counter(count_licenses(growth.new.path))
        part = catalog_part(path, growth.new, digest, first_shard)
        grown = manifest.model_copy(
            update={"catalog": (*manifest.catalog, part), "licenses": dict(sorted(licenses.items()))}
        )
        won = put_with_parts(output, grown, generation + 1, {path: growth.new.path})
    if won:
        get_logger("build").info("grown", dataset=config.output, rows=part.rows, first_shard=first_shard)
        return LatestManifest(grown, generation + 1)
    winner = load_latest_manifest(output)
    if len(winner.manifest.catalog) == len(manifest.catalog):  # another command corrected a part, but nobody added rows
        return fit_catalog(config, storage, winner, grow=grow)
    try:
        return fit_catalog(config, storage, winner, grow=False)
    except UsageError as error:
        raise UsageError(f"another build has grown {config.output} from another catalog: {error}") from error


def ignored_columns(identity: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the columns of a source catalog that a dataset with this identity ignores.

    If `license.respect_opt_out` is false, the catalog may contain an unrelated column named `opt_out`, and if no
    segmenter needs prompts, an unrelated column named `prompts`.
    """
    ignored = []
    if not identity.get("license", {}).get("respect_opt_out"):
        ignored.append("opt_out")
    if not wants_prompts(identity):
        ignored.append("prompts")
    return tuple(ignored)


def wants_prompts(identity: Mapping[str, Any]) -> bool:
    """Return whether a segmenter of a dataset with this identity needs the catalog's prompts."""
    segmenters = [identity.get("segmenter", {}), *identity.get("stages", {}).values()]
    return any(each.get("wants_prompts") for each in segmenters)


def require_prompts(config: Config, *, there: bool) -> None:
    """Raise `UsageError` if a segmenter needs prompts and none are `there` in any row of the catalog."""
    if wants_prompts(identity(config)) and not there:
        raise UsageError(
            f"the segmenter needs prompts, but no row of {config.catalog} has any: add boxes or points with `segmint "
            "catalog prompts`, or write the column prompts"
        )


def catalog_part(path: str, catalog: NormalizedCatalog, source: str, first_shard: int) -> CatalogPart:
    """Return the manifest entry of a catalog part. `source` is the SHA-256 of the source catalog."""
    return CatalogPart(
        path=path, rows=catalog.rows, sha256=catalog.sha256, source_sha256=source, first_shard=first_shard
    )


def count_licenses(path: Path) -> dict[str, int]:
    """Count the rows of a local normalized catalog by license. Count rows without a license as `missing`."""
    counts: Counter[str] = Counter()
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=["license"]):
            for entry in batch.column("license").value_counts().to_pylist():
                counts[entry["values"] or "missing"] += entry["counts"]
    return dict(sorted(counts.items()))


def _why_another(config: Config, manifest: DatasetManifest, growth: CatalogGrowth) -> str:
    """Describe the rows that are missing or have changed, and how to fix them."""
    rows = sum(part.rows for part in manifest.catalog)
    differences = []
    if growth.gone:
        differences.append(
            f"{growth.gone} of {rows} rows are gone; the first has the image_id {shown(growth.first_gone)}"
        )
    differences += [
        f"{change.rows} of {rows} rows have another {column}; the first has the image_id {shown(change.image_id)}: "
        f"{shown(change.before)} before, {shown(change.now)} now"
        for column, change in growth.changed.items()
    ]
    return (
        f"the catalog {config.catalog} differs from the one that {config.output} was built from:\n  "
        + "\n  ".join(differences)
        + "\n"
        + _what_to_do(config, growth)
    )


def _what_to_do(config: Config, growth: CatalogGrowth) -> str:
    if growth.gone:
        return (
            "A dataset keeps its rows until a takedown: restore them in the catalog, or the photographs that it was "
            f"scanned from. To remove them, run `segmint takedown {config.output}`"
        )
    if not growth.changed.keys() <= set(AMENDABLE):
        return "A dataset keeps its pinned rows: restore them in the catalog, or choose another output"
    clear = ""
    if any(change.without for change in growth.changed.values()):
        clear = " (pass --clear to also remove values that are empty in the catalog's columns)"
    return (
        "If the dataset's values are right, for example after an amendment, copy them to the catalog. If the catalog's "
        f"are, run `segmint amend {config.output} {config.catalog}`{clear}"
    )
