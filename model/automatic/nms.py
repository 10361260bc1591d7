"""Greedy non-maximum suppression of boxes, sequentially on the host or in parallel on a device."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# The host needs only milliseconds for this many boxes, while the device decodes the next crop. NMS on the device would
# have to wait for that crop several times.
_FEW = 4096


def nms(
    boxes: NDArray[np.int64], scores: NDArray[np.float32], threshold: float, device: torch.device | None = None
) -> NDArray[np.int64]:
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
