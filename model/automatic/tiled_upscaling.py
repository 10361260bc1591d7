"""From low-resolution logits to masks on an accelerator, without ever holding a full-size mask.

1. *Measured first.* Filters and NMS need three counts and a box for each mask. One pass over a chunk's masks reduces
   tiles of logits to these, and only 56 bytes a mask are copied to the host.
2. *Drawn last.* The few masks that are left are computed once more, only inside their boxes, one after another in one
   buffer. A pixel has the same bits in both passes (`taps.py`), so that boxes and counts match the pixels.
3. *Runs, not pixels.* The places where drawn masks begin and end are found on the device for all of them at once
   (`runs.py`), and only these are copied to the host: 8 bytes a run.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segmint.model.automatic import mask_tiles
from segmint.model.automatic.boxes import Box
from segmint.model.automatic.candidates import Patch, RunPatch
from segmint.model.automatic.filters import stable
from segmint.model.automatic.mask_tiles import Strip
from segmint.model.automatic.runs import changes
from segmint.model.automatic.taps import Taps, taps_of
from segmint.model.automatic.upscaling import BoxedUpscaling, StableMasks, Upscaling
from segmint.model.sam.predictor import Embedding, Predictor

# Pixels drawn at once, one byte each, and how many of them may be one mask's, where torch's operations take 4 bytes or
# more a pixel. The low-resolution logits of masks drawn at once are copied, 256 KB each.
_DRAWN_PIXELS = 1 << 26
_STRIP_PIXELS = 1 << 24
_DRAWN_MASKS = 256


class MaskOperations(Protocol):
    """An implementation of the pixels' arithmetic: `mask_tiles` or `mask_kernels`, with the same bits."""

    def measure(self, low: Tensor, rows: Taps, columns: Taps, offset: float) -> Tensor:
        """See `mask_tiles.measure`."""

    def draw(self, flat: Tensor, low: Tensor, rows: Taps, columns: Taps, strips: Sequence[Strip]) -> None:
        """See `mask_tiles.draw`."""


@dataclass(frozen=True)
class Outline:
    """A mask that is measured but not drawn: its logits (256, 256) on the device, and its box in the crop."""

    logits: Tensor
    box: Box


def upscaling_of(predictor: Predictor, embedding: Embedding) -> Upscaling[Any]:
    """The faster implementation on the embedding's device; both find the same masks."""
    if embedding.features.device.type == "cpu":
        return BoxedUpscaling(embedding, predictor.sam.image_size)
    return TiledUpscaling(embedding, predictor.sam.image_size)


