"""Segmenters that run models of the `transformers` package: masks of everything, or masks of what phrases name.

    segmenter:
      stage: segmint.transformers.MaskGeneration
      arguments: {folder: /models/sam2.1-hiera-large, points_per_crop: 32}
      resources: {num_gpus: 1}

A model is a local folder, as `save_pretrained` writes it. Only its safetensors files are read as weights, no code from
the folder runs, and no hub is contacted. A model runs on the GPU of its actor, or on the CPU if the actor has no GPU.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

from segmint.catalogs.findings import Reason, RejectedError
from segmint.catalogs.layout import canonical_json
from segmint.infra.arrays import Pixels
from segmint.infra.assets import sha256_of
from segmint.infra.errors import UsageError
from segmint.operators.custom.contract import Mask, StageRow

PACKAGES = ("transformers", "tokenizers", "safetensors", "torchvision")
"""Modules that the segmenters need. Without torchvision, `transformers` would resize images in another way."""

PIPELINE_ARGUMENTS = frozenset(
    {
        "points_per_batch",
        "points_per_crop",
        "crops_n_layers",
        "crop_overlap_ratio",
        "pred_iou_thresh",
        "stability_score_thresh",
        "stability_score_offset",
        "mask_threshold",
        "crops_nms_thresh",
    }
)
"""Arguments of the mask-generation pipeline that `MaskGeneration` passes on. The pipeline ignores unknown names."""

_ADAPTER = 1
"""Raised whenever a change of this module changes masks."""

_WEIGHTS = ".safetensors"
_SUFFIXES = (_WEIGHTS, ".json", ".txt", ".model")
"""Suffixes of the files that `transformers` reads, including those of tokenizers."""

_PHRASES = 4096
"""Maximum number of phrases whose embeddings stay in memory."""

_CONCEPT_MODELS = ("sam3", "sam3_video")
"""Types of models whose folders contain a `Sam3Model`."""


class _LocalModel:
    """Model in a local folder, and what it states about itself."""

    @classmethod
    def weights_sha256(cls, folder: str, **_: Any) -> str:
        """Return a SHA-256 of the folder's files."""
        return _sha256_of(folder)

    @classmethod
    def license(cls, folder: str, **_: Any) -> str | None:
        """Return the license in the front matter of the folder's README.md, or None if there is none."""
        card = _card_of(folder)
        license = card.get("license")
        return _text(card.get("license_name") if license == "other" else license)

    @classmethod
    def terms(cls, folder: str, **_: Any) -> str | None:
        """Return the link to the license in the front matter of the folder's README.md, or None if there is none."""
        return _text(_card_of(folder).get("license_link"))


class MaskGeneration(_LocalModel):
    """Segmenter that calls the mask-generation pipeline of `transformers` with each image.

    It works with every model that the pipeline knows, such as SAM, SAM 2, SAM-HQ, EdgeTAM, and the tracker of SAM 3.
    Masks have a score, the IoU that the model predicts.
    """

    name = "mask_generation"
    masks = True

    def __init__(self, folder: str, **arguments: Any) -> None:
        """Load the model in float32, because the pipeline fails with other types. `arguments` are the pipeline's.

        Raises `UsageError` for the same reasons as `version`, or if the folder doesn't contain all weights. The errors
        of `transformers` propagate.
        """
        _files_of(folder)
        _check_arguments(arguments)
        _stay_offline()
        from transformers import AutoImageProcessor, AutoModelForMaskGeneration
        from transformers.pipelines import MaskGenerationPipeline

        model = _load(AutoModelForMaskGeneration, folder, "float32", trust_remote_code=False)
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        self._pipeline = MaskGenerationPipeline(model=model, image_processor=processor, device=model.device)
        self._arguments = arguments

    @classmethod
    def version(cls, folder: str, **arguments: Any) -> str:
        """Return the package's version, the hash of the folder, and the other arguments, as JSON.

        Raises `UsageError` if a package is missing, if the folder isn't a model's, or if an argument is unknown.
        """
        _check_arguments(arguments)
        return _version(folder, arguments)

    def __call__(self, rows: Sequence[StageRow]) -> list[StageRow]:
        return [row.with_masks(self._masks_of(row.image)) for row in rows]

    def _masks_of(self, pixels: Pixels) -> list[Mask]:
        found = self._pipeline(Image.fromarray(pixels), output_rle_mask=True, **self._arguments)
        pairs = zip(found["rle_mask"], found["scores"], strict=True)
        return [Mask(code, score=float(score)) for code, score in pairs]


