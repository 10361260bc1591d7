"""Automatic mask generation written as simply as in the SAM paper (Section 4, Appendix B), and slow.

`MaskGenerator` must agree with it. A point goes through the plain decoder, every mask is upscaled, measured and cleaned
at full size, and kept as COCO run lengths. Grids, crops, limits and NMS are the generator's: they are simple already,
and have their own tests. So is the image encoder, as `Predictor.embed` runs it.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco
from segment_anything.utils.amg import remove_small_regions
from torch import Tensor

from segmint.infra.arrays import Box
from segmint.model.automatic.candidates import inside_crop, nms, over_iou, stability_scores, stable, under_max_area
from segmint.model.automatic.crops import Crop, crop_points, cut, generate_crops
from segmint.model.automatic.rle import Funnel, GeneratedMasks, MaskRecord, Rle
from segmint.model.automatic.settings import MaskSettings
from segmint.model.sam.predictor import Embedding, Predictor

# Points decoded at once: affects only memory.
_POINTS = 16


@dataclass(frozen=True)
class FullMask:
    """A mask over the whole frame, with the values that later steps need."""

    rle: dict[str, Any]
    box: tuple[int, int, int, int]  # x0, y0, x1, y1 in the frame, ends inclusive
    predicted_iou: float
    stability: float
    point: tuple[float, float]
    crop: Crop


@torch.inference_mode()
def generate_slowly(
    predictor: Predictor, settings: MaskSettings, image: np.ndarray, original: np.ndarray | None = None
) -> GeneratedMasks:
    """The result of `MaskGenerator(predictor, settings).generate(...)`; the stability limit must be over 0."""
    height, width, _ = image.shape
    found: list[FullMask] = []
    counts: Counter[str] = Counter()
    for crop in generate_crops((height, width), settings.crop_n_layers, settings.crop_overlap_ratio):
        if crop.is_empty:
            continue
        source = image if crop.layer == 0 or original is None else original
        embedding = predictor.embed(np.ascontiguousarray(cut(crop, (height, width), source)), crop.size)
        in_crop = masks_of_crop(predictor, embedding, crop, (height, width), settings, counts)
        in_crop = suppress(in_crop, [one.predicted_iou for one in in_crop], settings.box_nms_thresh)
        counts["after_nms1"] += len(in_crop)
        found += in_crop
    if settings.crop_n_layers > 0:
        # Of two, the one of the smaller crop is better.
        found = suppress(found, [1 / (one.crop.size[0] * one.crop.size[1]) for one in found], settings.crop_nms_thresh)
    counts["after_nms2"] = len(found)
    if settings.min_mask_region_area > 0:
        found = clean_all(found, settings, counts)
    counts["removed_by_cleanup"] = counts["after_nms2"] - len(found)
    counts["written"] = len(found)
    return GeneratedMasks(tuple(record_of(one) for one in found), Funnel(**counts))


def masks_of_crop(
    predictor: Predictor,
    embedding: Embedding,
    crop: Crop,
    frame_size: tuple[int, int],
    settings: MaskSettings,
    counts: Counter[str],
) -> list[FullMask]:
    """The masks of the crop's grid that pass every limit, point by point; counts those left after each."""
    found = []
    x0, y0, x1, y1 = crop.box
    for (x, y), low_res, predicted_iou in decoded(predictor, embedding, crop, settings):
        counts["predicted"] += 1
        if not over_iou(predicted_iou, settings.pred_iou_thresh):
            continue
        counts["over_iou"] += 1
        logits = predictor.upscale(low_res[None, None], embedding)[0]
        stability = stability_scores(logits, settings.stability_score_offset)
        if not stable(stability, settings.stability_score_thresh)[0]:
            continue
        counts["stable"] += 1
        mask = np.zeros(frame_size, dtype=np.bool_)
        mask[y0:y1, x0:x1] = logits[0].numpy() > 0
        if not under_max_area(np.array([mask.sum()]), frame_size, settings.max_mask_area_ratio)[0]:
            continue
        counts["under_max_area"] += 1
        box = box_around(mask)
        if not inside_crop(np.array([box]), crop.box, frame_size)[0]:
            continue
        counts["inside_crop"] += 1
        found.append(FullMask(run_lengths(mask), box, float(predicted_iou), float(stability), (x + x0, y + y0), crop))
    return found


