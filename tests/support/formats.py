"""Datasets of format 1, as segmint 0.1.0 wrote them, and such whose manifest has risen to the newest format."""

import tarfile
from pathlib import Path

import pyarrow.parquet as pq

from segmint.catalogs.dataset.manifest import load_latest_manifest, put_manifest
from segmint.catalogs.layout import SCHEMA_VERSION
from segmint.infra.version import VERSION
from segmint.operators.schemas import SCHEMAS_OF
from tests.support.locations import location_of

ARCHIVE = Path(__file__).resolve().parents[1] / "end_to_end" / "version-1.tar.xz"


def unpack_format_1(folder: Path) -> Path:
    """Unpack the datasets of format 1: `sources`, `finished`, `half-built` and `corrected`."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder / "version-1"


def raise_format(dataset: Path) -> None:
    """Put the next generation of a dataset's manifest, which says the newest format, as a later command will."""
    location = location_of(dataset)
    manifest, generation = load_latest_manifest(location)
    risen = manifest.model_copy(update={"schema_version": SCHEMA_VERSION, "code_version": VERSION})
    assert put_manifest(location, risen, generation + 1)


def format_of(file: Path) -> int:
    """The format of a table of images or masks."""
    schema = pq.read_schema(file)
    (found,) = (version for version, schemas in SCHEMAS_OF.items() if schema.equals(schemas[file.parent.name]))
    return found
