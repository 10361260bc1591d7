"""Conversion of low-resolution logits to masks on an accelerator, without storing a full-size mask.

1. *Measure first.* Filters and NMS need only three counts and a box per mask. One pass over a chunk's masks reduces
   tiles of logits to these numbers, and the device copies only the numbers to the host.
2. *Draw last.* For the few masks that remain, the device computes the logits again, only inside the masks' boxes. It
   draws the masks one after another into one buffer. Both passes produce the same bits (`mask_tiles.py`), so boxes and
   counts match the pixels.
3. *Copy runs, not pixels.* The device finds the starts and ends of the runs of all drawn masks at once (`changes`). It
   copies only these positions to the host, in a single transfer.
"""

import warnings
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segmint.infra.arrays import Ints, PixelBox
from segmint.model.automatic import mask_tiles
from segmint.model.automatic.candidates import MaskPatch, stable_of_counts
from segmint.model.automatic.mask_tiles import Strip, Taps, taps_of
from segmint.model.automatic.proposals import BorderUpscaling, BoxedUpscaling, StableMasks, Upscaling, suits
from segmint.model.device import HostTransfer, first_line, run_to_end
from segmint.model.sam.geometry import Geometry
from segmint.model.sam.predictor import Embedding, Predictor

# Number of pixels to draw at once, at one byte each, and the maximum for one strip of a mask, because torch's
# operations need 4 bytes or more per pixel. The low-resolution logits of masks that are drawn together are copied, at
# 256 KB per mask.
DRAWN_PIXELS = 1 << 26
STRIP_PIXELS = 1 << 24
DRAWN_MASKS = 256


class MaskOperations(Protocol):
    """Implementation of the pixel arithmetic. `mask_tiles` and `mask_kernels` produce identical bits."""

    def measure(
        self, low: Tensor, rows: Taps, columns: Taps, offset: float, wanted: Tensor | None = None
    ) -> Tensor: ...

    def draw(self, flat: Tensor, low: Tensor, rows: Taps, columns: Taps, strips: Sequence[Strip]) -> None: ...


@dataclass(frozen=True)
class MaskOutline:
    """Mask that has been measured but not drawn.

    Attributes:
        chunk: (N, 256, 256), the logits of the mask's chunk, on the device.
        index: index of the mask in the chunk. A view of its logits is made only if the mask is drawn.
        box: the mask's box in the crop.
    """

    chunk: Tensor
    index: int
    box: PixelBox


def upscaling_of(predictor: Predictor, embedding: Embedding) -> Upscaling[Any]:
    """Choose the fastest implementation for the embedding's device. All implementations find the same masks."""
    if embedding.features.device.type == "cpu":
        geometry, kernels = predictor.sam.geometry, predictor.kernels
        if kernels is not None and suits(geometry):
            return BorderUpscaling(kernels, embedding, geometry)
        return BoxedUpscaling(embedding, geometry)
    return TiledUpscaling(embedding, predictor.sam.geometry, mask_operations(predictor))


def mask_operations(predictor: Predictor) -> MaskOperations:
    """Choose the pixel arithmetic for a model: the Triton kernels on CUDA if Triton is installed, otherwise torch's.

    If the predictor must compile its encoder, as in builds, a kernel that fails raises an error. Otherwise, torch's
    operations replace it, with a warning.
    """
    if predictor.sam.device.type != "cuda":
        return mask_tiles
    return kernels() if predictor.must_compile else KERNELS


