"""One chunk of points on an accelerator, from coordinates to low-resolution masks: a function whose shapes are fixed.

On a CPU a mask that nobody wants is not drawn, which takes a number on the host between decoding and drawing. Here all
are, so that nothing waits and the whole chunk is one graph.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from segmint.model.automatic.filters import over_iou
from segmint.model.sam.point_decoder import PointPlan, decode_points, draw_every_mask, plan_points
from segmint.model.sam.sam import Sam


@dataclass(frozen=True)
class ChunkMasks:
    """Three masks for each of B points.

    Attributes:
        logits: (B, 3, 256, 256) float32; may be anything where a mask is not wanted.
        predicted_iou: (B, 3) float32.
        wanted: (B, 3) bool, those over the threshold of points that are not padding.
    """

    logits: Tensor
    predicted_iou: Tensor
    wanted: Tensor


def plan_image(sam: Sam, features: Tensor) -> PointPlan:
    """`Predictor.plan_points` for an image embedding (1, 256, 64, 64)."""
    encoder = sam.prompt_encoder
    return plan_points(sam.mask_decoder, features, encoder.dense_positions(), encoder.dense_without_mask())


def decode_chunk(sam: Sam, plan: PointPlan, points: Tensor, threshold: float) -> ChunkMasks:
    """Decode and draw B points.

    `points` (B, 3) float64 are x and y in pixels of the encoder's input, and 1, or 0 for a point that pads the chunk.
    `threshold` is for predicted IoU.
    """
    labels = torch.ones_like(points[:, :1])
    sparse = sam.prompt_encoder(points[:, None, :2], labels, None, None).sparse
    masks = decode_points(sam.mask_decoder, plan, sparse)
    wanted = over_iou(masks.predicted_iou, threshold) & (points[:, 2:] > 0)
    return ChunkMasks(draw_every_mask(sam.mask_decoder, plan, masks), masks.predicted_iou, wanted)
