"""One chunk of points on an accelerator, from coordinates to low-resolution masks: functions whose shapes are fixed.

On a CPU a mask that nobody wants is not drawn, which takes a number on the host between decoding and drawing. Here the
device knows which are wanted, so that nothing waits and the whole chunk is one graph. The kernel that draws is started
after it, for its output must outlast the graph's next replay.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from segmint.model.automatic.filters import over_iou
from segmint.model.automatic.on_device import decoder
from segmint.model.automatic.on_device.decoder import Drawing, Plan
from segmint.model.sam.sam import Sam


@dataclass(frozen=True)
class Decoded:
    """Three masks for each of B points that are not drawn yet.

    Attributes:
        predicted_iou: (B, 3) float32.
        wanted: (B, 3) bool, those over the threshold of points that are not padding.
        drawing: draws them.
    """

    predicted_iou: Tensor
    wanted: Tensor
    drawing: Drawing


@dataclass(frozen=True)
class ChunkMasks:
    """Three masks for each of B points.

    Attributes:
        logits: (B, 3, 256, 256) float32; may be anything where a mask is not wanted.
        predicted_iou: (B, 3) float32.
        wanted: (B, 3) bool.
    """

    logits: Tensor
    predicted_iou: Tensor
    wanted: Tensor


def plan_image(sam: Sam, features: Tensor) -> Plan:
    """What all points on an image embedding (1, 256, 64, 64) share."""
    encoder = sam.prompt_encoder
    return decoder.plan_image(sam.mask_decoder, features, encoder.dense_positions(), encoder.dense_without_mask())


def decode_chunk(sam: Sam, plan: Plan, points: Tensor, threshold: float) -> Decoded:
    """Decode B points.

    `points` (B, 3) float64 are x and y in pixels of the encoder's input, and 1, or 0 for a point that pads the chunk.
    `threshold` is for predicted IoU.
    """
    labels = torch.ones_like(points[:, :1])
    sparse = sam.prompt_encoder(points[:, None, :2], labels, None, None).sparse
    predicted_iou, tokens, images = decoder.decode(sam.mask_decoder, plan, sparse)
    wanted = over_iou(predicted_iou, threshold) & (points[:, 2:] > 0)
    return Decoded(predicted_iou, wanted, decoder.prepare_drawing(sam.mask_decoder, plan, tokens, images))


def draw_chunk(decoded: Decoded) -> ChunkMasks:
    """Draw what was decoded; the masks stay as they are."""
    logits = decoded.drawing.draw(decoded.wanted)
    return ChunkMasks(logits, decoded.predicted_iou.clone(), decoded.wanted.clone())
