"""The plain formula for masks: upscale each whole, threshold it, look at all of its pixels."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segmint.model.automatic.candidates import MaskPatch, stability_scores, stable
from segmint.model.automatic.crops import mask_boxes
from segmint.model.automatic.mask_tiles import Taps
from segmint.model.automatic.proposals import StableMasks
from segmint.model.sam.predictor import Embedding, Predictor
from segmint.model.sam.preprocess import resized_size


class WholeUpscaling:
    """Upscales whole masks, all at once."""

    def __init__(self, predictor: Predictor, embedding: Embedding) -> None:
        self._predictor = predictor
        self._embedding = embedding

    def stable_masks(self, logits: Tensor, offset: float, threshold: float) -> StableMasks[MaskPatch]:
        upscaled = self._predictor.upscale(logits[None], self._embedding)[0]
        scores = stability_scores(upscaled, offset)
        kept = torch.nonzero(stable(scores, threshold)).flatten()
        masks = (upscaled[kept] > 0).cpu()
        boxes = mask_boxes(masks).numpy()
        patches = tuple(
            MaskPatch.pack(mask.numpy(), tuple(box)) for mask, box in zip(masks, boxes.tolist(), strict=True)
        )
        areas = masks.sum(dim=(1, 2)).numpy()
        return StableMasks(kept.cpu().numpy(), scores[kept].cpu().numpy(), areas, boxes, patches)

    def draw(self, sketches: list[MaskPatch]) -> list[MaskPatch]:
        return list(sketches)


def embedding_of(height: int, width: int, device: str = "cpu") -> Embedding:
    """An embedding of nothing, in a frame of this size."""
    return Embedding(torch.zeros(1, 256, 64, 64, device=device), resized_size(height, width, 1024), (height, width))


def blobs(seed: int, masks: int, spread: int) -> Tensor:
    """Logits (masks, 256, 256) as a decoder gives them: smooth, -12 where nothing is, a few spots above 0."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(masks, 1, 2 + spread, 2 + spread, generator=generator)
    smooth = F.interpolate(noise, (256, 256), mode="bicubic")[:, 0]
    return (8 * smooth - 4 + 0.2 * torch.randn(masks, 256, 256, generator=generator)).clamp(min=-12)


def full(patch: MaskPatch, size: tuple[int, int]) -> np.ndarray:
    """The mask (height, width) bool over the whole frame."""
    mask = np.zeros(size, dtype=np.bool_)
    (x, y), (height, width) = patch.corner, patch.shape
    mask[y : y + height, x : x + width] = patch.window()
    return mask


def in_full(patches: list[MaskPatch], size: tuple[int, int]) -> np.ndarray:
    """The masks (N, height, width) bool over the whole frame."""
    return np.array([full(patch, size) for patch in patches]).reshape(-1, *size)


def reached(low: Tensor, offset: float, rows: Taps, columns: Taps) -> Tensor:
    """Return boxes (N, 4) int32 as x0, y0, x1, y1, ends exclusive. Outside them, all logits are at most -offset.

    A pixel is a weighted mean of logits, so it can exceed -offset only if one of its logits does. The pixels that use
    such logits therefore bound all three masks (`proposals.py`, 1.). If only logits in the padding exceed -offset, the
    box is empty.
    """
    x0, y0, x1, y1 = mask_boxes(low > -offset).T
    return torch.stack([columns.starts[x0], rows.starts[y0], columns.stops[x1], rows.stops[y1]], dim=1)