def decoded(
    predictor: Predictor, embedding: Embedding, crop: Crop, settings: MaskSettings
) -> Iterator[tuple[tuple[float, float], Tensor, Tensor]]:
    """Every mask that the plain decoder gives for the crop's grid: its point in the crop, logits, predicted IoU."""
    points = crop_points(crop, settings.grid_of_layer(crop.layer))
    for start in range(0, len(points), _POINTS):
        chunk = points[start : start + _POINTS]
        masks = predictor.predict(embedding, points=chunk[:, None], labels=np.ones((len(chunk), 1)), multimask=True)
        for (x, y), logits, ious in zip(chunk.tolist(), masks.low_res_logits, masks.predicted_iou, strict=True):
            for low_res, predicted_iou in zip(logits, ious, strict=True):
                if settings.use_m2m:
                    before = low_res.clamp(-32, 32)[None, None]
                    again = predictor.predict(embedding, [[[x, y]]], [[1]], masks=before, multimask=False)
                    low_res, predicted_iou = again.low_res_logits[0, 0], again.predicted_iou[0, 0]
                yield (x, y), low_res, predicted_iou


def clean_all(found: Sequence[FullMask], settings: MaskSettings, counts: Counter[str]) -> list[FullMask]:
    """Fill holes, remove islands, then suppress the duplicates that this made; count masks with either."""
    least = settings.min_mask_region_area
    kept: list[FullMask] = []
    scores: list[float] = []
    for one in found:
        mask, had_holes = remove_small_regions(coco.decode(one.rle).astype(np.bool_), least, "holes")
        mask, had_islands = remove_small_regions(mask, least, "islands")
        counts["cleaned"] += had_holes or had_islands
        counts["holes_filled"] += had_holes
        counts["islands_removed"] += had_islands
        # Where all islands are small the largest is left, which SA-1B dropped.
        if settings.profile == "sa1b" and mask.sum() < least:
            continue
        kept.append(replace(one, rle=run_lengths(mask), box=box_around(mask)))
        scores.append(0 if had_holes or had_islands else 1)
    return suppress(kept, scores, max(settings.box_nms_thresh, settings.crop_nms_thresh))


def suppress(found: Sequence[FullMask], scores: Sequence[float], threshold: float) -> list[FullMask]:
    """Those that no better one suppresses, best first."""
    boxes = np.array([one.box for one in found], dtype=np.int64).reshape(-1, 4)
    return [found[index] for index in nms(boxes, np.array(scores, dtype=np.float32), threshold)]


def record_of(one: FullMask) -> MaskRecord:
    """The mask as a record of the generator."""
    height, width = one.rle["size"]
    return MaskRecord(
        segmentation=Rle((height, width), one.rle["counts"].decode()),
        area=int(coco.area(one.rle)),
        bbox=corner_and_size(one.box),
        predicted_iou=one.predicted_iou,
        stability_score=one.stability,
        crop_box=corner_and_size(one.crop.box),
        point_coords=one.point,
    )


def box_around(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The first and the last column and row that have a pixel: x0, y0, x1, y1."""
    xs, ys = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(xs[0]), int(ys[0]), int(xs[-1]), int(ys[-1])


def corner_and_size(box: tuple[int, int, int, int]) -> Box:
    """(x, y, x1 - x0, y1 - y0) of a box."""
    x0, y0, x1, y1 = box
    return float(x0), float(y0), float(x1 - x0), float(y1 - y0)


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """COCO's run lengths of a mask (height, width) bool."""
    rle: dict[str, Any] = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return rle
