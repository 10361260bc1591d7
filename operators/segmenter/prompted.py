"""Segmenter that makes one mask for each prompt of the catalog, with a SAM."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from segmint.catalogs.dataset.mask_labels import MODEL
from segmint.catalogs.layout import canonical_json
from segmint.infra.assets.cache import sha256_of
from segmint.infra.assets.resolve import resolve
from segmint.infra.device import resolve_compute
from segmint.infra.errors import UsageError
from segmint.model.sam.predictor import Embedding, Predictor, PromptMasks
from segmint.operators.custom.contract import Mask, StageRow
from segmint.operators.schemas import IMPORT
from segmint.operators.segment.models import load_model

_BATCH = 64  # prompts that are decoded together
_BITS = 1  # increment this whenever masks or scores change

Prompt = Mapping[str, Any]
"""Prompt as a segmenter receives it: a value of `PROMPT` in pixels of the released image."""


class PromptedMasks:
    """Segmenter that makes one mask for each prompt of the catalog's column `prompts`, in the order of the prompts.

    A box alone gives the mask that SAM predicts for an unambiguous prompt. For points, with or without a box, SAM
    predicts three masks, and the one with the best score is kept. `SamPredictor` of the segment_anything package
    predicts the same masks. Only a pixel whose logit is within rounding of 0 can differ.
    """

    name = "prompted"
    masks = True
    wants_prompts = True

    @classmethod
    def version(
        cls,
        weights: str,
        labeler: str | None = None,
        device: str = "auto",
        precision: str = "fp32",
        threads: str | int = "auto",
        assets: str | None = None,
    ) -> str:
        """Return a SHA-256 of the weights and everything else that determines masks and labels.

        Raises `UsageError` if `labeler` isn't a SHA-256, and `AssetError` if the weights aren't found.
        """
        if labeler is not None and not re.fullmatch("[0-9a-f]{64}", labeler):
            raise UsageError(f"labeler is {labeler!r}: expected the SHA-256 of the model that found the boxes")
        weights_sha256 = sha256_of(resolve(weights, mirror=assets))
        return hashlib.sha256(canonical_json([_BITS, weights_sha256, labeler, precision])).hexdigest()

    def __init__(
        self,
        weights: str,
        labeler: str | None = None,
        device: str = "auto",
        precision: str = "fp32",
        threads: str | int = "auto",
        assets: str | None = None,
    ) -> None:
        """Load a SAM onto a device.

        `weights` and `assets` are as in a build's configuration, and `device`, `precision`, and `threads` as in its
        `model` section. `labeler` is the SHA-256 of the model that found the boxes. It becomes the source of their
        labels, whose scores are then stored. Without it, labels count as imported.
        """
        self.predictor = Predictor(
            load_model(resolve(weights, mirror=assets), resolve_compute(device, precision, threads))
        )
        self._label_source = IMPORT
        if labeler is not None:
            self._label_source = f"{MODEL}{labeler}"

    def __call__(self, rows: Sequence[StageRow]) -> list[StageRow]:
        """Return the rows with their masks. A row without prompts gets none."""
        prompts = [row.get("prompts") or [] for row in rows]
        prompted = [row.image for row, own in zip(rows, prompts, strict=True) if own]
        embeddings = iter(self.predictor.embed_many(prompted))
        masks = [self.find(next(embeddings), own) if own else [] for own in prompts]
        return [row.with_masks(found) for row, found in zip(rows, masks, strict=True)]

    def find(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Mask]:
        """Return a mask for each prompt, in order.

        Prompts are decoded together if they have equally many points, because SAM would attend to padding.
        """
        alike: dict[tuple[bool, int], list[int]] = {}
        for place, prompt in enumerate(prompts):
            alike.setdefault((prompt["box"] is not None, len(prompt["points"] or ())), []).append(place)
        found: dict[int, Mask] = {}
        for places in alike.values():
            for start in range(0, len(places), _BATCH):
                batch = places[start : start + _BATCH]
                predicted = self._predict(embedding, [prompts[place] for place in batch])
                best = predicted.predicted_iou.argmax(dim=1).tolist()
                for number, (place, index) in enumerate(zip(batch, best, strict=True)):
                    logits = predicted.low_res_logits[number : number + 1, index : index + 1]
                    pixels = (self.predictor.upscale(logits, embedding)[0, 0] > 0).cpu().numpy()
                    found[place] = self._mask(prompts[place], pixels, float(predicted.predicted_iou[number, index]))
        return [found[place] for place in range(len(prompts))]

    def _predict(self, embedding: Embedding, prompts: Sequence[Prompt]) -> PromptMasks:
        """Predict the masks of prompts that have equally many points."""
        arguments: dict[str, Any] = {"multimask": bool(prompts[0]["points"])}
        if prompts[0]["points"]:
            arguments["points"] = np.array([prompt["points"] for prompt in prompts])
            arguments["labels"] = np.array([prompt["point_labels"] for prompt in prompts])
        if prompts[0]["box"] is not None:
            boxes = np.array([prompt["box"] for prompt in prompts])
            arguments["boxes"] = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        return self.predictor.predict(embedding, **arguments)

    def _mask(self, prompt: Prompt, pixels: np.ndarray[Any, np.dtype[np.bool_]], score: float) -> Mask:
        labeled: dict[str, Any] = {}
        if prompt["label"]:
            labeled = {"label": prompt["label"], "label_source": self._label_source}
            if self._label_source != IMPORT:
                labeled["label_score"] = prompt["score"]
        points = [
            (x, y, inside) for (x, y), inside in zip(prompt["points"] or (), prompt["point_labels"] or (), strict=True)
        ]
        box = None if prompt["box"] is None else tuple(prompt["box"])
        return Mask(pixels, score=score, points=points, box=box, **labeled)
