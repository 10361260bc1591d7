"""Functions on masks, boxes, and crops with the names of `segment_anything.utils.amg`, implemented with segmint's own.

Boxes are corners, (x0, y0, x1, y1) in pixels. Run lengths are dictionaries with `size`, [height, width], and `counts`,
a list if they are uncompressed.
"""

import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segmint.infra.arrays import Bools, Floats
from segmint.model.automatic import candidates
from segmint.model.automatic.crops import generate_crops, mask_boxes
from segmint.model.automatic.rle import Rle, compress, decode, decompress, encode
from segmint.model.automatic.settings import point_grid


def is_box_near_crop_edge(boxes: Tensor, crop_box: list[int], orig_box: list[int], atol: float = 20.0) -> Tensor:
    """Return whether boxes (N, 4) in the crop's frame touch a side of the crop that isn't a side of the image."""
    moved = uncrop_boxes_xyxy(boxes, crop_box).float()
    near = [(moved - moved.new_tensor(box)).abs() <= atol for box in (crop_box, orig_box)]
    return (near[0] & ~near[1]).any(dim=1)


def box_xyxy_to_xywh(box_xyxy: Tensor) -> Tensor:
    """Convert one box (4,) from its corners to x, y, width, height, in a copy."""
    box = deepcopy(box_xyxy)
    box[2], box[3] = box[2] - box[0], box[3] - box[1]
    return box


def batch_iterator(batch_size: int, *args: Any) -> Iterator[list[Any]]:
    """Yield lists of the next `batch_size` items of each argument. Raises ValueError if their lengths differ."""
    if len({len(each) for each in args}) != 1:
        raise ValueError(f"lengths of {', '.join(str(len(each)) for each in args)}: expected equal ones")
    for start in range(0, len(args[0]), batch_size):
        yield [each[start : start + batch_size] for each in args]


def mask_to_rle_pytorch(tensor: Tensor) -> list[dict[str, Any]]:
    """Encode masks (N, height, width) bool as uncompressed run lengths."""
    return [uncompressed(encode(mask)) for mask in tensor.cpu().numpy().astype(bool)]


def uncompressed(rle: Rle) -> dict[str, Any]:
    """Return the run lengths of a mask as a list."""
    return {"size": list(rle.size), "counts": decompress(rle.counts).tolist()}


def coco_encode_rle(uncompressed_rle: dict[str, Any]) -> dict[str, Any]:
    """Compress run lengths to COCO's text."""
    return {**uncompressed_rle, "counts": compress(np.asarray(uncompressed_rle["counts"], np.int64))}


def rle_to_mask(rle: dict[str, Any]) -> Bools:
    """Decode uncompressed run lengths to a mask, (height, width) bool."""
    height, width = rle["size"]
    return decode(Rle((height, width), coco_encode_rle(rle)["counts"]))


def area_from_rle(rle: dict[str, Any]) -> int:
    """Return the number of foreground pixels of uncompressed run lengths."""
    return sum(rle["counts"][1::2])


def calculate_stability_score(masks: Tensor, mask_threshold: float, threshold_offset: float) -> Tensor:
    """Return the IoU of logits (..., height, width) thresholded above and below `mask_threshold`, (...) float32."""
    thresholds = mask_threshold + threshold_offset, mask_threshold - threshold_offset
    inner, outer = (torch.count_nonzero(masks > threshold, dim=(-2, -1)) for threshold in thresholds)
    return inner / outer


def build_point_grid(n_per_side: int) -> Floats:
    """Return evenly spaced points of the unit square, (n_per_side^2, 2) as x, y."""
    return point_grid(n_per_side)


def build_all_layer_point_grids(n_per_side: int, n_layers: int, scale_per_layer: int) -> list[Floats]:
    """Return the grid of each crop layer, from 0 to `n_layers`."""
    return [point_grid(int(n_per_side / scale_per_layer**layer)) for layer in range(n_layers + 1)]


def generate_crop_boxes(
    im_size: Sequence[int], n_layers: int, overlap_ratio: float
) -> tuple[list[list[int]], list[int]]:
    """Return the corners of each crop of an image of (height, width), and each crop's layer."""
    crops = generate_crops((im_size[0], im_size[1]), n_layers, overlap_ratio)
    return [list(crop.box) for crop in crops], [crop.layer for crop in crops]


def uncrop_boxes_xyxy(boxes: Tensor, crop_box: list[int]) -> Tensor:
    """Move boxes (..., 4) from a crop's frame to the image's."""
    x0, y0 = crop_box[:2]
    return boxes + torch.tensor([x0, y0, x0, y0], device=boxes.device)


def uncrop_points(points: Tensor, crop_box: list[int]) -> Tensor:
    """Move points (..., 2) from a crop's frame to the image's."""
    return points + torch.tensor(crop_box[:2], device=points.device)


def uncrop_masks(masks: Tensor, crop_box: list[int], orig_h: int, orig_w: int) -> Tensor:
    """Pad masks (..., h, w) of a crop to the image's height and width."""
    x0, y0, x1, y1 = crop_box
    return F.pad(masks, (x0, orig_w - x1, y0, orig_h - y1), value=0)


def remove_small_regions(mask: Bools, area_thresh: float, mode: str) -> tuple[Bools, bool]:
    """Fill the holes, or remove the islands, of fewer than `area_thresh` pixels, and return True if there were any.

    If all islands are small, the largest one stays. Raises ValueError if `mode` is neither "holes" nor "islands".
    """
    if mode not in ("holes", "islands"):
        raise ValueError(f"mode is {mode!r}: expected 'holes' or 'islands'")
    return candidates.remove_small_regions(np.asarray(mask, bool), math.ceil(area_thresh), mode)


def batched_mask_to_box(masks: Tensor) -> Tensor:
    """Return the corners of masks (..., height, width), (..., 4) int64 and inclusive. An empty mask gets zeros."""
    if not masks.numel():
        return torch.zeros(*masks.shape[:-2], 4, device=masks.device)
    return mask_boxes(masks.reshape(-1, *masks.shape[-2:]).bool()).reshape(*masks.shape[:-2], 4)
