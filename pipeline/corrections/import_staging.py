"""Staging of a file's masks on the local disk, sorted by the dataset's images.

Staging reads a file once into Parquet, image by image if the format allows it. Afterward, memory only holds the masks
of one shard at a time.

Matching of a staged file's images with a dataset's images, and selection among several entries for one image.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.dataset.mask_labels import is_of_model, submitted_label
from segmint.catalogs.parquet import PARQUET_OPTIONS
from segmint.catalogs.source.normalize import open_database
from segmint.infra.arrays import Size
from segmint.infra.storage.location import Location
from segmint.infra.uris import only_path
from segmint.operators.annotations.image import AnnotatedImage, image_number, label_text, name_and_stem
from segmint.operators.rows import ANNOTATION_STAGE, IMAGES, MASK_ORIGIN, MASKS_PER_IMAGE_LIMIT, Row
from segmint.pipeline.corrections.import_merge import ImageImport, NewMask, canonical_counts
from segmint.pipeline.export.categories import OBJECT


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


SAID = ("label_score", "label_source", "source", "annotator", "seconds", "prompts", "origin", "model")
"""Columns of another dataset's masks to carry over, in addition to the label."""

OF_IMAGE = ("submission", "annotator", "stage", "seconds")
"""Columns of another dataset's images to carry over."""

BATCH = 2_000
"""Number of masks to collect in memory before they are written."""

_SIZE = [("height", pa.int32()), ("width", pa.int32())]

_ORIGIN = {field.name: field for field in MASK_ORIGIN}

MASKS_READ = pa.schema(
    [
        ("submission", pa.int64()),  # number of the image in the file
        ("number", pa.int64()),  # number of the mask
        *_SIZE,
        ("counts", pa.string()),
        ("id", pa.int64()),
        ("label", pa.string()),
        ("by_model", pa.bool_()),
        pa.field("said", pa.struct([_ORIGIN[name] for name in SAID])),
    ]
)

ANSWERS_READ = pa.schema(
    [
        ("submission", pa.int64()),
        ("ordinal", pa.int64()),  # null if the name is looked up
        ("keys", pa.list_(pa.string())),  # possible names of the image
        ("name", pa.string()),
        *_SIZE,
        ("unreadable", pa.int32()),
        ("saved", pa.float64()),  # seconds since 1970; null if the file has no time
        pa.field("of_image", pa.struct([IMAGES.field(name) for name in OF_IMAGE])),
    ]
)

SHOWN = 20
"""Maximum number of images and masks that messages name. The counts include all of them."""


@dataclass(frozen=True)
class StagedMasks:
    """Masks of a file, which can be looked up by the dataset's ordinals. Usable while the folder exists."""

    folder: Path
    ordinals: tuple[tuple[int, int], ...]  # range [a, b) of each shard with an image in the file
    shards: tuple[int, ...]
    images: int  # distinct images in the file
    unknown: int = 0  # images of the file that are not in the dataset
    ambiguous: int = 0  # images whose name matches several images of the dataset
    superseded: int = 0  # repeated entries for an image in the file
    first_unknown: str | None = None
    first_ambiguous: str | None = None
    unreadable: tuple[str, ...] = ()  # the first `SHOWN` masks and images that can't be read
    all_unreadable: int = 0
    prompts: int = 0  # results beside masks that aren't masks
    left: Mapping[str, int] = field(default_factory=dict)  # masks and images without a match in the dataset, by reason

    def answers(self, first: int, stop: int) -> dict[int, ImageImport]:
        """Return the file's masks for the images with ordinals [first, stop)."""
        span = [("ordinal", ">=", first), ("ordinal", "<", stop)]
        masks: dict[int, list[NewMask]] = {}
        sizes: dict[int, set[Size]] = {}
        rows = pq.read_table(self.folder / "masks.parquet", filters=span, partitioning=None).to_pylist()
        for row in sorted(rows, key=lambda row: int(row["number"])):
            said = {name: value for name, value in (row["said"] or {}).items() if value is not None}
            mask = NewMask(row["counts"], row["id"], row["label"], said, row["by_model"])
            masks.setdefault(row["ordinal"], []).append(mask)
            sizes.setdefault(row["ordinal"], set()).add((row["height"], row["width"]))
        found = {}
        for row in pq.read_table(self.folder / "answers.parquet", filters=span, partitioning=None).to_pylist():
            ordinal = row["ordinal"]
            own = {(row["height"], row["width"])} if row["height"] is not None else set()
            found[ordinal] = ImageImport(
                masks.get(ordinal, ()),
                frozenset(sizes.get(ordinal, set()) | own),
                row["unreadable"],
                # In rows, `stage` is the stage of a verdict.
                {ANNOTATION_STAGE if key == "stage" else key: value for key, value in (row["of_image"] or {}).items()},
            )
        return found


