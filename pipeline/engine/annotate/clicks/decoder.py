"""Masks for clicks: predictions as run lengths, and their logits for later corrections."""

import secrets
import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segmint.model.automatic.rle import Rle, decode
from segmint.model.sam.geometry import Geometry
from segmint.model.sam.predictor import Embedding
from segmint.pipeline.engine.annotate.clicks.drawing import DrawnMask, draw_mask, prepare_drawing
from segmint.pipeline.engine.annotate.clicks.embeddings import ImageEmbedding
from segmint.pipeline.engine.annotate.clicks.predictor_thread import PredictorThread
from segmint.pipeline.engine.annotate.clicks.prompts import ClickPrompt, MaskPart

HANDLES = 128
"""Maximum number of predictions whose logits stay in memory, up to 768 KiB each."""

_SHARE = 1e-3  # torch.logit first clamps a cell's coverage to this distance from 0 and 1
_DRAWERS = 2  # threads that draw masks, mostly in NumPy


@dataclass(frozen=True)
class PromptMask:
    """Mask that the model predicted for a prompt, with the predicted IoU."""

    drawn: DrawnMask
    iou: float

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self.drawn), "bbox": list(self.drawn.bbox), "iou": self.iou}


@dataclass(frozen=True)
class Prediction:
    """Prediction for a prompt: one mask, or three sorted by area. `chosen` is the index of the best match."""

    masks: tuple[PromptMask, ...]
    chosen: int
    handle: str
    handle_lost: bool = False

    def to_dict(self) -> dict[str, Any]:
        masks = [mask.to_dict() for mask in self.masks]
        return {"masks": masks, "chosen": self.chosen, "handle": self.handle, "handle_lost": self.handle_lost}


@dataclass(frozen=True)
class _PreviousLogits:
    """Logits (256, 256) of each mask in an earlier prediction. `chosen` is the index of the mask that was chosen."""

    image: int
    jpeg_sha256: str
    annotator: str
    logits: tuple[Tensor, ...]
    chosen: int


