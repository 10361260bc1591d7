"""Columns of all rows, and the three states in which a row passes through the stages.

Rows that flow between stages, and helpers that process them one by one without losing any.

Every stage carries four columns, which put a row in one of three states:

- *accepted*: `stage`, `reason`, and `fault` are null.
- *rejected*: there is a verdict on the image. `stage` and `reason` name it, and `detail` explains it in a sentence.
- *faulted*: `fault` describes a failure outside the image, such as an outage or a bug. This isn't a verdict. The row's
  shard isn't committed, the run continues with the other shards, and the next run retries this one.

Later stages pass rejected and faulted rows through, with nulls in their own columns.

Schemas of all rows: the columns that each stage adds, and the tables of a shard.

    NORMALIZED -> PREPARED -> SEGMENTED -> DESCRIBED -> IMAGES, MASKS, REJECTS

This module needs only pyarrow and pydantic, so processes that read or write shards don't load the model.
"""

from collections.abc import Callable, Iterable

import pyarrow as pa

from segmint.catalogs.findings import Reason, RejectedError
from segmint.catalogs.layout import ADDED_COLUMNS, SCHEMA_VERSION
from segmint.catalogs.lineage import STAGE_PREFIX, StageColumn, TableColumn
from segmint.catalogs.parquet import ADDED_IMAGES, MASKS_MODEL, NORMALIZED, PROMPT, REGION, RESIDUAL
from segmint.catalogs.parquet import Row as Row
from segmint.infra.errors import SegmintError
from segmint.infra.uris import redact

_LONGEST_FAULT = 5000  # maximum length of an error's message, or of a text that is searched for credentials
_LONGEST_NAME = 200
_LONGEST_CAUSE = 1000


class UnreadableValueError(SegmintError):
    """Raised when a row contains a value that Arrow supports but Python doesn't."""


def is_live(row: Row) -> bool:
    """Return whether the row is accepted so far, that is, neither rejected nor faulted."""
    return row["reason"] is None and row["fault"] is None


def rejected(row: Row, stage: str, verdict: RejectedError) -> Row:
    """Return a copy of the row that is rejected with a verdict."""
    return {**row, "stage": stage, "reason": str(verdict.reason), "detail": _storable(verdict.detail), "fault": None}


def faulted(row: Row, stage: str, error: BaseException) -> Row:
    """Return a copy of the row with a fault: the error's type and message, without credentials."""
    fault = redact(_storable(f"{stage}: {type(error).__name__}: {str(error)[:_LONGEST_FAULT]}"))
    return {**row, "stage": None, "reason": None, "detail": None, "fault": fault}


def given_up(fault: str) -> Row:
    """Return the verdict's columns for a row that is rejected because of a persistent fault, as `faulted` wrote it."""
    stage, _, cause = fault.partition(": ")
    detail = redact(" ".join(cause.split()))[:_LONGEST_CAUSE]
    return rejected({}, stage, RejectedError(Reason.PERSISTENT_FAULT, detail))


def named(row: Row) -> str:
    """Return a row's name for messages: its ordinal, image_id, and URI, without credentials."""
    names = (f"{name} {redact(str(row.get(name))[:_LONGEST_FAULT])[:_LONGEST_NAME]!r}" for name in ("image_id", "uri"))
    return f"row {row['ordinal']} ({', '.join(names)})"


def to_rows(table: pa.Table, stage: str) -> list[Row]:
    """Convert a table to rows. If the table lacks the columns of a verdict, add them as nulls.

    If Python can't represent a value, the value becomes None and the row becomes faulted.
    """
    unjudged: Row = dict.fromkeys(VERDICT.names)
    try:
        return [{**unjudged, **row} for row in table.to_pylist()]
    except Exception:  # noqa: BLE001 - the row at fault is found below
        return [_to_row(table.slice(index, 1), stage) for index in range(table.num_rows)]


def _to_row(table: pa.Table, stage: str) -> Row:
    row: Row = dict.fromkeys(VERDICT.names)
    problem: Exception | None = None
    for name in table.column_names:
        try:
            row[name] = table.column(name)[0].as_py()
        except Exception as error:  # noqa: BLE001 - one row's damage must not affect the other rows
            row[name] = None
            problem = UnreadableValueError(f"the column {name} of the catalog can't be read: {error}")
    return row if problem is None else faulted(row, stage, problem)


def to_table(rows: list[Row], schema: pa.Schema) -> pa.Table:
    """Convert rows to a table with exactly this schema. Missing columns become null, and extra columns are dropped."""
    names = schema.names
    return pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows], schema=schema)


