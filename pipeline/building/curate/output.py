"""Checks of the file to which a catalog made from another one is written."""

import pyarrow.compute as pc
import pyarrow.parquet as pq

from segmint.catalogs.source.conform import shown
from segmint.catalogs.source.files import require_catalog
from segmint.catalogs.source.normalize import NormalizedCatalog
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.uris import ALONE, LOCAL, catalog_folder, is_below, is_catalog_folder, scheme


def check_output(source: Location, target: Location) -> None:
    """Raise `UsageError` if the catalog `source` doesn't exist, or if `target` can't be a catalog made from it."""
    if not target.uri.lower().endswith(".parquet"):
        raise UsageError(f"{target}: the new catalog is a Parquet file; expected a name that ends in .parquet")
    if target.uri == source.uri:
        raise UsageError(f"{target} is the source catalog: choose another file with -o")
    require_catalog(source)
    if is_catalog_folder(source.uri) and is_below(target.uri, source.uri):
        raise UsageError(f"{target} would become a part of the catalog {source}: choose a file outside its folder")


def check_rows(source: Location, target: Location, normalized: NormalizedCatalog) -> None:
    """Raise `UsageError` if the catalog has no rows, or if a URI would resolve to another file at the target."""
    if normalized.rows == 0:
        raise UsageError(f"the catalog {source} has no rows")
    if catalog_folder(source.uri) == catalog_folder(target.uri):
        return
    with pq.ParquetFile(normalized.path) as file:
        for batch in file.iter_batches(columns=["ordinal", "uri"]):
            uris = batch.column("uri")
            moved = pc.invert(pc.match_substring_regex(uris, ALONE))
            if scheme(target.uri) != LOCAL:
                moved = pc.or_(moved, pc.match_substring_regex(uris, "^(/|file://)"))
            first = pc.index(moved, True).as_py()
            if first >= 0:
                row, uri = batch.column("ordinal")[first].as_py() + 1, shown(uris[first].as_py())
                raise UsageError(
                    f"{source}, row {row}, column uri: found {uri}, which would be another file in {target}; write "
                    "the new catalog to the folder of the source catalog's file, or use absolute URIs"
                )
