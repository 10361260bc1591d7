"""Stubs of the two stages that process pixels, which reduce a build to the cost of its rows.

Each stub is the real stage, except for the function that processes an image. As in any build, rows are checked, passed
to threads, recorded in the ledger, and converted to tables and back.
"""

import functools
import hashlib
import io
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.building.pace import image_s, note
from segmint.model.automatic.rle import encode
from segmint.operators.prepare.prepare import Prepare, PreparedImage
from segmint.operators.prepare.read_image import ImageReader
from segmint.operators.rows import FUNNEL_STEPS, Row
from segmint.operators.segment.overlap import HostThreads
from segmint.operators.segment.segment import Segment, SegmentSettings
from segmint.operators.similar.near import jpeg_hashes

RELEASE_BYTES = "SEGMINT_STUB_RELEASE_BYTES"
"""Environment variable that sets the size of each released image in bytes; the default is the size of a small JPEG."""

START_S = "SEGMINT_STUB_START_S"
"""Environment variable that sets how many seconds a segment actor takes to start; the default is 0."""

SIZE = (48, 64)
"""Height and width of the stub image in pixels."""

MASKS = 3
"""Number of masks per image, unless `MANY_MASKS` is set."""

MANY_MASKS = "SEGMINT_STUB_MASKS"
"""Environment variable that sets a different number of masks per image."""


class StubbedPrepare(Prepare):
    """Prepare stage that doesn't read, decode, or de-identify images. All rows get the same small image."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._reader = _NoReader()

    def _prepare(self, row: Row, data: bytes) -> tuple[str, PreparedImage]:
        return f"{row['ordinal']:064x}", _prepared(released(row["ordinal"]))


class _NoReader(ImageReader):
    """Reader that reads nothing."""

    def __init__(self) -> None:
        pass

    def use(self, row: Row, function: Callable[[bytes], Any], *_: object) -> Any:
        return function(b"")


class StubbedSegment(Segment):
    """Segment stage that doesn't run a model. All images get the same masks."""

    def __init__(
        self,
        settings: SegmentSettings,
        measures_peak: bool = False,
        ledger: Any = None,
        timeout_s: float | None = None,
        threads: HostThreads | None = None,
    ) -> None:
        self._set_up(settings.numerics.device, ledger, timeout_s, threads)
        note("start")
        time.sleep(float(os.environ.get(START_S, "0")))

    def _decode(self, row: Row) -> Any:
        return row

    def _find(self, images: Any) -> Any:
        for image in images:
            if image is None:
                continue
            if seconds := image_s():
                time.sleep(seconds)
                note("image")
            yield image

    def _finish(self, row: Row, found: Any) -> Row:
        made = masks((row["height"], row["width"]))
        return {**row, "masks": made, "funnel": dict.fromkeys(FUNNEL_STEPS, len(made))}


def released(ordinal: int) -> bytes:
    """Create a row's released image: a small JPEG, padded to the size in the environment. Each row's is different."""
    image = _jpeg()
    missing = int(os.environ.get(RELEASE_BYTES, "0")) - len(image)
    return image + np.random.default_rng(ordinal).bytes(missing) if missing > 0 else image


@functools.cache
def _jpeg() -> bytes:
    from PIL import Image

    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    stream = io.BytesIO()
    Image.fromarray(np.stack([4 * x, 5 * y, x + y], axis=-1).astype(np.uint8)).save(stream, "JPEG", quality=95)
    return stream.getvalue()


@functools.cache
def _hashes() -> list[int]:
    hashes: list[int] = jpeg_hashes(_jpeg()).tolist()
    return hashes


def _prepared(release: bytes) -> PreparedImage:
    height, width = SIZE
    return PreparedImage(
        pixels_sha256=hashlib.sha256(release).hexdigest(),
        source_width=width,
        source_height=height,
        regions=(),
        residual_detections=(),
        unconfirmed_detections=(),
        left_alone=(),
        redacted_share=0.0,
        width=width,
        height=height,
        release=release,
        hashes=_hashes(),
        original=None,
    )


@functools.cache
def masks(size: tuple[int, int] = SIZE) -> list[dict[str, Any]]:
    """Create rectangular masks as values of `segmint.operators.rows.MASK`, in an image at least as large as `SIZE`."""
    many = int(os.environ.get(MANY_MASKS, "0"))
    if many:
        return [_rectangle(index % 30, 10 + index // 30, size) for index in range(many)]
    return [_rectangle(4 + 6 * index, 30 - 4 * index, size) for index in range(MASKS)]


def _rectangle(start: int, side: int, size: tuple[int, int]) -> dict[str, Any]:
    mask = np.zeros(size, bool)
    mask[start : start + side, start : start + side] = True
    height, width = (int(mask.any(axis=1).sum()), int(mask.any(axis=0).sum()))
    rle = encode(mask)
    return {
        "segmentation": {"size": list(rle.size), "counts": rle.counts},
        "bbox": [float(start), float(start), width - 1.0, height - 1.0],
        "area": int(mask.sum()),
        "predicted_iou": 0.93,
        "stability_score": 0.97,
        "crop_box": [0.0, 0.0, float(size[1]), float(size[0])],
        "point_coords": [[start + 1.5, start + 1.5]],
    }
