"""Stage that labels masks with the texts of a vocabulary, by CLIP or a TorchScript classifier."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segmint.catalogs.dataset.mask_labels import MODEL, may_label
from segmint.catalogs.layout import canonical_json
from segmint.infra.assets.cache import sha256_of
from segmint.infra.errors import UsageError
from segmint.operators.custom.contract import StageRow
from segmint.operators.text.clip import Clip, ClipFolder
from segmint.operators.text.crops import crop_mask

PROMPT = "a photo of a {}"
"""Template of the text that CLIP embeds for a label (CLIP paper, section 3.1.4)."""

TORCHSCRIPT_SIDE = 224
"""Height and width, in pixels, of the crops that a TorchScript module receives."""

_BATCH = 32
_BITS = 2  # increment this whenever labels or scores change

Scores = Callable[[Tensor, Tensor], Tensor]
"""Function that returns the scores of N labels for B crops, (B, N) float32.

Its arguments are crops (B, 3, S, S) uint8 RGB and the pixels of their masks (B, S, S) bool.
"""


class MaskLabels:
    """Custom stage that labels masks, each with the best matching text of a vocabulary.

    The model sees a square crop around the mask, with a side 1.5 times that of the mask's box. In CLIP's last layer,
    the class token attends only to itself and to patches that touch the mask. The score is the text's probability among
    all texts of the vocabulary. The stage replaces labels from other models or vocabularies, but never labels from
    people or imports.

    Instead of CLIP, the model can be a TorchScript module. It receives crops (B, 3, 224, 224), float32 RGB from 0 to 1
    without further normalization, and the pixels of their masks (B, 224, 224), bool. It must return finite float32
    scores (B, N) for the N texts of the vocabulary, in order. The text with the highest score becomes the label, and
    the score is stored unchanged.
    """

    name = "label"
    labels = True

    @classmethod
    def version(cls, model: str, vocabulary: Sequence[str], device: str = "cpu") -> str:
        """Return the SHA-256 of the model's files and the vocabulary. Raise `UsageError` if they can't be used."""
        path = Path(model)
        if path.is_dir():
            files = ClipFolder.open(path).sha256
        elif path.is_file():
            files = sha256_of(path)
        else:
            raise UsageError(f"{model} does not exist: expected the folder of a CLIP, or a TorchScript file")
        if not vocabulary or "" in map(str.strip, vocabulary):
            raise UsageError("the vocabulary is empty or contains a blank label")
        if repeated := [label for label, count in Counter(vocabulary).items() if count > 1]:
            raise UsageError(f"the vocabulary contains {repeated[0]!r} more than once")
        return hashlib.sha256(canonical_json([_BITS, files, list(vocabulary)])).hexdigest()

    def __init__(self, model: str, vocabulary: Sequence[str], device: str = "cpu") -> None:
        """Load CLIP from a folder, or a TorchScript module from a file, onto a torch device.

        Raises `UsageError` if the model can't be loaded or doesn't return a score for each label.
        """
        self._vocabulary = list(vocabulary)
        self._source = f"{MODEL}{self.version(model, vocabulary)}"
        self._scores: Scores
        if Path(model).is_dir():
            clip = ClipFolder.open(Path(model)).load(device)
            self._side = clip.side
            self._scores = _scores_of_clip(clip, self._vocabulary)
        else:
            self._side = TORCHSCRIPT_SIDE
            self._scores = _scores_of_module(Path(model), len(self._vocabulary), device)

    def __call__(self, rows: Sequence[StageRow]) -> list[StageRow]:
        """Return the rows, with labels added to all masks that may be labeled."""
        return [row.with_mask_values(self._labeled(row)) for row in rows]

    def _labeled(self, row: StageRow) -> list[Mapping[str, Any] | None]:
        values: list[Mapping[str, Any] | None] = [None] * len(row["masks"])
        waiting = [place for place, mask in enumerate(row["masks"]) if may_label(mask, self._source)]
        for start in range(0, len(waiting), _BATCH):
            places = waiting[start : start + _BATCH]
            pairs = [crop_mask(row.image, row["masks"][place], self._side) for place in places]
            crops, pixels = (torch.from_numpy(np.stack(each)) for each in zip(*pairs, strict=True))
            best, labels = self._scores(crops.permute(0, 3, 1, 2).contiguous(), pixels).double().cpu().max(dim=1)
            for place, score, label in zip(places, best.tolist(), labels.tolist(), strict=True):
                # The last digits depend on the processor.
                columns = {"label": self._vocabulary[label], "label_score": round(score, 6)}
                values[place] = {**columns, "label_source": self._source}
        return values


def _scores_of_clip(clip: Clip, vocabulary: Sequence[str]) -> Scores:
    """Return a function that scores crops with CLIP. A score is the probability of a text in the vocabulary."""
    texts = clip.embed_texts([PROMPT.format(label) for label in vocabulary])
    texts = texts / texts.norm(dim=1, keepdim=True)

    def scores(crops: Tensor, pixels: Tensor) -> Tensor:
        images = clip.embed_crops(crops, pixels)
        cosines = images / images.norm(dim=1, keepdim=True) @ texts.T
        return torch.softmax(clip.logit_scale * cosines, dim=1)

    return scores


def _scores_of_module(path: Path, labels: int, device: str) -> Scores:
    """Return a function that scores crops with a TorchScript module, after trying the module on gray crops."""
    try:
        module: Any = torch.jit.load(path, map_location=device).eval()  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"{path} can't be loaded as TorchScript: {error}") from error

    def scores(crops: Tensor, pixels: Tensor) -> Tensor:
        # The optimizing executor may compute the first calls differently from later ones.
        with torch.inference_mode(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            try:
                found = module(crops.to(device).float() / 255, pixels.to(device))
            except RuntimeError as error:
                raise UsageError(f"{path} failed for {len(crops)} crops: {error}") from error
        if not isinstance(found, Tensor) or found.shape != (len(crops), labels) or not found.isfinite().all():
            what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise UsageError(f"{path} returned {what}: expected {(len(crops), labels)} finite scores")
        return found

    side = TORCHSCRIPT_SIDE
    scores(torch.full((2, 3, side, side), 128, dtype=torch.uint8), torch.ones(2, side, side, dtype=torch.bool))
    return scores
