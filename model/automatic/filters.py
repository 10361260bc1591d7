"""Filters of mask generation, one function per criterion."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segmint.model.automatic.boxes import Box

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


def stable_of_counts(
    inner: NDArray[np.int64], outer: NDArray[np.int64], threshold: float
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the indices (K,) and scores (K,) of the stable masks among N, as `stability_scores` and `stable` would.

    `inner` and `outer` (N,) are the numbers of pixels above +offset and above -offset.
    """
    scores = torch.from_numpy(inner).to(torch.float32) / torch.from_numpy(outer).to(torch.float32)
    kept = torch.nonzero(stable(scores, threshold)).flatten()
    return kept.numpy(), scores[kept].numpy()


def under_max_area(areas: NDArray[np.int64], frame_size: tuple[int, int], ratio: float) -> NDArray[np.bool_]:
    """Return True for each mask that covers less than `ratio` of the whole frame, (N,) bool (SAM paper, Appendix B).

    `areas` (N,) int64 are in pixels of the frame of (height, width). A ratio of 0 or less passes all.
    """
    if ratio <= 0:
        return np.ones(areas.shape, dtype=np.bool_)
    under: NDArray[np.bool_] = areas < ratio * (frame_size[0] * frame_size[1])
    return under


def inside_crop(boxes: NDArray[np.int64], crop_box: Box, frame_size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return True for each box (N, 4) that doesn't touch an inner side of the crop, (N,) bool.

    An inner side is a side that isn't also a side of the image. `boxes` and `crop_box` are x0, y0, x1, y1 in pixels of
    the frame of (height, width). The ends of boxes are inclusive, and the ends of the crop are exclusive. Each side of
    a box is compared only with the same side of the crop (reference code).
    """
    height, width = frame_size
    near_crop = np.abs(boxes - np.array(crop_box)) <= EDGE_TOLERANCE
    near_image = np.abs(boxes - np.array((0, 0, width, height))) <= EDGE_TOLERANCE
    inside: NDArray[np.bool_] = ~(near_crop & ~near_image).any(axis=1)
    return inside