class TiledUpscaling:
    """Upscaling that measures all masks of a chunk at once, and draws only the requested masks, as runs."""

    def __init__(self, embedding: Embedding, geometry: Geometry, operations: MaskOperations | None = None) -> None:
        """Compute the interpolation weights for the embedding's frame. `geometry` is the model's geometry.

        `operations` defaults to the Triton kernels on CUDA if Triton is installed, and to torch operations otherwise.
        """
        rows, columns = geometry.mask_axes(embedding.input_size, embedding.frame_size)
        device = embedding.features.device
        self._rows, self._columns = taps_of(*rows, device), taps_of(*columns, device)
        self._operations = operations or (KERNELS if device.type == "cuda" else mask_tiles)

    def measure(self, logits: Tensor, offset: float, wanted: Tensor | None = None) -> Tensor:
        """Measure the counts and boxes of the masks of logits (N, 256, 256), as (N, 7) int64 on the logits' device."""
        return self._operations.measure(logits, self._rows, self._columns, offset, wanted)

    def stable_masks(self, logits: Tensor, offset: float, threshold: float) -> StableMasks[MaskOutline]:
        numbers = self.measure(logits, offset).cpu().numpy()
        return stable_outlines(numbers, [logits], np.arange(len(logits)), threshold)

    def draw(self, sketches: Sequence[MaskOutline]) -> list[MaskPatch]:
        return run_to_end(self.draw_in_steps(sketches))

    def draw_in_steps(self, sketches: Sequence[MaskOutline]) -> Generator[None, None, list[MaskPatch]]:
        """Draw the masks like `draw`, but pause after starting work on the device and before waiting for it.

        If the masks have more runs than expected, this pauses twice.
        """
        groups = list(strips_of([sketch.box for sketch in sketches]))
        counts: dict[int, int] = {}
        drawn: dict[int, NDArray[np.int32]] = {}
        while missing := [group for group in range(len(groups)) if group not in drawn]:
            # If a group has more runs than fit into its room, draw the group again with enough room.
            rooms = [counts.get(group, room_for(groups[group][1])) for group in missing]
            flats = [self._runs_of(sketches, *groups[group], room) for group, room in zip(missing, rooms, strict=True)]
            fetched = HostTransfer(torch.cat(flats))
            yield
            answers = np.split(fetched.numpy(), np.cumsum([1 + room for room in rooms])[:-1])
            for group, room, answer in zip(missing, rooms, answers, strict=True):
                counts[group] = int(answer[0])
                if counts[group] <= room:
                    drawn[group] = answer[1 : 1 + counts[group]]
        found: list[list[Ints]] = [[] for _ in sketches]
        for group, (first, strips) in enumerate(groups):
            places = drawn[group].astype(np.int64)
            cuts = np.searchsorted(places, [strip.start for strip in strips[1:]])
            for strip, runs in zip(strips, np.split(places, cuts), strict=True):
                mask = first + strip.mask
                before = (strip.x - sketches[mask].box[0]) * (strip.height + 1)
                found[mask].append(runs - strip.start + before)
        return [
            MaskPatch((x0, y0), (y1 - y0 + 1, x1 - x0 + 1), np.concatenate(runs))
            for (x0, y0, x1, y1), runs in zip((sketch.box for sketch in sketches), found, strict=True)
        ]

    def _runs_of(self, sketches: Sequence[MaskOutline], first: int, strips: Sequence[Strip], room: int) -> Tensor:
        """Draw a group of strips, and return their `changes`. `first` is the index of the group's first sketch."""
        last = strips[-1]
        low = torch.stack([sketch.chunk[sketch.index] for sketch in sketches[first : first + last.mask + 1]])
        flat = torch.empty(last.start + last.columns * (last.height + 1), dtype=torch.uint8, device=low.device)
        self._operations.draw(flat, low, self._rows, self._columns, strips)
        return changes(flat, room)


def stable_outlines(numbers: Ints, chunks: Sequence[Tensor], masks: Ints, threshold: float) -> StableMasks[MaskOutline]:
    """Select the stable masks, and keep where their logits are.

    Args:
        numbers: (N, 7), the numbers of `TiledUpscaling.measure`.
        chunks: logits (M, 256, 256) on the device, in one or more chunks.
        masks: (N,), index of each mask in the concatenated chunks.
        threshold: minimum stability score.
    """
    kept, stability = stable_of_counts(numbers[:, 0], numbers[:, 2], threshold)
    boxes = numbers[kept, 3:]
    ends = np.cumsum([len(chunk) for chunk in chunks])
    places = np.searchsorted(ends, masks[kept], side="right")
    starts = np.concatenate(([0], ends))[places]
    outlines = []
    for place, index, (x0, y0, x1, y1) in zip(places, (masks[kept] - starts).tolist(), boxes.tolist(), strict=True):
        outlines.append(MaskOutline(chunks[place], index, (x0, y0, x1, y1)))
    return StableMasks(kept, stability, numbers[kept, 1], boxes, tuple(outlines))


