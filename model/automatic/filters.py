"""The filters of mask generation: one function for each criterion, from values to one boolean for each mask."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segmint.model.automatic.boxes import Box

# SAM paper's reference code: pixels of the frame within which a box side counts as touching a crop's edge.
EDGE_TOLERANCE = 20


def over_iou(predicted_iou: Tensor, threshold: float) -> Tensor:
    """Predicted IoU strictly over the threshold; 0 or less passes all. Any shape, to bool."""
    if threshold <= 0:
        return torch.ones_like(predicted_iou, dtype=torch.bool)
    return predicted_iou > threshold


def stability_scores(logits: Tensor, offset: float) -> Tensor:
    """IoU of the masks thresholded at +offset and -offset: (N, h, w) logits to (N,) float32.

    NaN where nothing is over -offset. SAM paper, Appendix B; one mask always contains the other, so their
    pixel counts are the intersection and the union.
    """
    inner = torch.count_nonzero(logits > offset, dim=(1, 2))
    outer = torch.count_nonzero(logits > -offset, dim=(1, 2))
    return inner.to(torch.float32) / outer.to(torch.float32)


def stable(scores: Tensor, threshold: float) -> Tensor:
    """Stability of at least the threshold, never true for NaN; 0 or less passes all. (N,) to (N,) bool."""
    if threshold <= 0:
        return torch.ones_like(scores, dtype=torch.bool)
    return scores >= threshold


def under_max_area(areas: NDArray[np.int64], frame_size: tuple[int, int], ratio: float) -> NDArray[np.bool_]:
    """Masks that cover less than this share of the whole frame; 0 or less passes all.

    `areas` (N,) int64 in pixels of the frame of (height, width); gives (N,) bool. SAM paper, Appendix B.
    """
    if ratio <= 0:
        return np.ones(areas.shape, dtype=np.bool_)
    under: NDArray[np.bool_] = areas < ratio * (frame_size[0] * frame_size[1])
    return under


def inside_crop(boxes: NDArray[np.int64], crop_box: Box, frame_size: tuple[int, int]) -> NDArray[np.bool_]:
    """Boxes away from those sides of the crop that are not sides of the image: (N, 4) to (N,) bool.

    `boxes` and `crop_box` are x0, y0, x1, y1 in pixels of the frame of (height, width), box ends inclusive,
    crop ends exclusive. Each side is compared with the same side only, as in the reference code.
    """
    height, width = frame_size
    near_crop = np.abs(boxes - np.array(crop_box)) <= EDGE_TOLERANCE
    near_image = np.abs(boxes - np.array((0, 0, width, height))) <= EDGE_TOLERANCE
    inside: NDArray[np.bool_] = ~(near_crop & ~near_image).any(axis=1)
    return inside
