"""Greedy non-maximum suppression of boxes, sequentially on the host or in parallel on a device."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Number of boxes to compare in one step on a device, which takes 64 MB per float32 matrix of pairs.
_BLOCK = 4096

# For up to this many boxes, the host takes milliseconds, in which the device decodes the next crop. If NMS ran on the
# device, it would wait for that crop several times.
_FEW = 4096


def nms(
    boxes: NDArray[np.int64], scores: NDArray[np.float32], threshold: float, device: torch.device | None = None
) -> NDArray[np.int64]:
    """Return the indices of the boxes to keep, by descending score, with ties in input order.

    A box is dropped if its IoU with a kept box that ranks higher is strictly above the threshold. The IoU is computed
    in float32 from areas (x1 - x0)(y1 - y0). A box that is one pixel wide or high has area 0. The IoU of two such boxes
    is 0/0, which never exceeds a threshold, so even an identical box doesn't suppress it.

    Args:
        boxes: (N, 4) as x0, y0, x1, y1.
        scores: (N,).
        threshold: compared in double precision.
        device: accelerator that processes large inputs, with the same result; None or a CPU means the host.
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


def nms_on_device(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Return the result of `nms` for boxes (N, 4) and scores (N,) on their device, without one step per box.

    With boxes in order, box j stays unless a box i < j overlaps it and stays. Starting with all boxes, this rule is
    applied to all of them in parallel until nothing changes. Box j only depends on earlier boxes, so the first n are
    final after n rounds, and the fixed point is the greedy result. A few rounds are enough, because chains of
    suppression are short ("Cluster-NMS", arXiv 2005.03572, Section 4.2). Larger inputs are split into blocks, and each
    finished block suppresses boxes in later blocks.
    """
    order = torch.argsort(-scores.to(torch.float32), stable=True)
    blocks = torch.split(boxes.to(torch.float32)[order], _BLOCK)
    alive = [torch.ones(len(block), dtype=torch.bool, device=boxes.device) for block in blocks]
    for index, block in enumerate(blocks):
        alive[index] = _settle(_over(block, block, threshold).triu(diagonal=1), alive[index])
        for later in range(index + 1, len(blocks)):
            alive[later] &= ~_over(block[alive[index]], blocks[later], threshold).any(dim=0)
    return order[torch.cat(alive)] if alive else order


def _settle(suppresses: Tensor, possible: Tensor) -> Tensor:
    """Return the boxes that stay, (N,) bool, given `suppresses` (N, N) bool, i over j > i, and `possible` (N,) bool."""
    stays = possible
    while True:
        again = possible & ~(suppresses & stays[:, None]).any(dim=0)
        if torch.equal(again, stays):
            return stays
        stays = again


def _over(first: Tensor, second: Tensor, threshold: float) -> Tensor:
    """Return True if the IoU of boxes (N, 4) and (M, 4) float32 exceeds the threshold, (N, M) bool, as in `nms`."""
    x0, y0, x1, y1 = first[:, None].unbind(dim=2)
    u0, v0, u1, v1 = second[None].unbind(dim=2)
    width = (torch.minimum(x1, u1) - torch.maximum(x0, u0)).clamp(min=0)
    height = (torch.minimum(y1, v1) - torch.maximum(y0, v0)).clamp(min=0)
    shared = width * height
    overlap = shared / ((x1 - x0) * (y1 - y0) + (u1 - u0) * (v1 - v0) - shared)
    return overlap.to(torch.float64) > threshold
