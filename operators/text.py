"""Stage that labels masks with the texts of a vocabulary: crops of masks, CLIP, and the labels that they get.

CLIP from a local folder, as transformers' `save_pretrained` writes it: embeddings of texts and of image crops.

See the CLIP paper: Radford et al. 2021, arXiv 2103.00020. transformers is imported only when a CLIP is loaded. It then
reads only safetensors files, runs no code from the folder, and doesn't use the network.
"""

import importlib.util
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segmint.catalogs.dataset.mask_labels import MODEL, may_label
from segmint.catalogs.layout import json_sha256
from segmint.infra.arrays import Bools, Pixels
from segmint.infra.assets import sha256_of
from segmint.infra.errors import UsageError
from segmint.model.automatic.rle import Rle, decode
from segmint.operators.custom.contract import StageRow
from segmint.operators.rows import Row

MARGIN = 1.5
"""Ratio of a crop's side to the longer side of its mask's box. The SAM paper trains with 1 to 2 (appendix D.5)."""

_LARGEST = 4096
"""Side in pixels above which a crop is reduced before its border is added.

In panoramas, an unreduced crop would take gigabytes.
"""

_MEAN_COLOR = (123, 117, 104)  # CLIP's mean color, which is zero after its normalization


def crop_mask(image: Pixels, mask: Row, side: int) -> tuple[Pixels, Bools]:
    """Return a crop (side, side, 3) uint8 RGB around a mask, and the mask's pixels in the crop (side, side) bool.

    The crop is a square around the center of the mask's box. Its side is `MARGIN` times the box's longer side. Outside
    the image (H, W, 3), the crop has CLIP's mean color. A pixel of the crop belongs to the mask if it covers any of the
    mask's pixels. For an empty mask, no pixel does.
    """
    pixels = decode(Rle((image.shape[0], image.shape[1]), mask["segmentation"]["counts"]))
    x, y, box_width, box_height = mask["bbox"]
    length = max(1, math.ceil(MARGIN * (max(box_width, box_height) + 1)))
    left, top = (round(start + (span + 1 - length) / 2) for start, span in ((x, box_width), (y, box_height)))
    inside = np.s_[max(top, 0) : max(top + length, 0), max(left, 0) : max(left + length, 0)]
    part, own = image[inside], pixels[inside].astype(np.float32)
    before = max(-top, 0), max(-left, 0)
    factor = math.ceil(length / _LARGEST)
    if factor > 1:
        size = math.ceil(part.shape[1] / factor), math.ceil(part.shape[0] / factor)
        part = np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_AREA), np.uint8)
        own = np.asarray(cv2.resize(own, size, interpolation=cv2.INTER_AREA), np.float32)
        before, length = (before[0] // factor, before[1] // factor), math.ceil(length / factor)
    after = (length - part.shape[0] - before[0], length - part.shape[1] - before[1])
    around = (before[0], after[0], before[1], after[1])
    square = cv2.copyMakeBorder(part, *around, cv2.BORDER_CONSTANT, value=_MEAN_COLOR)
    owned = cv2.copyMakeBorder(own, *around, cv2.BORDER_CONSTANT, value=0)
    method = cv2.INTER_AREA if length >= side else cv2.INTER_CUBIC
    crop = cv2.resize(square, (side, side), interpolation=method)
    shown = cv2.resize(owned, (side, side), interpolation=cv2.INTER_AREA if length >= side else cv2.INTER_NEAREST)
    return np.asarray(crop, np.uint8), np.asarray(shown > 0)


PACKAGES = ("transformers", "tokenizers", "safetensors")
"""Modules that the packages of the extra `text` provide."""

_CONFIG, _TOKENIZER = "config.json", "tokenizer.json"
_NORMALIZATION = ("preprocessor_config.json", "processor_config.json")
_MEANS, _DEVIATIONS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's CLIP


@dataclass(frozen=True)
class ClipFolder:
    """Folder that contains all files of a CLIP. `sha256` covers the files that determine its embeddings."""

    path: Path
    sha256: str

    @classmethod
    def open(cls, path: Path) -> Self:
        """Check and hash a folder's files, without importing transformers.

        Raises `UsageError` if packages or files are missing, or if the model isn't a CLIP.
        """
        missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            raise UsageError(f"missing packages: {', '.join(missing)}. Run `pip install 'segmint[text]'`.")
        for name in (_CONFIG, _TOKENIZER):
            if not (path / name).is_file():
                raise UsageError(f"{path} contains no {name}: expected a folder that CLIP's save_pretrained wrote")
        weights = sorted(path.glob("*.safetensors"))
        if not weights:
            raise UsageError(f"{path} contains no safetensors file. Other formats of weights aren't read.")
        kind = _json_of(path / _CONFIG).get("model_type")
        if kind != "clip":
            raise UsageError(f"{path / _CONFIG} describes a model of the type {kind!r}: expected clip")
        files = [*weights, *path.glob("*.safetensors.index.json")]
        files += [path / name for name in (_CONFIG, _TOKENIZER, *_NORMALIZATION) if (path / name).is_file()]
        hashes = {file.name: sha256_of(file) for file in files}
        return cls(path, json_sha256(hashes))

    def load(self, device: str | torch.device = "cpu") -> "Clip":
        """Load the model in float32. Raise `UsageError` if the files don't contain a complete CLIP."""
        from tokenizers import Tokenizer
        from transformers import CLIPModel
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        try:
            model, report = CLIPModel.from_pretrained(
                str(self.path),
                local_files_only=True,
                use_safetensors=True,
                attn_implementation="eager",
                dtype=torch.float32,
                output_loading_info=True,
            )
            tokenizer = Tokenizer.from_file(str(self.path / _TOKENIZER))
        except Exception as error:
            raise UsageError(f"{self.path} can't be loaded as CLIP: {error}") from error
        wrong = [*report["missing_keys"], *report["mismatched_keys"]]
        if wrong:
            raise UsageError(f"{self.path} lacks {len(wrong)} of CLIP's weights, such as {wrong[0]}")
        # Older files contain the positions' indices. Other weights belong to a larger model than the configuration's.
        if more := [name for name in report["unexpected_keys"] if not name.endswith(".position_ids")]:
            raise UsageError(f"{self.path} contains weights that {_CONFIG} doesn't describe, such as {min(more)}")
        scale = model.logit_scale.detach()
        if not scale.exp().isfinite():
            raise UsageError(f"{self.path} contains the logit_scale {float(scale)}: expected about 4.6")
        return Clip(model.to(device).eval(), tokenizer, *self._normalization())

    def _normalization(self) -> tuple[list[float], list[float]]:
        """Return the mean and the standard deviation of each color, by which images are normalized."""
        file = next((self.path / name for name in _NORMALIZATION if (self.path / name).is_file()), None)
        settings = {} if file is None else _json_of(file)
        settings = settings.get("image_processor", settings)
        try:
            mean, std = (
                [float(value) for value in settings.get(key, default)]
                for key, default in (("image_mean", _MEANS), ("image_std", _DEVIATIONS))
            )
        except (AttributeError, TypeError, ValueError):
            mean = std = []
        if (
            len(mean) != 3
            or len(std) != 3
            or not all(map(math.isfinite, mean))
            or not all(0 < each < math.inf for each in std)
        ):
            raise UsageError(f"{file} needs an image_mean and an image_std of three numbers, and image_std over 0")
        return mean, std


def _json_of(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except ValueError as error:
        raise UsageError(f"{file} isn't JSON: {error}") from error
    return found if isinstance(found, dict) else {}


class Clip:
    """A loaded CLIP. Embeddings are (N, D) float32 on its device, not normalized.

    Attributes:
        side: height and width, in pixels, of the crops that CLIP expects.
        patch: height and width, in pixels, of a patch.
        dimension: D.
        logit_scale: factor by which CLIP's logits multiply the cosine of two embeddings.
    """

    def __init__(self, model: Any, tokenizer: Any, mean: Sequence[float], std: Sequence[float]) -> None:
        """`model` is a `CLIPModel` with "eager" attention, and `tokenizer` is a `tokenizers.Tokenizer`."""
        text, vision = model.config.text_config, model.config.vision_config
        self.side, self.patch, self.dimension = vision.image_size, vision.patch_size, model.config.projection_dim
        self.logit_scale = float(model.logit_scale.detach().exp())
        self._model, self.tokenizer, self._end = model, tokenizer, text.eos_token_id
        self._device = model.logit_scale.device
        self._mean, self._std = (torch.tensor(each, device=self._device)[:, None, None] for each in (mean, std))
        tokenizer.no_padding()
        tokenizer.enable_truncation(text.max_position_embeddings)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings of texts. Each text is embedded separately, so other texts don't affect the result.

        CLIP uses the state of a text's end token as its embedding. Raises `UsageError` if the tokenizer doesn't end a
        text with this token.
        """
        found = []
        for text in texts:
            tokens = self.tokenizer.encode(text).ids
            if tokens[-1:] != [max(tokens, default=-1) if self._end == 2 else self._end]:  # 2 stands for the highest
                raise UsageError(f"CLIP's tokenizer ends {text!r} with {tokens[-1:]}: expected its end token")
            with torch.no_grad():
                features = self._model.get_text_features(input_ids=torch.tensor([tokens], device=self._device))
            found.append(_tensor(features))
        return torch.cat(found) if found else torch.zeros(0, self.dimension, device=self._device)

    def embed_crops(self, crops: Tensor, pixels: Tensor) -> Tensor:
        """Return embeddings of the selected `pixels` (N, side, side) bool of `crops` (N, 3, side, side) uint8 RGB.

        In the last layer, the class token attends only to itself and to patches that contain at least one selected
        pixel (SAM paper, appendix D.5).
        """
        values = (crops.to(self._device).float() / 255 - self._mean) / self._std
        shown = F.max_pool2d(pixels.to(self._device)[:, None].float(), self.patch).flatten(1) > 0
        mask = torch.zeros(len(shown), 1, shown.shape[1] + 1, shown.shape[1] + 1, device=self._device)
        mask[:, 0, 0, 1:].masked_fill_(~shown, -torch.inf)

        def with_mask(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            """Replace the attention mask, which is the second argument."""
            rest = {name: value for name, value in named.items() if name != "attention_mask"}
            return (given[0], mask, *given[2:]), rest

        layer = self._model.vision_model.encoder.layers[-1]
        handle = layer.register_forward_pre_hook(with_mask, with_kwargs=True)
        try:
            with torch.no_grad():
                return _tensor(self._model.get_image_features(pixel_values=values))
        finally:
            handle.remove()


def _tensor(features: Any) -> Tensor:
    """Return the embeddings in the result of transformers' `get_…_features`, whose type depends on the version.

    Raises `UsageError` if an embedding has no direction, because every score would be NaN.
    """
    found: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    lengths = found.norm(dim=1)
    if not ((lengths > 0) & lengths.isfinite()).all():
        raise UsageError("CLIP returned an embedding that is zero or isn't finite, so its weights are damaged")
    return found


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
        return json_sha256([_BITS, files, list(vocabulary)])

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
