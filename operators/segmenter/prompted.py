"""Segmenter that makes one mask for each prompt of the catalog, with a SAM."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from segmint.catalogs.dataset.mask_labels import MODEL
from segmint.catalogs.findings import Reason, RejectedError
from segmint.catalogs.layout import json_sha256
from segmint.infra.assets import known_license, resolve, sha256_of
from segmint.infra.device import resolve_compute
from segmint.infra.errors import UsageError
from segmint.model.automatic import rle
from segmint.model.sam.predictor import Embedding, Predictor, PromptMasks
from segmint.operators.custom.contract import Mask, StageRow
from segmint.operators.rows import IMPORT, MASKS_PER_IMAGE_LIMIT
from segmint.operators.segment.models import load_model

_BATCH = 64  # prompts that are decoded together
BATCH_POINTS = 1024  # points of these prompts
PIXELS_AT_ONCE = 1 << 28  # pixels of an image's masks that are kept as arrays, a byte each
_BITS = 1  # increment this whenever masks or scores change

Prompt = Mapping[str, Any]
"""Prompt as a segmenter receives it: a value of `PROMPT` in pixels of the released image."""

M = TypeVar("M")


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
        cls, weights: str, labeler: str | None = None, precision: str = "fp32", assets: str | None = None, **_: Any
    ) -> str:
        """Return a SHA-256 of the weights and everything else that determines masks and labels.

        Raises `UsageError` if `labeler` isn't a SHA-256, and `AssetError` if the weights aren't found.
        """
        if labeler is not None and not re.fullmatch("[0-9a-f]{64}", labeler):
            raise UsageError(f"labeler is {labeler!r}: expected the SHA-256 of the model that found the boxes")
        identity = [_BITS, cls.weights_sha256(weights, assets), labeler, precision]
        return json_sha256(identity)

    @classmethod
    def weights_sha256(cls, weights: str, assets: str | None = None, **_: Any) -> str:
        """Return the SHA-256 of the weights."""
        return sha256_of(resolve(weights, mirror=assets))

    @classmethod
    def license(cls, **arguments: Any) -> str | None:
        """Return the license of known weights, or None for others."""
        return known_license(cls.weights_sha256(**arguments))

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
        compute = resolve_compute(device, precision, threads)
        self.predictor = Predictor(load_model(resolve(weights, mirror=assets), compute))
        self._labeler = labeler

    def __call__(self, rows: Sequence[StageRow]) -> list[StageRow]:
        """Return the rows with their masks. A row without prompts gets none.

        Raises `RejectedError` if a row has more prompts than an image has ids for masks (`too_many_masks`), or a prompt
        without a box or points (`prompts_misfit`).
        """
        for row in rows:
            prompts = row.get("prompts") or ()
            if len(prompts) > MASKS_PER_IMAGE_LIMIT:
                detail = f"{len(prompts):,} prompts; there are ids for {MASKS_PER_IMAGE_LIMIT:,} masks of one image"
                raise RejectedError(Reason.TOO_MANY_MASKS, detail)
            for index, prompt in enumerate(prompts):
                if prompt["box"] is None and not prompt["points"]:
                    detail = f"prompts.{index} has only a label; expected a box or points, which SAM needs"
                    raise RejectedError(Reason.PROMPTS_MISFIT, detail)
        embeddings = iter(self.predictor.embed_many([row.image for row in rows if row.get("prompts")]))
        done = []
        for row in rows:
            masks = []
            if row.get("prompts"):
                masks = self.find(next(embeddings), row["prompts"])
            done.append(row.with_masks(masks))
        return done

    def find(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Mask]:
        """Return a mask for each prompt, in order. If the masks have many pixels in total, they are run lengths."""
        height, width = embedding.frame_size
        encodes = len(prompts) * height * width > PIXELS_AT_ONCE

        def make(prompt: Prompt, logits: Tensor, score: float) -> Mask:
            pixels: Any = (logits[0] > 0).cpu().numpy()
            if encodes:
                code = rle.encode(pixels)
                pixels = {"size": list(code.size), "counts": code.counts}
            return Mask(pixels, score=score, **self._origin(prompt))

        return masks_of_prompts(self.predictor, embedding, prompts, make)

    def _origin(self, prompt: Prompt) -> dict[str, Any]:
        """Return what a mask was made from, and its label, as arguments of `Mask`."""
        points, labels = prompt["points"] or (), prompt["point_labels"] or ()
        origin: dict[str, Any] = {"points": [(x, y, label) for (x, y), label in zip(points, labels, strict=True)]}
        if prompt["box"] is not None:
            origin["box"] = tuple(prompt["box"])
        if prompt["label"] and self._labeler is None:
            origin |= {"label": prompt["label"], "label_source": IMPORT}
        elif prompt["label"]:
            source = f"{MODEL}{self._labeler}"
            origin |= {"label": prompt["label"], "label_source": source, "label_score": prompt["score"]}
        return origin


def masks_of_prompts(
    predictor: Predictor, embedding: Embedding, prompts: Sequence[Prompt], make: Callable[[Prompt, Tensor, float], M]
) -> list[M]:
    """Return what `make` returns for each prompt, in order. It receives the prompt, its mask, and SAM's score of it.

    A mask is (1, height, width) logits in the embedding's frame. Prompts are decoded together if they have equally many
    points, because SAM would attend to padding.
    """
    alike: dict[tuple[bool, int], list[int]] = {}
    for place, prompt in enumerate(prompts):
        alike.setdefault((prompt["box"] is not None, len(prompt["points"] or ())), []).append(place)
    found: dict[int, M] = {}
    for (_, points), places in alike.items():
        size = min(_BATCH, max(1, BATCH_POINTS // max(1, points)))
        for start in range(0, len(places), size):
            batch = places[start : start + size]
            predicted = _predict_alike(predictor, embedding, [prompts[place] for place in batch])
            scores, best = predicted.predicted_iou.max(dim=1)
            for number, place in enumerate(batch):
                logits = predicted.low_res_logits[number, best[number]][None, None]
                upscaled = predictor.upscale(logits, embedding)[0]
                found[place] = make(prompts[place], upscaled, float(scores[number]))
    return [found[place] for place in range(len(prompts))]


def _predict_alike(predictor: Predictor, embedding: Embedding, prompts: Sequence[Prompt]) -> PromptMasks:
    """Predict masks for prompts that have equally many points."""
    arguments: dict[str, Any] = {}
    if prompts[0]["points"]:
        arguments["points"] = np.array([prompt["points"] for prompt in prompts])
        arguments["labels"] = np.array([prompt["point_labels"] for prompt in prompts])
    if prompts[0]["box"] is not None:
        boxes = np.array([prompt["box"] for prompt in prompts])
        boxes[:, 2:] += boxes[:, :2]
        arguments["boxes"] = boxes
    return predictor.predict(embedding, multimask="points" in arguments, **arguments)