class Concepts(_LocalModel):
    """Segmenter that finds each instance of each phrase with SAM 3.

    The label of a mask is the phrase. The score of a mask and of its label is SAM 3's score of the instance. Without
    `phrases`, those of an image are the labels of its prompts in the catalog, which must have no boxes and no points.
    """

    name = "concepts"
    masks = True

    def __init__(
        self,
        folder: str,
        phrases: Sequence[str] | None = None,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        dtype: str = "float32",
    ) -> None:
        """Instances with a score of `threshold` or less are dropped. A mask consists of the pixels whose probability
        is over `mask_threshold`. `dtype` is the type of the weights, such as `bfloat16`.

        Raises `UsageError` for the same reasons as `version`, or if the folder doesn't contain all weights. The errors
        of `transformers` propagate.
        """
        _files_of(folder, _CONCEPT_MODELS)
        _check_phrases(phrases)
        _stay_offline()
        from transformers import Sam3Model, Sam3Processor

        self._model = _load(Sam3Model, folder, dtype)
        self._processor = Sam3Processor.from_pretrained(folder, local_files_only=True)
        self._thresholds = {"threshold": threshold, "mask_threshold": mask_threshold}
        self._phrases = None if phrases is None else list(phrases)
        self._encode = lru_cache(_PHRASES)(self._encoded)
        try:
            for phrase in phrases or ():
                self._encode(phrase)
        except RejectedError as error:
            raise UsageError(error.detail) from error

    @classmethod
    def wants_prompts(cls, folder: str, phrases: Sequence[str] | None = None, **_: Any) -> bool:
        """Return whether each row of the catalog has its own phrases."""
        return phrases is None

    @classmethod
    def version(cls, folder: str, phrases: Sequence[str] | None = None, **others: Any) -> str:
        """Return the package's version, the hash of the folder, and the other arguments, as JSON.

        Raises `UsageError` if a package is missing, if the folder isn't SAM 3's, or if the phrases are invalid.
        """
        _check_phrases(phrases)
        named = None if phrases is None else list(phrases)
        return _version(folder, {"phrases": named, **others}, _CONCEPT_MODELS)

    @torch.inference_mode()
    def __call__(self, rows: Sequence[StageRow]) -> list[StageRow]:
        """Return the rows with their masks. A row without phrases gets none.

        Raises `RejectedError` (`prompts_misfit`) if a prompt has a box or points, or if its label is too long.
        """
        return [row.with_masks(self._masks_of(row.image, self._phrases_of(row))) for row in rows]

    def _phrases_of(self, row: StageRow) -> Sequence[str]:
        if self._phrases is not None:
            return self._phrases
        found = dict[str, None]()  # in order, each once
        for index, prompt in enumerate(row.get("prompts") or ()):
            if prompt["box"] is not None or prompt["points"]:
                detail = f"prompts.{index} has a box or points; expected only a label, which SAM 3 takes as a phrase"
                raise RejectedError(Reason.PROMPTS_MISFIT, detail)
            found[prompt["label"]] = None
        return list(found)

    def _encoded(self, phrase: str) -> dict[str, Any]:
        """Return a phrase's embedding and its attention mask, as arguments of the model.

        Raises `RejectedError` (`prompts_misfit`) if the phrase has too many tokens.
        """
        tokens = self._processor(text=phrase, return_tensors="pt").to(self._model.device)
        length, most = tokens["input_ids"].shape[1], self._model.config.text_config.max_position_embeddings
        if length > most:
            detail = f"the phrase {phrase[:100]!r} has {length} tokens; expected at most {most}"
            raise RejectedError(Reason.PROMPTS_MISFIT, detail)
        with torch.inference_mode():
            embedding = self._model.get_text_features(tokens["input_ids"], tokens["attention_mask"])
        return {"text_embeds": embedding, "attention_mask": tokens["attention_mask"]}

    def _masks_of(self, pixels: Pixels, phrases: Sequence[str]) -> list[Mask]:
        texts = [self._encode(phrase) for phrase in phrases]
        if not texts:
            return []
        image = self._processor(images=Image.fromarray(pixels), return_tensors="pt")
        image = image.to(self._model.device, dtype=self._model.dtype)
        embedding = self._model.get_vision_features(image["pixel_values"])
        masks = []
        for phrase, text in zip(phrases, texts, strict=True):
            outputs = self._model(vision_embeds=embedding, **text)
            (found,) = self._processor.post_process_instance_segmentation(
                outputs, target_sizes=[pixels.shape[:2]], **self._thresholds
            )
            instances = found["masks"].bool().cpu().numpy()
            for instance, score in zip(instances, found["scores"].tolist(), strict=True):
                masks.append(Mask(instance, score=score, label=phrase, label_score=score, text=phrase))
        return masks