def carried(table: pa.Table, result: pa.Table, *others: str) -> pa.Table:
    """Append the columns of earlier custom stages, and `others`, from a stage's input to its result.

    Both must have the same rows.
    """
    for name in table.column_names:
        if name.startswith(STAGE_PREFIX) or name in others:
            result = result.append_column(table.schema.field(name), table.column(name))
    return result


def gather(rows: list[Row], stage: str, schema: pa.Schema) -> pa.Table:
    """Convert a stage's rows to a table, like `to_table`. Rows that don't fit the schema become faulted."""
    try:
        return to_table(rows, schema)
    except Exception:  # noqa: BLE001 - the row at fault is found below
        return pa.concat_tables([_to_one(row, stage, schema) for row in rows])


def _to_one(row: Row, stage: str, schema: pa.Schema) -> pa.Table:
    try:
        return to_table([row], schema)
    except Exception as error:  # noqa: BLE001 - one row's damage must not affect the other rows
        return to_table([faulted({name: row[name] for name in NORMALIZED.names if name in row}, stage, error)], schema)


def _storable(text: str) -> str:
    """Replace lone surrogates, which occur in file names, with question marks, because Arrow can't store them."""
    return text.encode("utf-8", "replace").decode()


def judged(row: Row, stage: str, process: Callable[[], Row]) -> Row:
    """Call `process`, and return its result. If it raises an exception, return the row, rejected or faulted.

    A `RejectedError` rejects the row. Any other exception is a bug or a broken machine, never a verdict, so it makes
    the row faulted. A faulted row delays only its own shard, not the run.
    """
    try:
        return process()
    except RejectedError as verdict:
        return rejected(row, stage, verdict)
    except Exception as error:  # noqa: BLE001 - one row's failure must not affect the other rows
        return faulted(row, stage, error)


VERDICT = pa.schema(
    [
        ("stage", pa.string()),  # the stage that rejected the image, or null
        ("reason", pa.string()),  # a `segmint.catalogs.findings.Reason`, or null
        ("detail", pa.string()),  # a sentence with what was found and expected, or null
        ("fault", pa.string()),  # what prevented a verdict on the row, or null
    ]
)
"""Columns that rows carry through every stage, after the stage's own columns."""


def with_fields(schema: pa.Schema, fields: list[pa.Field], without: frozenset[str] = frozenset()) -> pa.Schema:
    """Return a schema with `fields` inserted before the verdict's columns, and without the columns in `without`."""
    verdict = set(VERDICT.names)
    kept = [field for field in schema if field.name not in verdict and field.name not in without]
    return pa.schema([*kept, *fields, *VERDICT])


_RELEASED = [
    ("source_sha256", pa.string()),  # hash of the bytes that were read, in lower case
    ("pixels_sha256", pa.string()),  # hash of the upright decoded source and the decoders' versions
    ("release_sha256", pa.string()),  # hash of the released JPEG
    ("hashes", pa.list_(pa.uint64())),  # perceptual hashes; see `segmint.operators.similar.near`
    ("source_width", pa.int32()),  # pixels of the upright source
    ("source_height", pa.int32()),
    ("width", pa.int32()),  # pixels of the released image: the frame of all coordinates
    ("height", pa.int32()),
    ("faces", pa.int32()),  # number of `regions` of this kind
    ("plates", pa.int32()),
    ("regions", pa.list_(REGION)),  # redacted regions, in pixels of the upright source
    ("residual_detections", pa.list_(RESIDUAL)),
    *ADDED_IMAGES,
]
"""Columns that describe a released image, without its bytes."""

PREPARED = with_fields(
    NORMALIZED,
    [
        *_RELEASED,
        ("release", pa.large_binary()),  # the released JPEG as written
        ("original", pa.large_binary()),  # the de-identified source as JPEG, if crops need it
    ],
)
"""Rows after `prepare`: rows of the normalized catalog, each with a released image or a verdict."""

PROMPTED = with_fields(PREPARED, [("prompts", pa.list_(PROMPT))])
"""Rows after `prepare` in a build that needs prompts, which are then in pixels of the released image."""

MASK = pa.struct(
    [
        # COCO run-length encoding of the mask in the released image's frame: [height, width] and ASCII counts
        (
            "segmentation",
            pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())]),
        ),
        ("bbox", pa.list_(pa.float64())),  # [x, y, w, h], pixels of the released image, w = x1 - x0
        ("area", pa.int64()),  # pixels of the mask
        ("predicted_iou", pa.float64()),  # the model's own estimate of the mask's quality
        ("stability_score", pa.float64()),  # IoU of the masks at two thresholds
        ("crop_box", pa.list_(pa.float64())),  # [x, y, w, h] of the crop that the mask was made from
        ("point_coords", pa.list_(pa.list_(pa.float64()))),  # the prompt: [[x, y]]
        ("output", pa.int8()),  # index (0 to 2) of the decoder's output that produced it; null: unknown
    ]
)
"""Type of a mask: the keys of SA-1B's annotations, except the id, which is computed from the position, and `output`."""

