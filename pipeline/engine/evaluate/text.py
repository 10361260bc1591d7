"""`segmint evaluate text`: compare masks for texts, points, and both with the masks that people made and labeled."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pycocotools import mask as coco

from segmint.catalogs.dataset.mask_labels import is_of_model
from segmint.catalogs.dataset.reader import Dataset
from segmint.infra.assets.cache import sha256_of
from segmint.infra.errors import UsageError
from segmint.infra.storage.storage import Storage
from segmint.infra.wording import counted
from segmint.model.sam.predictor import Embedding, Predictor
from segmint.operators.annotations.image import CocoRle
from segmint.operators.evaluate.clicks import center_click
from segmint.operators.intervals import Interval, basis, mean_intervals
from segmint.operators.rows import Row
from segmint.operators.text.clip import ClipFolder
from segmint.operators.text.prompts import TextPrompts
from segmint.pipeline.engine.evaluate.measure import HEAD, EvaluatedWeights, Model, with_embeddings
from segmint.pipeline.engine.evaluate.output import OutputFolder
from segmint.pipeline.engine.evaluate.result import EvaluationSubject, NothingMeasuredError, percent
from segmint.pipeline.engine.evaluate.session import EvaluateOptions, EvaluationSession
from segmint.pipeline.engine.evaluate.setup import open_truths
from segmint.pipeline.engine.evaluate.truth import Truth, TruthImage
from segmint.pipeline.export.categories import count_labels

PROMPTS = ("own label", "random other label", "empty text", "one point", "own label and point")
"""Kinds of prompts that each mask is evaluated with."""


@dataclass(frozen=True)
class TextMeasure:
    """Measure of the IoU with each mask that a person labeled, for each of `PROMPTS`.

    Random labels come from the `vocabulary`.
    """

    clip: str
    projection: str
    sam_sha256: str
    vocabulary: tuple[str, ...]
    seed: int

    name = "text"

    @property
    def schema(self) -> pa.Schema:
        """`HEAD`, and the IoUs with the names of `PROMPTS`."""
        return pa.schema([*HEAD, *(pa.field(name, pa.float64(), nullable=False) for name in PROMPTS)])

    def check(self, truths: Sequence[Truth]) -> None:
        """Raise `UsageError` if the CLIP, the projection, and the weights don't fit together."""
        _texts(self.clip, self.projection, self.sam_sha256, "cpu")

    def rows(self, models: Sequence[Model], image: TruthImage) -> list[Row]:
        """Predict a mask for each prompt. Masks without a label from a person are left out."""
        masks = [mask for mask in image.masks if mask.label and not is_of_model(mask.label_source)]
        if not masks:
            return []
        ((predictor, embedding),) = [each for each in with_embeddings(models, image.pixels) if isinstance(each, tuple)]
        predictor.embed_texts = _texts(self.clip, self.projection, self.sam_sha256, str(predictor.sam.device))
        rows = []
        for mask in masks:
            label = str(mask.label)
            others = [each for each in self.vocabulary if _folded(each) != _folded(label)]
            key = hashlib.sha256(f"{self.seed}\0{image.name}\0{mask.id}".encode()).digest()
            drawn = others[int.from_bytes(key[:8]) % len(others)]
            click = center_click(np.ascontiguousarray(coco.decode(mask.rle)).view(np.bool_))
            point = {"points": np.array([[(click.x, click.y)]], np.float64), "labels": np.ones((1, 1), np.int64)}
            prompts: list[dict[str, Any]] = [{"text": label}, {"text": drawn}, {"text": ""}, point]
            found = [_mask(predictor, embedding, **prompt) for prompt in [*prompts, {**point, "text": label}]]
            rows.append(dict(zip(PROMPTS, coco.iou(found, [mask.rle], [0])[:, 0].tolist(), strict=True)))
        return rows


def _folded(label: str) -> str:
    """Normalize a label's case and repeated spaces, which CLIP's tokenizers ignore."""
    return " ".join(label.split()).casefold()


