"""Segment: automatic mask generation for one released image, in an actor that holds the model once."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from infra.assets import resolve, sha256_of
from infra.errors import UsageError
from infra.peak import measure_peak
from infra.storage import Storage
from model.automatic.generator import MaskGenerator, MaskRecord
from model.automatic.settings import MaskSettings
from model.sam.predictor import Predictor
from operators.images import Pixels, decode_jpeg
from operators.models import load_model
from operators.numerics import Numerics, observe_numerics
from operators.prepare import PREPARED
from operators.rows import Row, map_rows, with_fields

MASK = pa.struct(
    [
        # COCO run-length encoding of the mask in the released image's frame: [height, width] and ASCII counts
        pa.field(
            "segmentation",
            pa.struct([pa.field("size", pa.list_(pa.int32())), pa.field("counts", pa.string())]),
        ),
        pa.field("bbox", pa.list_(pa.float64())),  # [x, y, w, h], pixels of the released image, w = x1 - x0
        pa.field("area", pa.int64()),  # pixels of the mask
        pa.field("predicted_iou", pa.float64()),  # the model's own estimate of the mask's quality
        pa.field("stability_score", pa.float64()),  # IoU of the masks at two thresholds
        pa.field("crop_box", pa.list_(pa.float64())),  # [x, y, w, h] of the crop that the mask was made from
        pa.field("point_coords", pa.list_(pa.list_(pa.float64()))),  # the prompt: [[x, y]]
    ]
)
"""One mask, with the keys of SA-1B's annotations but the id, which follows from its place."""

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
)
FUNNEL = pa.struct([pa.field(step, pa.int64()) for step in FUNNEL_STEPS])
"""How many masks were left after each step of automatic mask generation (see `model.automatic`)."""

SEGMENTED = with_fields(
    PREPARED,
    [pa.field("masks", pa.list_(MASK)), pa.field("funnel", FUNNEL)],
    without=frozenset({"original"}),
)
"""Rows after this stage: those of `prepare` without the original, with the masks and their funnel."""


@dataclass(frozen=True)
class SegmentSettings:
    """What a segment actor is made from; every actor of a dataset gets the same."""

    masks: MaskSettings
    weights: str  # as the configuration names them; each machine finds its own copy, and the hash decides
    numerics: Numerics
    assets: str | None = None  # a folder that mirrors the weight files
    storage_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    allow_mixed_numerics: bool = False


class MixedNumericsError(UsageError):
    """A machine would give other bits than the dataset was begun with."""


def segment_image(generator: MaskGenerator, image: Pixels, original: Pixels | None) -> dict[str, Any]:
    """The columns `masks` and `funnel` of one image, both given as (H, W, 3) uint8 RGB.

    `image` is the released one, in whose pixels all coordinates are; `original` the larger de-identified one that
    crops are cut from, where there is one.
    """
    generated = generator.generate(image, original)
    return {"masks": [mask_row(record) for record in generated.records], "funnel": asdict(generated.funnel)}


def mask_row(record: MaskRecord) -> dict[str, Any]:
    """A mask as a value of `MASK`."""
    return {
        "segmentation": {"size": list(record.segmentation.size), "counts": record.segmentation.counts},
        "bbox": [float(value) for value in record.bbox],
        "area": record.area,
        "predicted_iou": record.predicted_iou,
        "stability_score": record.stability_score,
        "crop_box": [float(value) for value in record.crop_box],
        "point_coords": [[float(value) for value in record.point_coords]],
    }


def load_generator(settings: SegmentSettings) -> MaskGenerator:
    """The model on its device with torch set to the dataset's numerics.

    Raises `MixedNumericsError` when this process cannot give the bits that the dataset was begun with.
    """
    weights = _weights(settings)
    check_numerics(settings)
    predictor = Predictor(load_model(weights, settings.numerics.compute))
    return MaskGenerator(predictor, settings.masks, settings.numerics.crops_per_batch)


def check_numerics(settings: SegmentSettings) -> None:
    """Raises `MixedNumericsError` when this process cannot give the bits that the dataset was begun with."""
    wanted = settings.numerics
    here = observe_numerics(
        wanted.compute, wanted.points_per_chunk, wanted.crops_per_batch, sha256_of(_weights(settings))
    )
    if here.fingerprint != wanted.fingerprint and not settings.allow_mixed_numerics:
        raise MixedNumericsError(
            f"this machine would give other bits than the dataset was begun with: {here.differences(wanted)}. "
            "Use the same machines and versions, or set allow_mixed_numerics: true"
        )


def _weights(settings: SegmentSettings) -> Path:
    return resolve(settings.weights, mirror=settings.assets, storage=Storage(settings.storage_options))


class Segment:
    """The actor that Ray Data runs: a table of prepared rows in, the same rows with masks out.

    Two calls may run at once (`max_concurrent_calls_per_actor=2`): one decodes while the other computes.
    `report_peak`, where given, is told the measured peak of the actor's device in FLOP/s, before the first image.
    """

    def __init__(self, settings: SegmentSettings, report_peak: Callable[[float], None] | None = None) -> None:
        self._generator = load_generator(settings)
        if report_peak is not None:
            report_peak(measure_peak(settings.numerics.compute))
        self._one_at_a_time = threading.Lock()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Segments each live row; the rest passes through."""
        return map_rows(table, "segment", self._segment_row, SEGMENTED)

    def _segment_row(self, row: Row) -> Row:
        image = decode_jpeg(row["release"])
        original = None if row["original"] is None else decode_jpeg(row["original"])
        with self._one_at_a_time:
            return {**row, **segment_image(self._generator, image, original)}