def _version(folder: str, arguments: Mapping[str, Any], kinds: Sequence[str] = ()) -> str:
    sha256, package = _sha256_of(folder, kinds), importlib.metadata.version("transformers")
    versions = {"adapter": _ADAPTER, "transformers": package, "folder": sha256}
    return json.dumps({**versions, **arguments}, ensure_ascii=False, sort_keys=True)


def _sha256_of(folder: str, kinds: Sequence[str] = ()) -> str:
    hashes = {file.name: sha256_of(file) for file in _files_of(folder, kinds)}
    return hashlib.sha256(canonical_json(hashes)).hexdigest()


def _card_of(folder: str) -> dict[str, Any]:
    """Return the front matter of a folder's README.md. It's empty if there is none, or if it isn't YAML."""
    file = Path(folder, "README.md")
    if not file.is_file():
        return {}
    first, *lines = file.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    if first != "---" or "---" not in lines:
        return {}
    try:
        found = yaml.safe_load("\n".join(lines[: lines.index("---")]))
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


def _files_of(folder: str, kinds: Sequence[str] = ()) -> list[Path]:
    """Return the files of a model that may determine its masks.

    Raises `UsageError` if a package is missing, if the folder lacks files, or if the model isn't of one of `kinds`.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"missing packages: {', '.join(missing)}. Run `pip install 'segmint[build,text]'`.")
    config = Path(folder, "config.json")
    if not config.is_file():
        raise UsageError(
            f"{folder} isn't a folder with a config.json: expected a local folder, as save_pretrained writes it, on "
            "every node. Models aren't downloaded"
        )
    files = [file for file in sorted(config.parent.iterdir()) if file.suffix in _SUFFIXES]
    if not any(file.suffix == _WEIGHTS for file in files):
        raise UsageError(f"{folder} contains no safetensors file. Other formats of weights aren't read")
    kind = json.loads(config.read_bytes()).get("model_type")
    if kinds and kind not in kinds:
        raise UsageError(f"{folder} contains a model of the type {kind}: expected {' or '.join(kinds)}")
    return files


def _check_arguments(arguments: Mapping[str, Any]) -> None:
    unknown = sorted(set(arguments) - PIPELINE_ARGUMENTS)
    if unknown:
        expected = ", ".join(sorted(PIPELINE_ARGUMENTS))
        raise UsageError(f"MaskGeneration has no argument {unknown[0]}: expected folder or one of {expected}")


def _check_phrases(phrases: Any) -> None:
    """Raise `UsageError` unless `phrases` is None or a list of different texts."""
    if phrases is None:
        return
    valid = isinstance(phrases, list | tuple) and all(isinstance(each, str) and each.strip() for each in phrases)
    if not valid or not phrases or len(set(phrases)) < len(phrases):
        raise UsageError(f"phrases is {phrases!r}: expected a list of different texts, such as [dog, red car]")


def _stay_offline() -> None:
    """Keep this process from contacting hubs, in addition to `local_files_only`."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # huggingface_hub reads it when it is imported


def _load(model_class: Any, folder: str, dtype: str, **options: Any) -> Any:
    """Load a model to this process's device. Raises `UsageError` if the folder doesn't contain all of its weights."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model, report = model_class.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, dtype=dtype, output_loading_info=True, **options
    )
    wrong = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if wrong:
        raise UsageError(f"{folder} lacks {len(wrong)} of the weights of {type(model).__name__}, such as {wrong[0]}")
    return model.to(_device()).eval()


def _device() -> str:
    """Return cuda if this process may use a GPU. In a worker of Ray, the worker's resources decide."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized() and not ray.get_gpu_ids():
        # Ray hides the GPUs of others only from workers that have GPUs.
        return "cpu"
    return "cuda" if torch.cuda.is_available() else "cpu"
