"""Greedy non-maximum suppression of boxes, ties in input order: box by box, or all at once on a device."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Boxes compared with one another at once on a device: 64 MB for each float32 matrix between them.
_BLOCK = 4096

# Up to this many boxes the host does it, in milliseconds during which a device decodes the next crop. Asking the device
# would wait for that crop several times.
_FEW = 4096


def nms(
    boxes: NDArray[np.int64], scores: NDArray[np.float32], threshold: float, device: torch.device | None = None
) -> NDArray[np.int64]:
    """Indices of the boxes that stay, by score descending, ties by input order.

    A box is dropped when its IoU with a better one that stays is strictly over the threshold. IoU is computed
    in float32 on areas (x1 - x0)(y1 - y0): a box one pixel wide or high has area 0, and the 0/0 of two such
    boxes is over no threshold, so that not even an identical box suppresses it.

    Args:
        boxes: (N, 4) as x0, y0, x1, y1.
        scores: (N,).
        threshold: compared in double precision.
        device: an accelerator that does the work if there are many boxes, with the same result; None or a CPU for the
            host.
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
    """The result of `nms` for boxes (N, 4) and scores (N,) on their device, without one step for each box.

    With boxes in order, j stays if no i < j that stays overlaps it. Start with all staying and apply that rule to all
    boxes at once, repeatedly: box j depends only on those before it, so that after n rounds the first n are right, and
    once a round changes nothing, the result is the greedy one. Chains of suppression are short, so a few rounds are
    enough ("Cluster-NMS", arXiv 2005.03572, section 4.2). More boxes than one block holds are taken block by block: a
    finished block suppresses those after it.
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
    """Which of N boxes stay: `suppresses` (N, N) bool, i over j > i, among those that are `possible` (N,) bool."""
    stays = possible
    while True:
        again = possible & ~(suppresses & stays[:, None]).any(dim=0)
        if torch.equal(again, stays):
            return stays
        stays = again


def _over(first: Tensor, second: Tensor, threshold: float) -> Tensor:
    """Whether the IoU of boxes (N, 4) and (M, 4) float32 is over the threshold: (N, M) bool, rounded as in `nms`."""
    x0, y0, x1, y1 = first[:, None].unbind(dim=2)
    u0, v0, u1, v1 = second[None].unbind(dim=2)
    width = (torch.minimum(x1, u1) - torch.maximum(x0, u0)).clamp(min=0)
    height = (torch.minimum(y1, v1) - torch.maximum(y0, v0)).clamp(min=0)
    shared = width * height
    overlap = shared / ((x1 - x0) * (y1 - y0) + (u1 - u0) * (v1 - v0) - shared)
    return overlap.to(torch.float64) > threshold