class TiledUpscaling:
    """Measures all masks of a chunk at once, and draws the requested ones as runs."""

    def __init__(
        self, embedding: Embedding, image_size: int, low_side: int = 256, operations: MaskOperations | None = None
    ) -> None:
        """Take the side of the encoder's input (1024), and that of low-resolution masks.

        `operations`: by default Triton's kernels on CUDA if Triton is installed, else torch's operations.
        """
        (height, width), (frame_height, frame_width) = embedding.input_size, embedding.frame_size
        device = embedding.features.device
        self._rows = taps_of(low_side, image_size, height, frame_height, device)
        self._columns = taps_of(low_side, image_size, width, frame_width, device)
        self._operations = operations or (KERNELS if device.type == "cuda" else mask_tiles)

    def stable_masks(self, logits: Tensor, offset: float, threshold: float) -> StableMasks[Outline]:
        """See `Upscaling`."""
        found = self._operations.measure(logits, self._rows, self._columns, offset).cpu()
        scores = found[:, 0].to(torch.float32) / found[:, 2].to(torch.float32)
        kept = torch.nonzero(stable(scores, threshold)).flatten()
        numbers = found[kept].numpy()
        boxes = numbers[:, 3:]
        # The device need not keep the other masks' logits.
        outlines = zip(logits[kept.to(logits.device)], boxes.tolist(), strict=True)
        return StableMasks(
            kept.numpy(),
            scores[kept].numpy(),
            numbers[:, 1],
            boxes,
            tuple(Outline(one, (x0, y0, x1, y1)) for one, (x0, y0, x1, y1) in outlines),
        )

    def draw(self, sketches: Sequence[Outline]) -> list[Patch]:
        """See `Upscaling`."""
        found: list[list[NDArray[np.int64]]] = [[] for _ in sketches]
        for first, strips in strips_of([sketch.box for sketch in sketches]):
            last = strips[-1]
            low = torch.stack([sketch.logits for sketch in sketches[first : first + last.mask + 1]])
            pixels = last.start + last.columns * (last.height + 1)
            flat = torch.empty(pixels, dtype=torch.uint8, device=low.device)
            self._operations.draw(flat, low, self._rows, self._columns, strips)
            places = changes(flat)
            cuts = np.searchsorted(places, [strip.start for strip in strips[1:]])
            for strip, runs in zip(strips, np.split(places, cuts), strict=True):
                mask = first + strip.mask
                before = (strip.x - sketches[mask].box[0]) * (strip.height + 1)
                found[mask].append(runs - strip.start + before)
        return [
            RunPatch((x0, y0), (y1 - y0 + 1, x1 - x0 + 1), np.concatenate(runs))
            for (x0, y0, x1, y1), runs in zip((sketch.box for sketch in sketches), found, strict=True)
        ]


def strips_of(boxes: Sequence[Box]) -> Iterator[tuple[int, list[Strip]]]:
    """The masks with these boxes as groups of strips to draw at once, each group with the index of its first mask.

    A strip's mask is counted from that first one. A mask with a large box has several strips, also across groups.
    """
    first, strips, drawn = 0, list[Strip](), 0
    for mask, (x0, y0, x1, y1) in enumerate(boxes):
        height = y1 - y0 + 1
        step = max(1, _STRIP_PIXELS // (height + 1))
        for x in range(x0, x1 + 1, step):
            columns = min(step, x1 + 1 - x)
            if strips and (drawn + columns * (height + 1) > _DRAWN_PIXELS or mask - first >= _DRAWN_MASKS):
                yield first, strips
                strips, drawn = [], 0
            if not strips:
                first = mask
            strips.append(Strip(mask - first, x, y0, columns, height, drawn))
            drawn += columns * (height + 1)
    if strips:
        yield first, strips


class KernelsWithFallback:
    """Triton's kernels; once one fails to compile or start, torch's operations."""

    def __init__(self) -> None:
        self._operations: MaskOperations | None = None

    def measure(self, low: Tensor, rows: Taps, columns: Taps, offset: float) -> Tensor:
        """See `mask_tiles.measure`."""
        found: Tensor = self._call("measure", low, rows, columns, offset)
        return found

    def draw(self, flat: Tensor, low: Tensor, rows: Taps, columns: Taps, strips: Sequence[Strip]) -> None:
        """See `mask_tiles.draw`."""
        self._call("draw", flat, low, rows, columns, strips)

    def _call(self, name: str, *arguments: Any) -> Any:
        try:
            self._operations = self._operations or kernels()
            return getattr(self._operations, name)(*arguments)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            # Compilers and drivers fail in many ways; an error that is not theirs is raised again below.
            if self._operations is mask_tiles:
                raise
            self._operations = mask_tiles
            found = getattr(mask_tiles, name)(*arguments)
            warnings.warn(
                f"Triton's kernels for upscaling masks failed ({type(error).__name__}: {_first_line(error)}): "
                "torch's operations are used instead, slower but with the same results",
                RuntimeWarning,
                stacklevel=4,
            )
            return found


def kernels() -> MaskOperations:
    """Triton's kernels if Triton is installed, else torch's operations."""
    if find_spec("triton") is None:
        return mask_tiles
    from segmint.model.automatic import mask_kernels

    return mask_kernels


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]


KERNELS = KernelsWithFallback()
