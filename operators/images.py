"""Decoders for segmint's own JPEGs and for untrusted JPEGs of datasets, and the prompts of rows.

`operators/prepare/ingest.py` decodes the originals of a build. Untrusted JPEGs are decoded in a child process with a
memory limit and a deadline. Images over `MOST_PIXELS` aren't decoded at all. Starting a child takes time, so there is
an exception for datasets in segmint's format: a small JPEG that looks as if segmint wrote it is decoded in this
process. This is safe, because decoding such a JPEG takes memory and time in proportion to its pixels.
"""

import io
import os
import pickle
import threading
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import numpy as np
import simplejpeg
from PIL import Image

from segmint.catalogs.findings import Reason, RejectedError
from segmint.catalogs.layout import MOST_PIXELS
from segmint.infra.arrays import Pixels
from segmint.operators.child import Children, SuspectError, Worker, forbid_core_dumps, is_out_of_memory


def decode_jpeg(data: bytes) -> Pixels:
    """Decode a JPEG that segmint encoded to (H, W, 3) uint8 RGB.

    This uses Pillow because it is the most common library, so anyone can recompute the masks from the released file.
    """
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        # Converting an image that is already RGB copies it, which takes as long as decoding it.
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


T = TypeVar("T")

PICTURES = ("JPEG", "PNG", "WEBP", "BMP")
"""Pillow's formats of the pictures to show. Data that segmint didn't write may contain others than JPEGs."""

PIXELS_HERE = 32_000_000
"""Maximum number of pixels in a JPEG that is decoded in this process, which is 96 MB as RGB."""

TIMEOUT_S = 60.0
MEMORY = 3 << 30
"""Memory limit in bytes for one image in the child. Applies only on Linux."""

_PROCESSES = 4
_START, _QUANTIZATION, _BASELINE, _HUFFMAN, _RESTART, _SCAN = 0xD8, 0xDB, 0xC0, 0xC4, 0xDD, 0xDA
_APP0, _APP15, _COMMENT = 0xE0, 0xEF, 0xFE
_SKIPPED = frozenset({_QUANTIZATION, _HUFFMAN, _RESTART, _COMMENT, *range(_APP0, _APP15 + 1)})


class UndecodableError(ValueError):
    """Raised when an image can't be decoded at all or within the limits. The message gives the reason."""


class OverLimitError(UndecodableError):
    """Raised when decoding an image times out, runs out of memory, or kills its process. A retry may succeed."""


class JpegDecoder(AbstractContextManager["JpegDecoder"]):
    """Decoder that applies functions to JPEGs. Thread-safe. It starts child processes only when they are needed.

    Set `own` for the JPEGs of a dataset in segmint's format. All other JPEGs are decoded only in children. There are up
    to `processes` children; the default is one per core, up to four.
    """

    def __init__(self, *, own: bool, processes: int | None = None) -> None:
        self._own = own
        self.processes = processes or min(_PROCESSES, os.cpu_count() or 1)
        self._lock = threading.Lock()
        self._children: Children[Any] | None = None
        self._closed = False

    def run(self, function: Callable[[bytes], T], jpeg: bytes) -> T:
        """Return `function(jpeg)`. `function` and its result must be picklable and importable in a child.

        Raises `UndecodableError` if `function` raises or the image is over `MOST_PIXELS`. Raises its subclass
        `OverLimitError` if the child dies, runs out of memory, or times out twice. Raises `ChildFaultError` if no child
        can start.
        """
        if self._own and is_plain(jpeg):
            return _apply(function, jpeg)
        try:
            result: T = self._started().run(pickle.dumps((function, jpeg)))
        except SuspectError as error:
            late = f"not decoded within {TIMEOUT_S:g} seconds"
            raise OverLimitError(late if error.reason == Reason.TIMED_OUT else error.detail) from None
        return result

    def close(self) -> None:
        """Stop the children. Idempotent."""
        with self._lock:
            self._closed = True
            if self._children is not None:
                self._children.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _started(self) -> Children[Any]:
        with self._lock:
            if self._closed:
                raise RuntimeError("this decoder is closed")
            if self._children is None:
                self._children = Children(_worker, timeout_s=TIMEOUT_S, processes=self.processes, memory_limit=MEMORY)
            return self._children