@lru_cache(maxsize=1)
def _texts(clip: str, projection: str, sam_sha256: str, device: str) -> TextPrompts:
    return TextPrompts.load(clip, projection, device, sam_sha256)


def _mask(predictor: Predictor, embedding: Embedding, **prompt: Any) -> CocoRle:
    """Predict three masks, and return the one with the highest predicted IoU. Raises ValueError if it isn't finite."""
    answer = predictor.predict(embedding, **prompt)
    if not answer.predicted_iou.isfinite().all():
        raise ValueError("the weights predict an IoU that isn't finite, because they are damaged or overflow in bf16")
    best = int(answer.predicted_iou[0].argmax())
    pixels = predictor.upscale(answer.low_res_logits[:, best : best + 1], embedding)[0, 0] > 0
    rle: CocoRle = coco.encode(np.asfortranarray(pixels.cpu().numpy().view(np.uint8)))
    return rle


@dataclass(frozen=True)
class TextResult:
    """Mean IoUs and intervals by kind of prompt, over the subject's masks, which are in `images` images."""

    subject: EvaluationSubject
    hashes: dict[str, str]  # of the CLIP and the projection
    images: int
    means: dict[str, tuple[float, Interval | None]]

    def to_dict(self) -> dict[str, Any]:
        means = [{"prompt": name, "mean": mean, "interval": each} for name, (mean, each) in self.means.items()]
        return {**self.subject.to_dict(), **self.hashes, "labeled_images": self.images, "means": means}

    def lines(self) -> list[str]:
        size = f"n = {self.subject.masks:,} in {counted(self.images, 'image')}"
        return [
            self.subject.head(),
            f"mean IoU with people's labeled masks, in percent, {basis(self.images)}",
            *(f"  {name:<22}{percent(*each):<24}{size}" for name, each in self.means.items()),
            *self.subject.closing_lines(),
        ]


def evaluate_text(options: EvaluateOptions, clip: str, projection: str, seed: int, storage: Storage) -> TextResult:
    """Measure the prompts on datasets.

    Raises `UsageError` if a truth isn't a dataset, if there are fewer than two labels, or if the files don't fit
    together. Raises `NothingMeasuredError` if there are no masks that a person labeled.
    """
    truths = open_truths(options.truth, storage)
    labels = dict[str, str]()  # by normalized text
    for truth in truths:
        if truth.dataset is None:
            raise UsageError(f"{truth.name} isn't a dataset: import its masks into one with `segmint import`")
        labels |= {_folded(label): label for label in sorted(count_labels(Dataset.open(truth.dataset)))}
    if len(labels) < 2:
        raise UsageError(f"the masks have {counted(len(labels), 'label')}: expected at least 2, to draw a random one")
    if len(options.model.weights) != 1:
        raise UsageError("--weights was given twice: expected once, because a projection belongs to one SAM")
    sam, vocabulary = EvaluatedWeights.of(options.model.weights[0]), tuple(sorted(labels.values()))
    files = Path(clip).absolute(), Path(projection).absolute()
    measure = TextMeasure(str(files[0]), str(files[1]), sam.sha256, vocabulary, seed)
    with OutputFolder(None, storage, truths, measure.schema) as output:
        session = EvaluationSession(options.model.task(measure), truths, options.model.run, output)
        by_image: dict[tuple[int, str], list[list[float]]] = {}
        for row in (row for rows in session.tables() for row in rows):
            by_image.setdefault((row["truth"], row["image_id"]), []).append([row[name] for name in PROMPTS])
    if not by_image:
        raise NothingMeasuredError("no mask made by a person has a label from a person or an import")
    sums = np.array([np.sum(each, axis=0) for each in by_image.values()])
    counts = np.array([float(len(each)) for each in by_image.values()])
    masks = int(counts.sum())
    means = zip((sums.sum(axis=0) / masks).tolist(), mean_intervals(sums, counts, seed, (0, 1)), strict=True)
    hashes = {"clip_sha256": ClipFolder.open(files[0]).sha256, "projection_sha256": sha256_of(files[1])}
    return TextResult(session.subject(masks), hashes, len(by_image), dict(zip(PROMPTS, means, strict=True)))
