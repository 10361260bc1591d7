"""Matching of a staged file's images with a dataset's images, and selection among several entries for one image."""

from enum import StrEnum
from pathlib import Path

import duckdb

from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.infra.storage.location import Location
from segmint.infra.uris import only_path


class MatchMode(StrEnum):
    """Key by which images of a file are matched with images of a dataset."""

    NUMBER = "number"  # `sa_<id>.jpg`
    IMAGE_ID = "image-id"  # the file name, with or without its ending, is the image_id
    URI = "uri"  # the file name is the last part of the URI


_KEY = {
    MatchMode.IMAGE_ID: "image_id",
    MatchMode.URI: "regexp_extract(uri, '[^/]*$')",
}


def find_homes(
    folder: Path, manifest: DatasetManifest, match: MatchMode, dataset: Location, database: duckdb.DuckDBPyConnection
) -> None:
    """Create two tables: `found` with the outcome of each entry, and `chosen` with the ordinals of selected entries.

    If several entries belong to one image, the entry that was saved last is selected. Without times, the first entry is
    selected. But if the image is looked up, and these entries have different names, such as `a/1.jpg` and `b/1.jpg`,
    they may be different photographs, so none is selected.
    """
    for name in ("answers", "masks"):
        path = quoted(only_path(folder / f"read-{name}.parquet"))
        database.execute(f"CREATE VIEW read_{name} AS SELECT * FROM rows_of('{path}')")
    spans = [(part.first_shard * manifest.images_per_shard, part.rows) for part in manifest.catalog]
    there = " OR ".join(f"ordinal BETWEEN {first} AND {first + rows - 1}" for first, rows in spans if rows)
    if match is MatchMode.NUMBER:
        database.execute(
            f"CREATE TEMP TABLE homes AS SELECT submission, ordinal FROM read_answers WHERE {there or 'false'}"
        )
    else:
        parts = []
        for number, part in enumerate(manifest.catalog):
            local = folder / f"part-{number}.parquet"
            (dataset / part.path).get_file(local)
            parts.append(only_path(local))
        database.execute(
            f"""CREATE TEMP TABLE homes AS
            WITH asked AS (SELECT submission, unnest(keys) AS key FROM read_answers),
                 pinned AS (SELECT ordinal, {_KEY[match]} AS key
                            FROM rows_of($parts) WHERE duplicate_of IS NULL)
            SELECT DISTINCT asked.submission, pinned.ordinal FROM asked JOIN pinned USING (key)""",
            {"parts": parts},
        )
    database.execute(
        """CREATE TEMP TABLE found AS
        WITH counted AS (SELECT submission, count(*) AS homes, min(ordinal) AS ordinal FROM homes GROUP BY submission),
             named AS (SELECT counted.ordinal, count(DISTINCT name) AS names
                       FROM counted JOIN read_answers USING (submission) WHERE homes = 1 GROUP BY counted.ordinal),
             ranked AS (SELECT submission, counted.ordinal, row_number() OVER
                          (PARTITION BY counted.ordinal ORDER BY read.saved DESC NULLS LAST, submission) AS rank
                        FROM counted JOIN read_answers read USING (submission) WHERE homes = 1)
        SELECT read.submission, read.name, ranked.ordinal,
               CASE WHEN counted.homes IS NULL THEN 'unknown' WHEN counted.homes > 1 THEN 'ambiguous'
                    WHEN $looked_up AND named.names > 1 THEN 'ambiguous'
                    WHEN ranked.rank > 1 THEN 'superseded' ELSE 'chosen' END AS status
        FROM read_answers read LEFT JOIN counted USING (submission) LEFT JOIN ranked USING (submission)
        LEFT JOIN named ON named.ordinal = ranked.ordinal""",
        {"looked_up": match is not MatchMode.NUMBER},
    )
    database.execute("CREATE TEMP TABLE chosen AS SELECT submission, ordinal FROM found WHERE status = 'chosen'")


def quoted(text: str) -> str:
    """Escape text for use between single quotes in SQL."""
    return text.replace("'", "''")
