"""Candidate masks and what is done to them: filters, NMS, and removal of small regions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segmint.infra.arrays import Bools, Floats, Floats32, Ints, PixelBox, Size
from segmint.model.automatic.rle import Funnel, Rle, encode_runs


@dataclass(frozen=True)
class MaskPatch:
    """Mask that is stored as runs along the columns of a window. All pixels outside the window are background.

    Attributes:
        corner: (x, y) of the window's top left pixel, in pixels of the frame.
        shape: (height, width) of the window.
        changes: (2 R,) int64, increasing. The first pixel of a foreground run, the pixel after its last one, and so on.
            Columns are concatenated, each followed by one background pixel, so pixel (x, y) of the window is at x *
            (height + 1) + y. If a run reaches the bottom of the window, it ends at that background pixel.
    """

    corner: tuple[int, int]
    shape: Size
    changes: Ints

    @classmethod
    def pack(cls, mask: Bools, box: PixelBox, offset: tuple[int, int] = (0, 0)) -> "MaskPatch":
        """Pack the part of a mask (h, w) bool inside `box`, ends inclusive.

        `offset` (x, y) is the corner of `mask` in the frame.
        """
        x0, y0, x1, y1 = box
        window = mask[y0 : y1 + 1, x0 : x1 + 1]
        height, width = window.shape
        flat = np.zeros(1 + width * (height + 1), dtype=np.bool_)  # a background pixel, and the columns
        flat[1:].reshape(width, height + 1)[:, :height] = window.T
        return cls((x0 + offset[0], y0 + offset[1]), (height, width), np.flatnonzero(flat[1:] != flat[:-1]))

    @property
    def box(self) -> PixelBox:
        """Window as a box in the frame, both ends inclusive."""
        (x, y), (height, width) = self.corner, self.shape
        return x, y, x + width - 1, y + height - 1

    @property
    def area(self) -> int:
        """Number of foreground pixels."""
        return int((self.changes[1::2] - self.changes[0::2]).sum())

    def window(self) -> Bools:
        """Unpack the pixels inside the window, (height, width) bool."""
        height, width = self.shape
        lengths = np.diff(self.changes, prepend=0, append=width * (height + 1))
        values = np.zeros(lengths.size, dtype=np.bool_)
        values[1::2] = True
        return np.ascontiguousarray(np.repeat(values, lengths).reshape(width, height + 1)[:, :height].T)

    def places(self, stride: int) -> Ints:
        """Return `changes` as positions x * stride + y in the frame, (2 R,). `stride` is the frame's height or more."""
        (x, y), (height, _) = self.corner, self.shape
        column, pixel = np.divmod(self.changes, height + 1)
        positions: Ints = (column + x) * stride + (pixel + y)
        return positions

    def encode(self, frame_size: Size) -> Rle:
        """Encode the mask in a frame of (height, width). Raises ValueError if the window exceeds the frame."""
        (x, y), (height, width) = self.corner, self.shape
        if x < 0 or y < 0 or y + height > frame_size[0] or x + width > frame_size[1]:
            raise ValueError(f"a window of {self.shape} at x={x}, y={y} extends beyond the frame of {frame_size}")
        places = self.places(frame_size[0])
        return encode_runs(places[0::2], places[1::2], frame_size)

    def moved(self, by: tuple[int, int]) -> Self:
        """Shift the mask by (x, y) pixels."""
        return replace(self, corner=(self.corner[0] + by[0], self.corner[1] + by[1]))


_EMPTY: dict[str, NDArray[Any]] = {
    "predicted_iou": np.zeros(0, np.float32),
    "stability": np.zeros(0, np.float32),
    "points": np.zeros((0, 2)),
    "outputs": np.zeros(0, np.int64),
    "boxes": np.zeros((0, 4), np.int64),
    "crop_boxes": np.zeros((0, 4), np.int64),
}
"""Columns of `CandidateMasks` without masks."""