PLAUSIBLE_IOU = (-0.5, 1.5)
"""Plausible range of a predicted IoU.

The model's output is unbounded. A value outside this range can't be an estimate of an IoU.
"""

AUTOMATIC = "automatic"
"""`source` of masks that a build wrote."""

SOURCES = (AUTOMATIC, "assisted", "corrected", "manual", "imported")
"""Possible values of a mask's `source`."""

PERSON = "person"
"""`label_source` of a label that an annotator set, and of a mask whose label an annotator removed."""

IMPORT = "import"
"""`label_source` of a label from an imported file."""

MASK_ORIGIN = pa.schema(
    [
        ("label", pa.string()),  # what the mask shows; null: unknown
        ("label_score", pa.float64()),  # the labeling model's score; null if a person or an import set the label
        ("label_source", pa.string()),  # who set the label: person, import, or model:<SHA-256 of the weights>
        ("container", pa.int64()),  # annotation_id of the mask that contains it; null: none, or unknown
        ("source", pa.string()),  # one of `SOURCES`
        ("annotator", pa.string()),  # the name that the annotator gave
        ("seconds", pa.float64()),  # seconds of active work on this mask
        # The prompts in order: kind is point, box, mask, or text; x, y, w, h: pixels of the released image; label is 1
        # for a point inside the mask and 0 for one outside; clip_sha256 is of the CLIP that embedded a text (up to 0.3)
        (
            "prompts",
            pa.list_(
                pa.struct(
                    [
                        ("kind", pa.string()),
                        ("x", pa.float64()),
                        ("y", pa.float64()),
                        ("w", pa.float64()),
                        ("h", pa.float64()),
                        ("label", pa.int32()),
                        ("text", pa.string()),
                        ("clip_sha256", pa.string()),
                    ]
                )
            ),
        ),
        ("parent", pa.int64()),  # annotation_id of the mask that it was made from
        ("origin", pa.struct([("sha256", pa.string()), ("license", pa.string())])),  # an imported mask's file
        # SHA-256 of the predicting weights, or of the stage or applied segmenter that added the mask; null: manifest's
        ("model", pa.string()),
        ("redacted_share", pa.float64()),  # share of the mask's pixels inside redacted regions, 0 to 1
        ("redaction_iou", pa.float64()),  # highest IoU of the mask with a redacted region, 0 to 1
    ]
)
"""Columns about the origin of a mask. All of them may be null."""

SAID = ("label", "label_score", "label_source", "prompts", "model")
"""Columns about the origin of a mask that are set before `describe`. SAM's masks have none of them.

A segmenter may set all but `model`, which names a stage that added the mask to others.
"""

SEGMENTED_MASK = pa.struct([*MASK, *(field for field in MASK_ORIGIN if field.name in SAID)])
"""Type of a mask before `describe`: `MASK`, and what a segmenter says about it."""

MASKS_PER_IMAGE_LIMIT = 10_000
"""Upper bound on an image's masks. An annotation id is the image id times this number, plus the mask's index.

For up to 900 billion images, all annotation ids are below 2^53.
"""

FUNNEL_STEPS = (
    "predicted",
    "over_iou",
    "stable",
    "under_max_area",
    "inside_crop",
    "after_nms1",
    "after_nms2",
    "cleaned",
    "removed_by_cleanup",
    "written",
    "holes_filled",
    "islands_removed",
    "redaction_artifacts",
)
"""Names of the counts that mask generation records."""

FUNNEL = pa.struct([(step, pa.int64()) for step in FUNNEL_STEPS])
"""Number of masks that remain after each step of automatic mask generation (see `segmint.model.automatic`)."""

SEGMENTED = with_fields(
    PREPARED,
    [("masks", pa.list_(SEGMENTED_MASK)), ("funnel", FUNNEL)],
    without=frozenset({"original"}),
)
"""Rows after `segment`: rows of `prepare` with the masks and the funnel, but without the original image."""