class Decoder(AbstractContextManager["Decoder"]):
    """Thread-safe context manager that turns prompts into masks.

    A single prompt (one point or one box) is ambiguous, so it produces three masks. A correction produces
    one mask, because the model also receives the earlier prediction's logits. For several prompts without an earlier
    prediction, the model predicts three masks, and the decoder returns only the mask with the highest predicted IoU
    (see decision 25).
    """

    def __init__(self, predictor: PredictorThread, handles: int = HANDLES) -> None:
        self._predictor = predictor
        self._most = handles
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, _PreviousLogits] = OrderedDict()
        self._drawers = ThreadPoolExecutor(_DRAWERS, thread_name_prefix="drawing")

    def __exit__(self, *_: object) -> None:
        self._drawers.shutdown()

    def predict(self, annotator: str, embedded: ImageEmbedding, prompt: ClickPrompt) -> Prediction:
        """Predict the masks for a prompt.

        The prompt's handle is ignored if it is unknown or if its logits belong to other pixels or another annotator.
        The prediction's `handle_lost` is then set.
        """
        embedding = embedded.embedding
        before = self._logits_of(prompt.after, embedded, annotator)
        is_lost = prompt.after is not None and before is None
        logits, ious = self._predictor.run(self._ask, embedding, prompt, before)
        draw = map if len(logits) == 1 else self._drawers.map
        drawn = draw(lambda each: draw_mask(self._predictor, embedding, each), logits)
        answered = [PromptMask(mask, iou) for mask, iou in zip(drawn, ious, strict=True)]
        order = sorted(range(len(answered)), key=lambda index: (answered[index].drawn.area, index))
        answered = [answered[index] for index in order]
        chosen = choose(answered, prompt.part)
        kept = tuple(logits[index] for index in order)
        handle = self._keep(_PreviousLogits(embedded.image, embedded.jpeg_sha256, annotator, kept, chosen))
        return Prediction(tuple(answered), chosen, handle, is_lost)

    def images(self) -> Collection[int]:
        """Return the ids of the images with logits in memory."""
        with self._lock:
            return {kept.image for kept in self._kept.values()}

    def forget(self, image: int, unless: str | None = None) -> None:
        """Drop an image's logits, unless they belong to the JPEG with the SHA-256 `unless`."""
        with self._lock:
            old = [name for name, kept in self._kept.items() if kept.image == image and kept.jpeg_sha256 != unless]
            for handle in old:
                del self._kept[handle]

    def _ask(
        self, embedding: Embedding, prompt: ClickPrompt, before: Tensor | None
    ) -> tuple[list[Tensor], list[float]]:
        """Predict the logits (256, 256) and the IoU of each mask. `before` contains the logits to correct, if any."""
        if before is None and prompt.mask is not None:
            before = mask_logits(Rle(embedding.frame_size, prompt.mask), embedding, self._predictor.sam.geometry)
        prepare_drawing(self._predictor, embedding)  # again, because the cache holds only some image sizes
        masks = self._predictor.predict(embedding, **arguments(prompt, before), multimask=before is None)
        logits, ious = list(masks.low_res_logits[0]), masks.predicted_iou[0]
        if before is None and prompt.is_several:
            best = int(ious.argmax())
            logits, ious = [logits[best].clone()], ious[best : best + 1]
        return logits, ious.tolist()

    def _logits_of(self, handle: str | None, of: ImageEmbedding, annotator: str) -> Tensor | None:
        """Return a handle's logits (1, 1, 256, 256), or None if another annotator or another JPEG produced them.

        `HANDLE` refers to the chosen mask of a prediction, and `HANDLE.N` to mask number N.
        """
        name, _, number = (handle or "").partition(".")
        with self._lock:
            kept = self._kept.get(name)
            if kept is None or (kept.image, kept.jpeg_sha256, kept.annotator) != (of.image, of.jpeg_sha256, annotator):
                return None
            self._kept.move_to_end(name)
        index = kept.chosen if not number else int(number) if number in ("0", "1", "2") else len(kept.logits)
        return kept.logits[index][None, None] if index < len(kept.logits) else None

    def _keep(self, kept: _PreviousLogits) -> str:
        handle = secrets.token_urlsafe(16)
        with self._lock:
            self._kept[handle] = kept
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return handle


def arguments(prompt: ClickPrompt, before: Tensor | None) -> dict[str, Any]:
    """Convert a prompt to the arguments of `Predictor.predict`. `before` contains earlier logits, (1, 1, 256, 256)."""
    given: dict[str, Any] = {}
    if prompt.points:
        given["points"] = np.array([[(x, y) for x, y, _ in prompt.points]], np.float64)
        given["labels"] = np.array([[label for _, _, label in prompt.points]], np.int64)
    if prompt.box is not None:
        x, y, width, height = prompt.box
        given["boxes"] = np.array([[x, y, x + width, y + height]], np.float64)
    if before is not None:
        given["masks"] = before
    return given


def choose(masks: Sequence[PromptMask], part: MaskPart) -> int:
    """Return the index of the mask that `part` selects.

    `masks` contains either a single mask or three, sorted by area: subpart, part, and whole. AUTO selects the nonempty
    mask with the highest predicted IoU.
    """
    if part is MaskPart.AUTO or len(masks) == 1:
        solid = [index for index, mask in enumerate(masks) if mask.drawn.area] or [0]
        return max(solid, key=lambda index: masks[index].iou)
    return {MaskPart.SUBPART: 0, MaskPart.PART: 1, MaskPart.WHOLE: 2}[part]


def mask_logits(rle: Rle, embedding: Embedding, geometry: Geometry) -> Tensor:
    """Convert a mask to a mask prompt for the model: logits (1, 1, 256, 256).

    The logit of a cell is computed from the share of the cell that the mask covers.
    """
    height, width = embedding.input_size
    mask = torch.from_numpy(decode(rle)).float()[None, None]
    share = F.interpolate(mask, (height, width), mode="bilinear", align_corners=False, antialias=True)
    square = mask.new_zeros(1, 1, geometry.image_size, geometry.image_size)
    square[..., :height, :width] = share
    return torch.logit(F.adaptive_avg_pool2d(square, geometry.low_res_size), eps=_SHARE)