@dataclass(frozen=True)
class CandidateMasks:
    """Candidate masks with the values that later steps need. All coordinates are in pixels of the frame.

    Attributes:
        predicted_iou: (N,) float32.
        stability: (N,) float32.
        points: (N, 2) float64, (x, y).
        outputs: (N,) int64, index of each mask among the decoder's three outputs, 0 to 2.
        boxes: (N, 4) int64 as x0, y0, x1, y1, ends inclusive.
        crop_boxes: (N, 4) int64 as x0, y0, x1, y1, ends exclusive.
        patches: the N masks.
    """

    predicted_iou: Floats32
    stability: Floats32
    points: Floats
    outputs: Ints
    boxes: Ints
    crop_boxes: Ints
    patches: tuple[MaskPatch, ...]

    def __len__(self) -> int:
        return len(self.patches)

    def take(self, indices: Ints) -> Self:
        """Select the candidates with these indices, in this order."""
        columns = {name: getattr(self, name)[indices] for name in _EMPTY}
        return type(self)(**columns, patches=tuple(self.patches[index] for index in indices))

    def with_patches(self, replaced: dict[int, MaskPatch]) -> Self:
        """Replace the masks at some positions, update their boxes, and return the result as a copy."""
        boxes = self.boxes.copy()
        patches = list(self.patches)
        for index, patch in replaced.items():
            boxes[index] = patch.box
            patches[index] = patch
        return replace(self, boxes=boxes, patches=tuple(patches))


def concatenate(parts: Sequence[CandidateMasks]) -> CandidateMasks:
    """Concatenate the candidates of all parts, in order. Without parts, the result is empty."""
    columns = {name: joined(parts, name) for name in _EMPTY}
    return CandidateMasks(**columns, patches=tuple(patch for part in parts for patch in part.patches))


def joined(parts: Sequence[Any], column: str) -> NDArray[Any]:
    """Concatenate a column of `CandidateMasks`, or of other parts with a column of that name. There may be no parts."""
    return np.concatenate([_EMPTY[column], *(getattr(part, column) for part in parts)])


@dataclass(frozen=True)
class RawMasks:
    """Masks of one image as the model predicted them, before NMS across crops and cleanup.

    Attributes:
        candidates: masks of all crops after NMS within each crop, crop by crop, on the host.
        funnel: counts up to `after_nms1`.
        frame_size: (height, width) of the image in pixels.
    """

    candidates: CandidateMasks
    funnel: Funnel
    frame_size: Size


# Maximum distance in pixels of the frame between a box's side and a crop's edge that it touches (reference code of the
# SAM paper).
EDGE_TOLERANCE = 20


def over_iou(predicted_iou: Tensor, threshold: float) -> Tensor:
    """Return True for each predicted IoU, in any shape, that is strictly above the threshold. 0 or less passes all."""
    if threshold <= 0:
        return torch.ones_like(predicted_iou, dtype=torch.bool)
    return predicted_iou > threshold


def stability_scores(logits: Tensor, offset: float) -> Tensor:
    """Return the IoU of the masks thresholded at +offset and at -offset, (N,) float32 from logits (N, h, w).

    One of the two masks always contains the other, so the IoU is the ratio of their pixel counts. It's NaN if no logit
    is above -offset (SAM paper, Appendix B).
    """
    inner = torch.count_nonzero(logits > offset, dim=(1, 2))
    outer = torch.count_nonzero(logits > -offset, dim=(1, 2))
    return inner.to(torch.float32) / outer.to(torch.float32)


def stable(scores: Tensor, threshold: float) -> Tensor:
    """Return True for each score that is at least the threshold, (N,) bool. NaN fails. 0 or less passes all."""
    if threshold <= 0:
        return torch.ones_like(scores, dtype=torch.bool)
    return scores >= threshold


def stable_of_counts(inner: Ints, outer: Ints, threshold: float) -> tuple[Ints, Floats32]:
    """Return the indices (K,) and scores (K,) of the stable masks among N, as `stability_scores` and `stable` would.

    `inner` and `outer` (N,) are the numbers of pixels above +offset and above -offset.
    """
    scores = torch.from_numpy(inner).to(torch.float32) / torch.from_numpy(outer).to(torch.float32)
    kept = torch.nonzero(stable(scores, threshold)).flatten()
    return kept.numpy(), scores[kept].numpy()


def under_max_area(areas: Ints, frame_size: Size, ratio: float) -> Bools:
    """Return True for each mask that covers less than `ratio` of the whole frame, (N,) bool (SAM paper, Appendix B).

    `areas` (N,) int64 are in pixels of the frame of (height, width). A ratio of 0 or less passes all.
    """
    if ratio <= 0:
        return np.ones(areas.shape, dtype=np.bool_)
    under: Bools = areas < ratio * (frame_size[0] * frame_size[1])
    return under