def room_for(strips: Sequence[Strip]) -> int:
    """Estimate how many positions to copy for a group before their number is known: two runs per column."""
    return 4 * sum(strip.columns for strip in strips)


def strips_of(boxes: Sequence[PixelBox]) -> Iterator[tuple[int, list[Strip]]]:
    """Divide masks with these boxes into strips, and yield groups of strips to draw at once.

    Each group comes with the index of its first mask, and a strip's `mask` is relative to that index. A mask with a
    large box has several strips, which may be in several groups.
    """
    first, strips, drawn = 0, list[Strip](), 0
    for mask, (x0, y0, x1, y1) in enumerate(boxes):
        height = y1 - y0 + 1
        step = max(1, STRIP_PIXELS // (height + 1))
        for x in range(x0, x1 + 1, step):
            columns = min(step, x1 + 1 - x)
            if strips and (drawn + columns * (height + 1) > DRAWN_PIXELS or mask - first >= DRAWN_MASKS):
                yield first, strips
                strips, drawn = [], 0
            if not strips:
                first = mask
            strips.append(Strip(mask - first, x, y0, columns, height, drawn))
            drawn += columns * (height + 1)
    if strips:
        yield first, strips


class KernelsWithFallback:
    """Triton kernels. If they fail to compile or launch, torch operations replace them."""

    def __init__(self) -> None:
        self.operations: MaskOperations | None = None

    def measure(self, low: Tensor, rows: Taps, columns: Taps, offset: float, wanted: Tensor | None = None) -> Tensor:
        found: Tensor = self._call("measure", low, rows, columns, offset, wanted)
        return found

    def draw(self, flat: Tensor, low: Tensor, rows: Taps, columns: Taps, strips: Sequence[Strip]) -> None:
        self._call("draw", flat, low, rows, columns, strips)

    def _call(self, name: str, *arguments: Any) -> Any:
        try:
            self.operations = self.operations or kernels()
            return getattr(self.operations, name)(*arguments)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            # Compilers and drivers fail in many ways. If the kernels aren't the cause, the torch operations raise the
            # same error.
            if self.operations is mask_tiles:
                raise
            self.operations = mask_tiles
            found = getattr(mask_tiles, name)(*arguments)
            warnings.warn(
                f"the Triton kernels for upscaling masks failed ({type(error).__name__}: {first_line(error)}); "
                "falling back to torch, which is slower but gives the same results",
                RuntimeWarning,
                stacklevel=4,
            )
            return found


def kernels() -> MaskOperations:
    """Return the Triton kernels if Triton is installed, otherwise the torch operations."""
    if find_spec("triton") is None:
        return mask_tiles
    from segmint.model.automatic import mask_kernels

    return mask_kernels


KERNELS = KernelsWithFallback()


def changes(flat: Tensor, room: int) -> Tensor:
    """Find the positions where `flat` (N,), which contains 0 and 1, differs from the previous value. N is under 2^31.

    The value before the first one counts as 0, so the positions form pairs: the start of a run, and the position after
    its end. Each column of a mask is followed by a background pixel. No run therefore continues into the next column or
    mask, and a single search finds the positions of all masks.

    Returns (1 + room,) int32 on the device: the number of positions, then the first `room` positions, padded with -1.
    The host doesn't wait until it reads the result.
    """
    different = torch.empty(flat.shape, dtype=torch.bool, device=flat.device)
    different[:1] = flat[:1] != 0
    torch.ne(flat[1:], flat[:-1], out=different[1:])
    places = torch.nonzero_static(different, size=room, fill_value=-1).flatten()
    return torch.cat([torch.count_nonzero(different)[None], places]).to(torch.int32)
