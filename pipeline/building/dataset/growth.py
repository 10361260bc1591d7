"""Comparison of a dataset's catalog with its source, and growth by the source's new rows."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from segmint.catalogs.dataset.growth import CatalogGrowth, compare_catalog
from segmint.catalogs.dataset.manifest import (
    CatalogPart,
    DatasetManifest,
    LatestManifest,
    load_latest_manifest,
    put_with_parts,
)
from segmint.catalogs.dataset.tombstones import read_tombstones, removed_images
from segmint.catalogs.layout import part_path
from segmint.catalogs.schema import AMENDABLE
from segmint.catalogs.source.conform import shown
from segmint.catalogs.source.normalize import NormalizedCatalog
from segmint.infra.errors import UsageError
from segmint.infra.log import get_logger
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.pipeline.config.config import Config


def fit_catalog(config: Config, storage: Storage, latest: LatestManifest, *, grow: bool) -> LatestManifest:
    """Compare the dataset's catalog with `config.catalog`, add new rows if `grow` is set, and return the manifest.

    The source is compared by its bytes first, and by rows only if the bytes differ. New rows become a separate part. If
    several builds race to grow a dataset, one wins. The others continue with its manifest if their catalog is the same.
    Raises `UsageError` if a pinned row is missing or has changed, or if there are new rows and `grow` is false.
    """
    manifest, generation = latest
    output = Location(storage, config.output)
    source = Location(storage, config.catalog)
    digest = source.sha256()
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
    if len(winner.manifest.catalog) == len(manifest.catalog):  # another command corrected a part; nothing has grown
        return fit_catalog(config, storage, winner, grow=grow)
    try:
        return fit_catalog(config, storage, winner, grow=False)
    except UsageError as error:
        raise UsageError(f"another build has grown {config.output} from another catalog: {error}") from error


def ignored_columns(identity: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the columns of a source catalog that a dataset with this identity ignores.

    With `license.respect_opt_out` false, the catalog may use the name `opt_out` for an unrelated column.
    """
    return () if identity.get("license", {}).get("respect_opt_out") else ("opt_out",)


def catalog_part(path: str, catalog: NormalizedCatalog, source: str, first_shard: int) -> CatalogPart:
    """Return the manifest entry of a catalog part. `source` is the SHA-256 of the source catalog."""
    return CatalogPart(
        path=path, rows=catalog.rows, sha256=catalog.sha256, source_sha256=source, first_shard=first_shard
    )


def count_licenses(path: Path) -> dict[str, int]:
    """Count the rows of a local normalized catalog by license. Rows without a license count as `missing`."""
    counts: Counter[str] = Counter()
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=["license"]):
            for entry in batch.column("license").value_counts().to_pylist():
                counts[entry["values"] or "missing"] += entry["counts"]
    return dict(sorted(counts.items()))


def _why_another(config: Config, manifest: DatasetManifest, growth: CatalogGrowth) -> str:
    """Describe the rows that are gone or changed, and the possible fixes."""
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
    if growth.gone or not growth.changed.keys() <= set(AMENDABLE):
        return "A dataset keeps its pinned rows: restore them in the catalog, or choose another output"
    clear = ""
    if any(change.without for change in growth.changed.values()):
        clear = " (pass --clear to also remove values that are empty in the catalog's columns)"
    return (
        "If the dataset's values are right, for example after an amendment, copy them to the catalog. If the catalog's "
        f"are, run `segmint amend {config.output} {config.catalog}`{clear}"
    )