def inside_crop(boxes: Ints, crop_box: PixelBox, frame_size: Size) -> Bools:
    """Return True for each box (N, 4) that doesn't touch an inner side of the crop, (N,) bool.

    An inner side is a side that isn't also a side of the image. `boxes` and `crop_box` are x0, y0, x1, y1 in pixels of
    the frame of (height, width). The ends of boxes are inclusive, and the ends of the crop are exclusive. Each side of
    a box is compared only with the same side of the crop (reference code).
    """
    height, width = frame_size
    near_crop = np.abs(boxes - np.array(crop_box)) <= EDGE_TOLERANCE
    near_image = np.abs(boxes - np.array((0, 0, width, height))) <= EDGE_TOLERANCE
    inside: Bools = ~(near_crop & ~near_image).any(axis=1)
    return inside


# The host needs only milliseconds for this many boxes, while the device decodes the next crop. NMS on the device would
# have to wait for that crop several times.
_FEW = 4096


def nms(boxes: Ints, scores: Floats32, threshold: float, device: torch.device | None = None) -> Ints:
    """Return the indices of the boxes to keep, by descending score. Ties stay in input order.

    A kept box suppresses a lower-ranked box if their IoU is strictly above the threshold. The IoU is computed in
    float32 from areas (x1 - x0)(y1 - y0). This means that a box one pixel wide or high has area 0. The IoU of two such
    boxes is 0/0, which never exceeds a threshold, so they don't suppress each other even if they're identical.

    Args:
        boxes: (N, 4) as x0, y0, x1, y1.
        scores: (N,).
        threshold: IoU threshold, compared in double precision.
        device: accelerator on which to process large inputs, with the same result. With None or a CPU, the host
            processes them.
    """
    if device is not None and device.type != "cpu" and len(boxes) > _FEW:
        ranks = nms_on_device(torch.from_numpy(boxes).to(device), torch.from_numpy(scores).to(device), threshold)
        return ranks.cpu().numpy()
    order = np.argsort(-scores.astype(np.float32), kind="stable")
    ranked = boxes.astype(np.float32)[order]
    x0, y0, x1, y1 = ranked.T
    areas = (x1 - x0) * (y1 - y0)
    alive = np.ones(order.size, dtype=np.bool_)
    for index in range(order.size):
        if not alive[index]:
            continue
        rest = slice(index + 1, None)
        width = np.maximum(np.minimum(x1[index], x1[rest]) - np.maximum(x0[index], x0[rest]), np.float32(0))
        height = np.maximum(np.minimum(y1[index], y1[rest]) - np.maximum(y0[index], y0[rest]), np.float32(0))
        shared = width * height
        with np.errstate(invalid="ignore", divide="ignore"):
            overlap = shared / (areas[index] + areas[rest] - shared)
        alive[rest] &= ~(overlap.astype(np.float64) > threshold)
    return order[alive]


def nms_on_device(boxes: Tensor, scores: Tensor, threshold: float, block_boxes: int = 4096) -> Tensor:
    """Run `nms` for boxes (N, 4) and scores (N,) on their device, without one step per box.

    In ranked order, box j stays unless some box i < j stays and overlaps it. The function starts with all boxes and
    applies this rule to all of them in parallel until nothing changes. Box j depends only on earlier boxes, so after n
    rounds, the first n boxes are final, and the fixed point is the greedy result. In practice, a few rounds are enough,
    because chains of suppression are short ("Cluster-NMS", arXiv 2005.03572, Section 4.2). Larger inputs are divided
    into blocks of `block_boxes`, and each finished block suppresses boxes in later blocks. With the default, each
    float32 matrix of pairs takes 64 MB.
    """
    order = torch.argsort(-scores.to(torch.float32), stable=True)
    blocks = torch.split(boxes.to(torch.float32)[order], block_boxes)
    alive = [torch.ones(len(block), dtype=torch.bool, device=boxes.device) for block in blocks]
    for index, block in enumerate(blocks):
        alive[index] = _settle(_over(block, block, threshold).triu(diagonal=1), alive[index])
        for later in range(index + 1, len(blocks)):
            alive[later] &= ~_over(block[alive[index]], blocks[later], threshold).any(dim=0)
    return order[torch.cat(alive)] if alive else order