MASK_STATISTICS = pa.schema(
    [
        ("relative_size", pa.float64()),  # sqrt(mask area / image area), 0 to 1
        ("concavity", pa.float64()),  # 1 - mask area / area of its convex hull, 0 to 1
        ("center_x", pa.float64()),  # x of the center of mass, as a share of the image's width, 0 to 1
        ("center_y", pa.float64()),  # y of the center of mass, as a share of the image's height, 0 to 1
        ("aspect_ratio", pa.float64()),  # width / height of the box around its pixels
        ("touches_border", pa.bool_()),  # true if a pixel lies in the image's first or last row or column
    ]
)
"""Statistics that `describe` appends to each mask's struct."""

STATISTICS = pa.struct(
    [
        ("mask_count", pa.int32()),
        ("coverage", pa.float64()),  # share of the image's pixels that lie in any mask, 0 to 1
        ("mean_predicted_iou", pa.float64()),  # the means are null if the image has no mask
        ("mean_stability_score", pa.float64()),
        ("mean_relative_size", pa.float64()),
        ("mean_concavity", pa.float64()),
    ]
)
"""Statistics that `describe` adds to an image."""

MASK_INDEX = pa.field("index", pa.int32())
"""Number of a mask within its image, from which its id is computed. Null means the mask's position."""

DESCRIBED_MASK = pa.struct([*MASK, *MASK_STATISTICS, *MASK_ORIGIN, MASK_INDEX])
"""Type of a mask with its statistics, origin, and index."""

ANNOTATION_STAGE = "annotation_stage"
"""Name in rows for the column `stage` of `images`, because in rows, `stage` belongs to the verdict."""

_ANNOTATION = pa.schema(
    [
        # The annotator's submission that was merged into the image
        ("submission", pa.struct([("assignment", pa.int32()), ("n", pa.int32()), ("sha256", pa.string())])),
        ("annotator", pa.string()),  # the name that the annotator gave
        ("stage", pa.string()),  # stage of annotation: assisted or semi
        ("seconds", pa.float64()),  # seconds of active work on this image
        ("complete", pa.bool_()),  # true if the annotator confirmed that no mask is missing
        ("next_mask", pa.int64()),  # one more than the highest number that a mask of the image ever had
        MASKS_MODEL,
    ]
)
"""Columns about later changes to an image's masks. All of them may be null."""

DESCRIBED = with_fields(
    SEGMENTED.set(SEGMENTED.get_field_index("masks"), pa.field("masks", pa.list_(DESCRIBED_MASK))),
    [
        ("statistics", STATISTICS),
        *(field.with_name(ANNOTATION_STAGE) if field.name == "stage" else field for field in _ANNOTATION),
    ],
)
"""Rows after `describe`: rows of `segment` with statistics of the masks and the image, which rejected rows lack."""

_IDENTITY = [
    pa.field("ordinal", pa.int64(), nullable=False),  # the row's position in the normalized catalog
    pa.field("id", pa.int64(), nullable=False),  # ordinal + 1, the number in file names
    pa.field("image_id", pa.string(), nullable=False),  # the catalog's own name of the image
]

IMAGES = pa.schema(
    [
        *_IDENTITY,
        ("uri", pa.string()),  # as written in the catalog
        ("license", pa.string()),
        ("attribution", pa.string()),
        ("provider", pa.string()),
        ("source_url", pa.string()),
        ("country", pa.string()),
        *_RELEASED,
        ("masks", pa.int32()),  # number of masks that were written
        ("funnel", FUNNEL),
        ("statistics", STATISTICS),
        *_ANNOTATION,
    ]
)
"""`images/*.parquet`: one row per accepted image."""

MASKS = pa.schema(
    [*_IDENTITY, pa.field("annotation_id", pa.int64(), nullable=False), *MASK, *MASK_STATISTICS, *MASK_ORIGIN]
)
"""`masks/*.parquet`: one row per mask, in the order of the JSON's annotations."""

REJECTS = pa.schema(
    [
        *_IDENTITY,
        ("uri", pa.string()),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        ("detail", pa.string()),
    ]
)
"""`rejects/*.parquet`: one row per rejected image."""

SCHEMAS = {"images": IMAGES, "masks": MASKS, "rejects": REJECTS}
"""Tables of a shard, keyed by folder, without the columns of custom stages."""


def shard_schemas(
    stages: Iterable[StageColumn | TableColumn], schema_version: int = SCHEMA_VERSION
) -> dict[str, pa.Schema]:
    """Return the tables of a dataset's shards, keyed by folder. The columns of custom stages come last."""
    without = ADDED_COLUMNS if schema_version < SCHEMA_VERSION else ()
    schemas = {}
    added = [(stage.table, stage.arrow_field) for stage in stages]
    for kind, schema in SCHEMAS.items():
        own = [field for field in schema if kind != "images" or field.name not in without]
        schemas[kind] = pa.schema([*own, *(field for table, field in added if table == kind)])
    return schemas
