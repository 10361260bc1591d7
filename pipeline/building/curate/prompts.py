"""Boxes of a COCO file or YOLO labels as the column `prompts` of a catalog: `segmint catalog prompts`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from segmint.catalogs.parquet import RowGroupWriter
from segmint.catalogs.schema import SOURCE
from segmint.catalogs.source.files import unchanged
from segmint.catalogs.source.normalize import normalize, open_database
from segmint.catalogs.source.whole import WholeCatalog
from segmint.infra.errors import UsageError
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.location import Location, put_new_file, refuse_existing
from segmint.infra.uris import only_path
from segmint.infra.wording import counted, not_checked_lines
from segmint.operators.annotations.boxes import BoxFile
from segmint.operators.annotations.image import label_text
from segmint.pipeline.building.curate.output import check_output, check_rows

_TOGETHER = 1024  # rows whose prompts are converted together


@dataclass
class PromptedCatalog:
    """Catalog with prompts, and what was left out."""

    catalog: str
    rows: int = 0
    images: int = 0  # rows with prompts, even if their list is empty
    prompts: int = 0
    crowds: int = 0
    unreadable: Sequence[str] = ()

    def lines(self) -> list[str]:
        lines = [f"{self.catalog}: {counted(self.prompts, 'prompt')} for {self.images:,} of {self.rows:,} rows"]
        if self.crowds:
            lines.append(f"left out: {counted(self.crowds, 'crowd')}")
        return [*lines, *not_checked_lines(self.unreadable)]


def add_prompts(source: Location, target: Location, boxes: BoxFile, *, with_endings: bool) -> PromptedCatalog:
    """Write the catalog `source` with the boxes as prompts to `target`. Other rows get none.

    An image belongs to the row whose URI or image_id ends with its name, or the other way around. Without
    `with_endings`, the URI's and the image_id's file name endings don't count. Raises `UsageError` if the catalog is
    invalid or has prompts, if an image fits no row or several, or if `target` exists or isn't next to `source`.
    """
    check_output(source, target)
    refuse_existing(target)
    whole = WholeCatalog(source)
    if "prompts" in whole.schema.names:
        raise UsageError(f"{source} already has the column prompts: remove it")
    schema = whole.schema.append(SOURCE.field("prompts"))
    result = PromptedCatalog(str(target), crowds=boxes.crowds, unreadable=boxes.unreadable)
    with ScratchFolder() as folder, unchanged(source):
        normalized = normalize(source, Path(folder) / "catalog.parquet")
        check_rows(source, target, normalized)
        homes = _homes(source, normalized.path, boxes.names, with_endings=with_endings)
        path = Path(folder) / "prompted.parquet"
        with RowGroupWriter(path, schema) as writer:
            for batch in whole.batches():
                for start in range(0, batch.num_rows, _TOGETHER):
                    piece = batch.slice(start, _TOGETHER)
                    values: list[Any] = [None] * piece.num_rows
                    for place, ordinal in enumerate(range(writer.rows, writer.rows + piece.num_rows)):
                        if ordinal in homes:
                            values[place] = boxes.read(homes[ordinal])
                    prompts = pa.array(values, SOURCE.field("prompts").type)
                    result.prompts += len(prompts.field("prompts").flatten())
                    writer.add([pa.RecordBatch.from_arrays([*piece.columns, prompts], schema=schema)])
        result.rows, result.images = writer.rows, len(homes)
        put_new_file(target, path)
    return result


# A name fits a row if the row's URI or image_id ends with all parts of the name, or the other way around.
_PAIRS = """
WITH paths AS (SELECT ordinal, unnest([uri, image_id]) AS path FROM rows_of($rows) WHERE duplicate_of IS NULL),
     there AS (SELECT ordinal, '/' || regexp_replace(ltrim(path, './'), $left_out, '') AS path FROM paths),
     asked AS (SELECT place, '/' || ltrim(replace(name, '\\', '/'), './') AS name FROM names),
     pairs AS (SELECT DISTINCT place, ordinal FROM asked JOIN there
               ON regexp_extract(path, '[^/]*$') = regexp_extract(name, '[^/]*$')
               WHERE ends_with(path, name) OR ends_with(name, path))
SELECT place, ordinal FROM asked LEFT JOIN pairs USING (place) ORDER BY ordinal NULLS FIRST, place
"""


def _homes(source: Location, normalized: Path, names: Sequence[str], *, with_endings: bool) -> dict[int, int]:
    """Return the place in `names` of each row's image, by ordinal. Rows that repeat another image_id have none.

    Raises `UsageError` if a name fits no row or several, or if a row fits several names.
    """
    left_out = "$^" if with_endings else "\\.[^./]*$"
    with open_database(normalized.parent) as database:
        storable = [label_text(name) for name in names]
        database.register("names", pa.table({"place": range(len(names)), "name": storable}))
        pairs = database.execute(_PAIRS, {"rows": only_path(normalized), "left_out": left_out}).fetchall()
    homes: dict[int, int] = {}
    known: set[int] = set()
    for place, ordinal in pairs:
        if ordinal is None or ordinal in homes or place in known:
            found = "no row"
            if ordinal is not None:
                found = f"row {ordinal + 1}, and it fits another row, or the row fits another image,"
            expected = "exactly one row whose URI or image_id ends with the name"
            raise UsageError(f"the image {names[place]!r} fits {found} in {source}; expected {expected}")
        homes[ordinal] = place
        known.add(place)
    return homes