def _settle(suppresses: Tensor, possible: Tensor) -> Tensor:
    """Find the boxes that stay, (N,) bool.

    `suppresses` (N, N) bool is True where box i would suppress box j, and `possible` (N,) bool are the candidates.
    """
    stays = possible
    while True:
        again = possible & ~(suppresses & stays[:, None]).any(dim=0)
        if torch.equal(again, stays):
            return stays
        stays = again


def _over(first: Tensor, second: Tensor, threshold: float) -> Tensor:
    """Compare all boxes (N, 4) with all boxes (M, 4) float32, and return True where the IoU exceeds the threshold.

    The result is (N, M) bool. The IoU is the same as in `nms`.
    """
    x0, y0, x1, y1 = first[:, None].unbind(dim=2)
    u0, v0, u1, v1 = second[None].unbind(dim=2)
    width = (torch.minimum(x1, u1) - torch.maximum(x0, u0)).clamp(min=0)
    height = (torch.minimum(y1, v1) - torch.maximum(y0, v0)).clamp(min=0)
    shared = width * height
    overlap = shared / ((x1 - x0) * (y1 - y0) + (u1 - u0) * (v1 - v0) - shared)
    return overlap.to(torch.float64) > threshold


class CleanedPatch(NamedTuple):
    """Result of cleaning one mask in the frame.

    Attributes:
        patch: the mask. None if all islands were too small and the largest one wasn't kept.
        holes: True if a hole was smaller than the limit and was filled.
        islands: True if an island was smaller than the limit, even if the mask didn't change.
    """

    patch: MaskPatch | None
    holes: bool
    islands: bool


class _Runs(NamedTuple):
    """Vertical runs of pixels in some columns of the frame, in column-major order.

    Pixel (x, y) is at position `(x - first column) * (frame height + 1) + y`, so runs of different columns never touch.

    Attributes:
        starts: (R,) position of the first pixel of each run.
        ends: (R,) position after the last pixel of each run.
    """

    starts: Ints
    ends: Ints

    def select(self, stays: Bools) -> "_Runs":
        """Return the runs at which `stays` (R,) is True."""
        return _Runs(self.starts[stays], self.ends[stays])


