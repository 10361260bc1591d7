"""CLIP from a local folder, as transformers' `save_pretrained` writes it: embeddings of texts and of image crops.

See the CLIP paper: Radford et al. 2021, arXiv 2103.00020. transformers is imported only when a CLIP is loaded. It then
reads only safetensors files, runs no code from the folder, and doesn't use the network.
"""

import hashlib
import importlib.util
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from segmint.catalogs.layout import canonical_json
from segmint.infra.assets.cache import sha256_of
from segmint.infra.errors import UsageError

PACKAGES = ("transformers", "tokenizers", "safetensors")
"""Modules that the packages of the extra `text` provide."""

_CONFIG, _TOKENIZER = "config.json", "tokenizer.json"
_NORMALIZATION = ("preprocessor_config.json", "processor_config.json")
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's CLIP


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
        return cls(path, hashlib.sha256(canonical_json(hashes)).hexdigest())

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
                for key, default in (("image_mean", _MEAN), ("image_std", _STD))
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