def is_plain(jpeg: bytes) -> bool:
    """Return whether a JPEG's header looks as if segmint wrote it, with at most `PIXELS_HERE` pixels.

    Such a JPEG is baseline, has 8 bits per sample, and contains one or three components in a single scan. Other kinds,
    such as progressive JPEGs, would make a decoder keep all coefficients in memory or decode the image once per scan.
    Markers that decoders may interpret differently aren't allowed.
    """
    if jpeg[:2] != bytes([0xFF, _START]):
        return False
    position, components = 2, 0
    while position + 4 <= len(jpeg) and jpeg[position] == 0xFF:
        marker = jpeg[position + 1]
        length = int.from_bytes(jpeg[position + 2 : position + 4], "big")
        segment = jpeg[position + 4 : position + 2 + length]
        if length < 2 or len(segment) != length - 2:
            return False
        if marker == _SCAN:
            return bool(components) and segment[:1] == bytes([components])
        if marker == _BASELINE:
            if components or len(segment) < 6 or segment[0] != 8 or segment[5] not in (1, 3):
                return False
            height, width, components = (*(int.from_bytes(segment[at : at + 2], "big") for at in (1, 3)), segment[5])
            if not 0 < width * height <= PIXELS_HERE:
                return False
        elif marker not in _SKIPPED:
            return False
        position += 2 + length
    return False


def _worker() -> Worker[Any]:
    """Set up the child and return its worker function."""
    forbid_core_dumps()
    warnings.filterwarnings("ignore", module="PIL")  # odd metadata is common, and failures raise exceptions
    return _in_child


def _in_child(data: bytes) -> Any:
    function, jpeg = pickle.loads(data)  # safe, because the bytes come from the parent, not from a dataset
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(jpeg, strict=False)
    except Exception:  # noqa: BLE001 - unusual or damaged: `function` decides, and Pillow has a limit as well
        height = width = 0
    if height * width > MOST_PIXELS:
        raise UndecodableError(f"{width} x {height} is {width * height:,} pixels; at most {MOST_PIXELS:,} are decoded")
    return _apply(function, jpeg)


def _apply(function: Callable[[bytes], T], jpeg: bytes) -> T:
    try:
        return function(jpeg)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise UndecodableError(str(error) or type(error).__name__) from None


TOLERANCE = 0.01
"""Share by which a frame's shape may differ from the photograph's, and prompts may extend beyond a side."""

Extent = tuple[float, float]  # (width, height)


def released_prompts(entry: Mapping[str, Any], source: Extent, released: Extent) -> list[dict[str, Any]]:
    """Return prompts in pixels of the released image, cut at its border.

    `entry` is a value of `PROMPTS`. `source` and `released` are the sizes of the upright photograph and of the released
    image. Raises `RejectedError` (`prompts_misfit`) if the frame's sides are swapped, if its shape differs by more than
    `TOLERANCE`, or if a prompt is outside. A frame of 1 x 1 has no shape.
    """
    frame = entry["width"], entry["height"]
    if frame != (1, 1):
        _check_shape(frame, source)
    found = []
    for index, prompt in enumerate(entry["prompts"]):
        box, points = prompt["box"], prompt["points"]
        places = list(points or ())
        if box is not None:
            places += [box[:2], [box[0] + box[2], box[1] + box[3]]]
        if not places:
            found.append(dict(prompt))
            continue
        kept = np.clip(places, 0, frame)
        if (np.abs(kept - places) > np.multiply(TOLERANCE, frame)).any() or (box and (kept[-2] >= kept[-1]).any()):
            detail = f"prompts.{index} has {str(places)[:200]}; expected at most {list(frame)}, as the prompts' frame"
            raise RejectedError(Reason.PROMPTS_MISFIT, detail)
        kept = kept * released / frame
        if box is not None:
            box = [*kept[-2].tolist(), *(kept[-1] - kept[-2]).tolist()]
        if points is not None:
            points = kept[: len(points)].tolist()
        found.append({**prompt, "box": box, "points": points})
    return found


def _check_shape(frame: Extent, source: Extent) -> None:
    text = f"the prompts' frame is {frame[0]:g} x {frame[1]:g}, and the photograph {source[0]:g} x {source[1]:g}"
    if (frame[0] - frame[1]) * (source[0] - source[1]) < 0:
        raise RejectedError(Reason.PROMPTS_MISFIT, f"{text}: the sides are swapped")
    ratio = frame[0] * source[1] / (frame[1] * source[0])
    if max(ratio, 1 / ratio) > 1 + TOLERANCE:
        raise RejectedError(Reason.PROMPTS_MISFIT, f"{text}: the shapes differ by over {TOLERANCE:.0%}")