def clean_patch(patch: MaskPatch, frame_size: Size, min_area: int, keep_largest: bool) -> CleanedPatch:
    """Fill holes and then remove islands that contain fewer than `min_area` pixels, in a frame of (height, width).

    Background that is enclosed by the mask and the frame's border counts as a hole, too. If all islands are small and
    `keep_largest` is set, the largest island stays (the first one in OpenCV's label order, which is that of the
    reference code). Without `keep_largest`, the mask is dropped, as in SA-1B (SAM paper, Appendix B). An empty mask is
    dropped unless `keep_largest` is set.

    Components are labeled on runs of pixels, and only in the columns of the patch and in a margin that contains at
    least `min_area` pixels on each side, unless it reaches the side of the frame. As a result, background that
    continues outside these columns never looks like a small hole.
    """
    height, width = frame_size
    margin = -(-min_area // height)
    first = max(0, patch.corner[0] - margin)
    columns = min(width, patch.corner[0] + patch.shape[1] + margin) - first
    places = patch.places(height + 1) - first * (height + 1)
    mask = _Runs(places[0::2], places[1::2])

    mask, holes = _without_holes(mask, columns, height, min_area)
    kept, islands = _without_islands(mask, first, frame_size, min_area, keep_largest)
    if kept is None or not (holes or islands):
        return CleanedPatch(None if kept is None else patch, holes, islands)
    return CleanedPatch(_packed(kept, first, height), holes, islands)


def remove_small_regions(mask: Bools, min_area: int, mode: str) -> tuple[Bools, bool]:
    """Fill small holes or remove small islands of a mask (h, w), as `clean_patch` does. Return True if there were any.

    `mode` is "holes" or "islands". If all islands are small, the largest one stays.
    """
    height, width = mask.shape
    whole = MaskPatch.pack(mask, (0, 0, width - 1, height - 1))
    runs = _Runs(whole.changes[0::2], whole.changes[1::2])
    cleaned: _Runs | None
    if mode == "holes":
        cleaned, has_small = _without_holes(runs, width, height, min_area)
    else:
        cleaned, has_small = _without_islands(runs, 0, (height, width), min_area, keep_largest=True)
    if cleaned is None or not has_small:
        return mask, has_small
    return replace(whole, changes=np.stack(cleaned, axis=1).ravel()).window(), True


def _without_holes(mask: _Runs, columns: int, height: int, min_area: int) -> tuple[_Runs, bool]:
    """Fill the small holes of a mask in `columns` whole columns. Also return whether there were any."""
    background = _inverted(mask, columns, height)
    labels, areas = _components(background, height)
    small = areas < min_area
    if not small.any():
        return mask, False
    return _inverted(background.select(~small[labels]), columns, height), True


def _without_islands(
    mask: _Runs, first: int, frame_size: Size, min_area: int, keep_largest: bool
) -> tuple[_Runs | None, bool]:
    """Remove the small islands of a mask, or return None as in `clean_patch`. Also return whether there were any."""
    labels, areas = _components(mask, frame_size[0])
    keep = areas >= min_area
    islands = not bool(keep.all())
    if not keep.any():
        if not keep_largest:
            return None, islands
        if islands:
            keep[_first_largest(mask, labels, areas, first, frame_size)] = True
    return mask.select(keep[labels]), islands


def _inverted(runs: _Runs, columns: int, height: int) -> _Runs:
    """Return the runs of all other pixels of `columns` whole columns."""
    tops = np.arange(columns) * (height + 1)
    starts = np.sort(np.concatenate((tops, runs.ends)), kind="stable")  # fast, because both parts are sorted
    ends = np.sort(np.concatenate((runs.starts, tops + height)), kind="stable")
    filled = starts < ends
    return _Runs(starts[filled], ends[filled])


def _components(runs: _Runs, height: int) -> tuple[Ints, Ints]:
    """Label the 8-connected components, and return each run's label, (R,), and each component's area, (N,).

    Runs in neighboring columns are connected if they overlap or touch at a corner.
    """
    stride = height + 1
    before = np.searchsorted(runs.ends, runs.starts - stride, side="left")
    after = np.searchsorted(runs.starts, runs.ends - stride, side="right")
    touching = after - before  # number of runs in the column to the left that each run touches
    right = np.repeat(np.arange(touching.size), touching)
    left = np.arange(right.size) - np.repeat(np.cumsum(touching) - touching - before, touching)
    roots = _least_connected(touching.size, left, right)
    is_root = roots == np.arange(roots.size)
    labels = (np.cumsum(is_root) - 1)[roots]
    areas = np.bincount(labels, runs.ends - runs.starts, minlength=int(is_root.sum()))
    return labels, areas.astype(np.int64)


def _least_connected(count: int, one: Ints, other: Ints) -> Ints:
    """Return the smallest node of each node's component, (count,), in a graph with edges from `one` to `other`.

    Each round links the root of every tree to the smallest root that an edge leads to, and then makes all nodes point
    to their root.
    """
    roots = np.arange(count)
    while one.size:
        np.minimum.at(roots, np.maximum(one, other), np.minimum(one, other))
        farther = roots[roots]
        while not np.array_equal(farther, roots):
            roots, farther = farther, farther[farther]
        one, other = roots[one], roots[other]
        apart = one != other
        one, other = one[apart], other[apart]
    return roots


def _first_largest(runs: _Runs, labels: Ints, areas: Ints, first: int, frame_size: Size) -> int:
    """Return the label of the largest component. OpenCV orders components of equal area by squares of 2x2 pixels."""
    height, width = frame_size
    largest = np.flatnonzero(areas[labels] == areas.max())
    column, row = np.divmod(runs.starts[largest], height + 1)
    square = row // 2 * width + (column + first) // 2
    return int(labels[largest[square.argmin()]])


def _packed(runs: _Runs, first: int, height: int) -> MaskPatch:
    """Convert runs, of which there is at least one, to a mask in the smallest window that contains them."""
    column, row = np.divmod(runs.starts, height + 1)
    end = row + (runs.ends - runs.starts)
    x, y = int(column[0]), int(row.min())
    shape = int(end.max()) - y, int(column[-1]) - x + 1
    changes = np.repeat((column - x) * (shape[0] + 1) - y, 2)
    changes[0::2] += row
    changes[1::2] += end
    return MaskPatch((first + x, y), shape, changes)