class MaskStaging(AbstractContextManager["MaskStaging"]):
    """Context manager that collects the masks of a file in a folder. `finish` then sorts the masks."""

    def __init__(self, folder: Path, manifest: DatasetManifest, match: MatchMode = MatchMode.NUMBER) -> None:
        self._folder = folder
        self._manifest = manifest
        self.match = match
        self._answers = ScratchWriter(folder / "read-answers.parquet", ANSWERS_READ)
        self._masks = ScratchWriter(folder / "read-masks.parquet", MASKS_READ)
        self._count = 0
        self._mask_count = 0
        self._rows = manifest.shards * manifest.images_per_shard
        self._unreadable: list[str] = []
        self._all_unreadable = 0
        self._prompts = 0
        self.superseded = 0
        self.homeless = 0  # masks that don't identify their image

    def __exit__(self, *_: object) -> None:
        self._answers.close()
        self._masks.close()

    def add(self, image: AnnotatedImage) -> None:
        """Add an image of a file with its masks. The label `object` in exports counts as no label."""
        number = image_number(image.name) if self.match is MatchMode.NUMBER else None
        ordinal = None if number is None else number - 1
        unreadable = list(image.unreadable)
        self._prompts += len(image.prompts)
        masks = []
        by_id = self._ids_hold(image, number)
        for mask in image.masks:
            height, width = mask.rle["size"]
            try:
                counts = canonical_counts(mask.rle["counts"], (height, width))
                label = None if mask.label == OBJECT else mask.label or None
                own = {"counts": counts, "id": mask.id if by_id else None, "label": label, "said": None}
                masks.append({"height": height, "width": width, "by_model": is_of_model(mask.label_source), **own})
            except ValueError as error:  # already checked by the readers
                unreadable.append(f"mask {mask.id}: {error}")
        for problem in unreadable:
            self.leave_out(f"{image.name}, {problem}")
        keys = list(dict.fromkeys((image.name, *name_and_stem(image.name)))) if self.match is MatchMode.IMAGE_ID else []
        if self.match is MatchMode.URI:
            keys = [name_and_stem(image.name)[0]]
        self._put(
            image.name,
            ordinal,
            keys,
            image.other or image.size,
            len(unreadable) + self.homeless,
            image.saved,
            None,
            masks,
        )

    def _ids_hold(self, image: AnnotatedImage, number: int | None) -> bool:
        """Return whether the ids of an image's masks may be the dataset's ids, rather than new numbers from a tool.

        If the file's images are matched by names without numbers, the ids can't be the dataset's ids.
        """
        homes = {mask.id // MASKS_PER_IMAGE_LIMIT for mask in image.masks if mask.id is not None}
        return number is not None and not any(0 < home <= self._rows for home in homes - {number})

    def leave_out(self, problem: str) -> None:
        """Count a mask or an entry that can't be read."""
        self._all_unreadable += 1
        if len(self._unreadable) < SHOWN:
            self._unreadable.append(label_text(problem) or "")

    def carry(self, ordinal: int, size: Size, image: Mapping[str, Any], masks: Sequence[Mapping[str, Any]]) -> None:
        """Add another dataset's masks (rows of `MASKS`) for the image with this ordinal.

        `image` is the image's row in the other dataset.
        """
        rows = []
        for mask in masks:
            said = {name: mask[name] for name in SAID}
            own = {"counts": mask["segmentation"]["counts"], "id": None, "label": submitted_label(mask), "said": said}
            by_model = is_of_model(mask["label_source"])
            rows.append({"height": size[0], "width": size[1], "by_model": by_model, **own})
        self._put(f"sa_{ordinal + 1}", ordinal, [], size, 0, None, {name: image[name] for name in OF_IMAGE}, rows)

    def _put(
        self,
        name: str,
        ordinal: int | None,
        keys: list[str],
        size: Size | None,
        unreadable: int,
        saved: float | None,
        of_image: Mapping[str, Any] | None,
        masks: Iterable[Mapping[str, Any]],  # rows of `MASKS_READ` without their numbers
    ) -> None:
        height, width = size or (None, None)
        for mask in masks:
            self._masks.add({"submission": self._count, "number": self._mask_count, **mask})
            self._mask_count += 1
        self._answers.add(
            {
                "submission": self._count,
                "ordinal": ordinal,
                "keys": [label_text(key) for key in keys],
                "name": label_text(name),
                "height": height,
                "width": width,
                "unreadable": unreadable,
                "saved": saved,
                "of_image": of_image,
            }
        )
        self._count += 1

    def finish(self, dataset: Location, left: Mapping[str, int] | None = None) -> StagedMasks:
        """Find the images in the dataset, and sort the masks by ordinal."""
        self._answers.close()
        self._masks.close()
        with open_database(self._folder) as database:
            find_homes(self._folder, self._manifest, self.match, dataset, database)
            files = {name: str(self._folder / f"{name}.parquet") for name in ("answers", "masks")}
            database.execute(
                f"""COPY (SELECT chosen.ordinal, read.* EXCLUDE (ordinal) FROM read_answers read
                JOIN chosen USING (submission) ORDER BY chosen.ordinal) TO '{quoted(files["answers"])}'
                (FORMAT parquet, ROW_GROUP_SIZE 10000)"""
            )
            database.execute(
                f"""COPY (SELECT chosen.ordinal, read.* FROM read_masks read JOIN chosen USING (submission)
                ORDER BY chosen.ordinal, read.number) TO '{quoted(files["masks"])}'
                (FORMAT parquet, ROW_GROUP_SIZE 10000)"""
            )
            per_shard = self._manifest.images_per_shard
            shards = [
                row[0]
                for row in database.execute(f"SELECT DISTINCT ordinal // {per_shard} FROM chosen ORDER BY 1").fetchall()
            ]
            query = "SELECT status, count(*), arg_min(name, submission) FROM found GROUP BY status"
            found = {status: (count, name) for status, count, name in database.execute(query).fetchall()}
        unknown, first_unknown = found.get("unknown", (0, None))
        ambiguous, first_ambiguous = found.get("ambiguous", (0, None))
        return StagedMasks(
            folder=self._folder,
            ordinals=tuple(self._manifest.ordinals(shard) for shard in shards),
            shards=tuple(shards),
            images=found.get("chosen", (0,))[0],
            unknown=unknown,
            ambiguous=ambiguous,
            superseded=found.get("superseded", (0,))[0] + self.superseded,
            first_unknown=first_unknown,
            first_ambiguous=first_ambiguous,
            unreadable=tuple(self._unreadable),
            all_unreadable=self._all_unreadable,
            prompts=self._prompts,
            left=dict(left or {}),
        )


class ScratchWriter:
    """Writer of rows to a local Parquet file, in batches."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(path, schema, **PARQUET_OPTIONS)
        self._schema = schema
        self._rows: list[dict[str, Any]] = []
        self._open = True

    def add(self, row: Row) -> None:
        self._rows.append(row)
        if len(self._rows) == BATCH:
            self._flush()

    def close(self) -> None:
        """Write the remaining rows. Further calls do nothing."""
        if self._open:
            self._flush()
            self._writer.close()
            self._open = False

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows.clear()
