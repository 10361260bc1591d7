"""Configuration of a training run: a frozen, typed tree that is read from YAML like a build's configuration.

The first start of a run pins all keys that determine what the model learns. The other keys, `RUNTIME_KEYS`, may differ
each time the run resumes.

Presets: conversion of the recipes in `model/training/recipe.py` to configuration keys and back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from segmint.infra.assets import absolute_name
from segmint.infra.errors import UsageError, raise_problems
from segmint.infra.units import auto_or, validated
from segmint.infra.uris import absolute
from segmint.model.sam.load import Architecture
from segmint.model.training.objects import Backbone, ObjectsRecipe
from segmint.model.training.recipe import (
    ALL_PARTS,
    FINETUNE,
    MASK_MAKING,
    MASK_MAKING_JITTER,
    MASK_MAKING_LAYERS,
    PAPER,
    BoxNoise,
    FocalNormalization,
    IouSupervision,
    LossSettings,
    Recipe,
    Resolution,
    SamplingSettings,
)
from segmint.pipeline.config.config import ConfigModel, StorageOptions

RUNTIME_KEYS = frozenset({"output", "checkpoints", "cache", "resources", "storage", "assets"})
"""Keys that may change when a run resumes, because they don't affect what the model learns."""

Preset = Literal["finetune", "paper", "mask-making"]
MaskChoice = Literal["all", "human", "automatic"]


def _number(value: Any) -> Any:
    """Reject true and false, which pydantic would accept as 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("expected a number")
    return value


Uri = Annotated[str, Field(min_length=1), AfterValidator(validated(absolute))]
AutoOrCount = Annotated[
    Literal["auto"] | int, auto_or(lambda value: type(value) is int and value >= 1, " or a whole number from 1")
]
Positive = Annotated[int, Field(ge=1), BeforeValidator(_number)]
Share = Annotated[float, Field(ge=0, lt=1)]


class DatasetKeys(ConfigModel):
    """Dataset to train on. A dataset may be listed twice, with different masks and weights."""

    uri: Uri
    """Path or URI of the dataset's folder."""
    masks: MaskChoice = "all"
    """human: masks that annotators created, corrected, or imported; automatic: masks from the model."""
    select: Annotated[str, Field(min_length=1)] | None = None
    """Only train on images that meet this SQL condition, as in masks > 20, or a file that `segmint select` wrote."""
    weight: Annotated[float, Field(gt=0, le=1000), BeforeValidator(_number)] = 1.0
    """Frequency with which an image of this dataset is drawn, compared with an image of a dataset with weight 1."""


class BatchKeys(ConfigModel):
    """Size of a step, summed over all workers."""

    images: Positive = FINETUNE.batch_images
    """Images per step."""
    masks: Positive = FINETUNE.batch_images * FINETUNE.masks_per_image
    """Maximum number of masks per step. Each image of the step keeps at least one mask."""
    masks_per_image: Positive = FINETUNE.masks_per_image
    """Maximum number of masks per image in a step."""
    images_at_once: Positive = 1
    """Number of images whose embeddings are in memory at the same time. Gradients accumulate over a step, so this only
    limits memory use and changes the last bits of the results."""
    masks_at_once: Positive = 64
    """Number of masks that the decoder processes at a time. This only limits memory use and changes the last bits."""
    recompute: bool = False
    """Recompute the blocks of a trained encoder in the backward pass. This saves memory, but takes a third longer."""


class OptimizerKeys(ConfigModel):
    """AdamW optimizer, with its learning-rate schedule and regularization (docs/decisions/0023-recipes.md)."""

    learning_rate: float = Field(default=FINETUNE.learning_rate, gt=0, le=1)
    warmup: int = Field(default=FINETUNE.warmup_steps, ge=0)
    """Steps of linear warm-up."""
    decay_steps: tuple[Positive, ...] = FINETUNE.decay_steps
    """Steps at which the learning rate drops to a tenth."""
    weight_decay: float = Field(default=FINETUNE.weight_decay, ge=0, le=1)
    """Weight decay, which applies to the weights of linear maps and convolutions."""
    layer_decay: float = Field(default=FINETUNE.layer_decay, gt=0, le=1)
    """Factor between the learning rates of an encoder block and the block before it; 1 gives all blocks the same
    rate."""
    drop_path: Share = FINETUNE.drop_path
    """Probability, per image, of dropping a branch in the encoder's last block. It rises linearly from 0 in the first
    block."""
    dropout: Share = FINETUNE.dropout
    """Dropout probability in the mask decoder."""
    max_norm: Annotated[float, Field(gt=0)] | None = None
    """Norm to which gradients with a larger norm are clipped; null: no clipping."""


class LossKeys(ConfigModel):
    """Losses of predicted masks (docs/decisions/0019-losses-and-sampling.md)."""

    focal_weight: float = FINETUNE.losses.focal_weight
    dice_weight: float = FINETUNE.losses.dice_weight
    iou_weight: float = FINETUNE.losses.iou_weight
    focal_alpha: float | None = FINETUNE.losses.focal_alpha
    focal_gamma: float = FINETUNE.losses.focal_gamma
    focal_normalization: FocalNormalization = FINETUNE.losses.focal_normalization
    iou_supervision: IouSupervision = FINETUNE.losses.iou_supervision
    resolution: Resolution = FINETUNE.losses.resolution

    @model_validator(mode="after")
    def _usable(self) -> Self:
        self.settings()
        return self

    def settings(self) -> LossSettings:
        """Convert to the settings that `train_step` takes."""
        return LossSettings(**self.model_dump())


class SamplingKeys(ConfigModel):
    """Sampling of prompts for a mask."""

    clicks: int = FINETUNE.sampling.clicks
    box_share: float = FINETUNE.sampling.box_share
    box_noise: float = FINETUNE.sampling.box_noise
    box_noise_limit: float = FINETUNE.sampling.box_noise_limit
    box_noise_kind: BoxNoise = FINETUNE.sampling.box_noise_kind

    @model_validator(mode="after")
    def _usable(self) -> Self:
        self.settings()
        return self

    def settings(self) -> SamplingSettings:
        """Convert to the settings that `train_step` takes."""
        return SamplingSettings(**self.model_dump())


class HeldOutKeys(ConfigModel):
    """Held-out images, which are excluded from training, and the evaluation on them."""

    share: Annotated[float, Field(ge=0, le=0.9)] = 0.1
    """Share of images to hold out. A hash of the source decides, so every run holds out the same images, whatever else
    the datasets contain."""
    images: Positive = 64
    """Maximum number of held-out images per evaluation, each with at most `masks_per_image` masks."""
    every: Positive = 50
    """Steps between evaluations. The last step is always evaluated."""
    patience: Positive | None = 5
    """Number of evaluations without a better mean IoU after one click that stops the training; null: never."""


class CheckpointKeys(ConfigModel):
    """Checkpoints, from which a killed run resumes."""

    every: Positive = 50
    """Steps between checkpoints. An evaluation that is the best so far also writes one."""
    keep: Positive = 2
    """Number of latest checkpoints to keep, in addition to the best one."""


class CacheKeys(ConfigModel):
    """Cache on this machine's disk for a frozen encoder's embeddings, and for the shard scans that the split needs."""

    folder: str | None = None
    """Local folder; null: `cache` in the output, or in the user's cache folder if the output is in a bucket."""
    gb: Annotated[float, Field(ge=0)] = 10.0
    """Maximum size of the cached embeddings in gigabytes, at 4 MB per image; 0: no caching."""


class TrainResources(ConfigModel):
    """Device, threads, and workers of the run."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: AutoOrCount = "auto"
    """torch threads per worker. The same number gives the same bits. auto: the physical cores, divided among the
    workers of a machine; 1 on a GPU."""
    workers: Annotated[int, Field(ge=1, le=4096), BeforeValidator(_number)] = 1
    """Number of processes that share the images of each step. 1: train in the command's process, without Ray."""
    gpus_per_worker: Annotated[
        Literal["auto"] | int,
        auto_or(
            lambda value: type(value) is int and value in (0, 1), ", 0, or 1, because a worker uses at most one GPU"
        ),
    ] = "auto"
    """0 or 1. auto: 1 with device cuda, or with device auto on a cluster with GPUs."""
    num_cpus: AutoOrCount = "auto"
    """CPUs that Ray reserves per worker. auto: the same as threads."""
    address: str = "auto"
    """Ray cluster that runs several workers, as in a build's configuration: auto, local, or an address."""


_OBJECTS = ObjectsRecipe()


class ObjectsKeys(ConfigModel):
    """Object detector of `task: objects`."""

    backbone: Backbone = _OBJECTS.backbone
    weights: str | None = None
    """Local file with torchvision's ImageNet weights for the backbone; null: train from scratch."""
    short_side: int = _OBJECTS.short_side
    """Short side of the detector's input, in pixels."""
    long_side: int = _OBJECTS.long_side
    learning_rate: float = Field(default=_OBJECTS.learning_rate, gt=0, le=1)
    weight_decay: float = Field(default=_OBJECTS.weight_decay, ge=0, le=1)
    steps: Positive = _OBJECTS.steps
    warmup: int = Field(default=_OBJECTS.warmup_steps, ge=0)
    decay_steps: tuple[Positive, ...] = _OBJECTS.decay_steps
    images: Positive = _OBJECTS.batch_images
    """Images per step."""

    @model_validator(mode="after")
    def _usable(self) -> Self:
        self.recipe()
        return self

    def recipe(self) -> ObjectsRecipe:
        """Convert to the recipe that `build_objects_detector` takes."""
        keys = self.model_dump(exclude={"weights", "warmup", "images"})
        return ObjectsRecipe(**keys, warmup_steps=self.warmup, batch_images=self.images)


class TrainConfig(ConfigModel):
    """Configuration of a training run. The defaults come from the preset `finetune`."""

    datasets: tuple[DatasetKeys, ...] = Field(description="a list such as [{uri: out/street}]")
    output: Uri
    """Path or URI of the run's folder. It receives the checkpoints, the logs, and at the end, the weights and
    `training.json`."""
    task: Literal["masks", "objects"] = "masks"
    """masks: SAM. objects: a one-class detector trained on the boxes of the masks, configured by the keys of `objects`.
    """
    objects: ObjectsKeys = ObjectsKeys()
    weights: Annotated[str, AfterValidator(validated(absolute_name))] = Field(default="mobile_sam", min_length=1)
    """Parent weights: mobile_sam, vit_b, vit_l, vit_h, or the path or URI of a checkpoint."""
    encoder_weights: Annotated[str, AfterValidator(validated(absolute_name))] | None = None
    """Weights of only an image encoder, a ViT from MAE or ViTDet, instead of `weights`. All other parts start from
    scratch."""
    decoder_layers: Annotated[int, Field(ge=1, le=8)] = 2
    """Layers of the mask decoder that is created for `encoder_weights`."""
    preset: Preset = "finetune"
    """Preset that sets the defaults of the keys below. Explicit keys override it."""
    encoder: Literal["frozen", "trained"] = "frozen"
    """trained: train the image encoder as well."""
    steps: Positive = FINETUNE.steps
    """Number of steps. If it differs from the preset's, the preset's warm-up and decay steps are scaled in
    proportion."""
    batch: BatchKeys = BatchKeys()
    optimizer: OptimizerKeys = OptimizerKeys()
    losses: LossKeys = LossKeys()
    sampling: SamplingKeys = SamplingKeys()
    max_mask_area_ratio: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Masks that cover a larger share of their image than this are skipped."""
    jitter: tuple[Annotated[float, Field(gt=0, le=4)], Annotated[float, Field(gt=0, le=4)]] | None = None
    """Lowest and highest scale of large-scale jitter, where 1 fits the whole image into the encoder's input; null:
    none."""
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 under autocast on a GPU that supports it, else fp32."""
    held_out: HeldOutKeys = HeldOutKeys()
    checkpoints: CheckpointKeys = CheckpointKeys()
    cache: CacheKeys = CacheKeys()
    bad_shards: Literal["stop", "skip"] = "stop"
    """For unreadable shards, stop the run before the first step, or skip and list them."""
    resources: TrainResources = TrainResources()
    storage: StorageOptions = {}  # noqa: RUF012 - pydantic copies the default
    """Storage options by URI prefix, as in a build's configuration."""
    assets: str | None = None
    """Path or URI of a folder with copies of the weight files."""

    @field_validator("datasets")
    @classmethod
    def _each_once(cls, value: tuple[DatasetKeys, ...]) -> tuple[DatasetKeys, ...]:
        if not value:
            raise ValueError("expected at least one dataset, such as [{uri: out/street}]")
        for number, entry in enumerate(value):
            for other in value[:number]:
                if entry.uri == other.uri and (entry.masks == other.masks or "all" in (entry.masks, other.masks)):
                    raise ValueError(f"{entry.uri} is listed twice with the same masks: expected human and automatic")
        return value


def load_train_config(path_or_uri: str, overrides: list[str] | None = None) -> TrainConfig:
    """Read a YAML file, apply overrides such as "optimizer.learning_rate=3e-5", and validate each key.

    All wrong keys and values are reported in a single `UsageError`, with their locations.
    """
    from segmint.pipeline.config.yaml_file import load

    return load(path_or_uri, overrides or [], TrainConfig)


def identity_keys(config: TrainConfig) -> dict[str, Any]:
    """Return the keys that determine what the model learns, as plain JSON values."""
    return config.model_dump(mode="json", exclude=set(RUNTIME_KEYS))


_LONG, _SELDOM = 10_000, 1000
"""Number of steps from which a preset is long, and a long preset's interval of evaluations and checkpoints."""


def with_preset(config: TrainConfig, architecture: Architecture) -> TrainConfig:
    """Fill in the preset's values for the parent's architecture. Keys that the user has set take precedence.

    If `steps` differs from the preset's, the warm-up and the decay steps are scaled in proportion. Raises `UsageError`
    for values that contradict each other.
    """
    recipe, explicit, preset = FINETUNE, config.model_dump(exclude_unset=True), dict[str, Any]()
    if config.preset != "finetune":
        if architecture not in PAPER:
            raise UsageError(
                f"preset: {config.preset} supports {', '.join(PAPER)}, but the weights are {architecture}. Use preset: "
                "finetune"
            )
        recipe = (PAPER if config.preset == "paper" else MASK_MAKING)[architecture]
        preset = {"held_out": {"patience": None}}
    if config.preset == "mask-making":
        preset |= {"decoder_layers": MASK_MAKING_LAYERS, "jitter": MASK_MAKING_JITTER}
        explicit["datasets"] = [{"masks": "human", **entry} for entry in explicit["datasets"]]
    recipe = _of_length(recipe, explicit.get("steps", recipe.steps))
    filled = TrainConfig.model_validate(merged(merged(keys_of(recipe), preset), explicit))
    _check_together(filled, explicit)
    return filled


def recipe_of(config: TrainConfig) -> Recipe:
    """Convert a configuration to the recipe that `build_optimizer` takes."""
    keys = config.optimizer
    return Recipe(
        parts=ALL_PARTS if config.encoder == "trained" else FINETUNE.parts,
        learning_rate=keys.learning_rate,
        steps=config.steps,
        warmup_steps=keys.warmup,
        decay_steps=keys.decay_steps,
        batch_images=config.batch.images,
        masks_per_image=config.batch.masks_per_image,
        largest_mask=config.max_mask_area_ratio,
        weight_decay=keys.weight_decay,
        layer_decay=keys.layer_decay,
        drop_path=keys.drop_path,
        dropout=keys.dropout,
        losses=config.losses.settings(),
        sampling=config.sampling.settings(),
    )


def keys_of(recipe: Recipe) -> dict[str, Any]:
    """Convert a recipe to the configuration keys that it determines, as the inverse of `recipe_of`."""
    tree: dict[str, Any] = {
        "encoder": "trained" if "image_encoder" in recipe.parts else "frozen",
        "steps": recipe.steps,
        "batch": {
            "images": recipe.batch_images,
            "masks": recipe.batch_images * recipe.masks_per_image,
            "masks_per_image": recipe.masks_per_image,
        },
        "optimizer": {
            "learning_rate": recipe.learning_rate,
            "warmup": recipe.warmup_steps,
            "decay_steps": recipe.decay_steps,
            "weight_decay": recipe.weight_decay,
            "layer_decay": recipe.layer_decay,
            "drop_path": recipe.drop_path,
            "dropout": recipe.dropout,
        },
        "losses": asdict(recipe.losses),
        "sampling": asdict(recipe.sampling),
        "max_mask_area_ratio": recipe.largest_mask,
    }
    long = {name: {"every": _SELDOM} for name in ("held_out", "checkpoints")}
    return merged(tree, long) if recipe.steps >= _LONG else tree


def _of_length(recipe: Recipe, steps: int) -> Recipe:
    """Scale a recipe's schedule to a number of steps."""
    if steps == recipe.steps:
        return recipe
    decays = sorted({max(1, round(step * steps / recipe.steps)) for step in recipe.decay_steps})
    return replace(
        recipe,
        steps=steps,
        warmup_steps=min(steps - 1, round(recipe.warmup_steps * steps / recipe.steps)),
        decay_steps=tuple(step for step in decays if step < steps),
    )


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two trees. If both contain a value, the value from `over` applies."""
    tree = dict(under)
    for key, value in over.items():
        below = tree.get(key)
        tree[key] = merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return tree


def _check_together(config: TrainConfig, explicit: Mapping[str, Any]) -> None:
    batch, optimizer, problems = config.batch, config.optimizer, list[str]()
    if config.jitter is not None and config.encoder == "frozen":
        problems.append("jitter needs encoder: trained, because a frozen encoder embeds each whole image only once")
    if config.jitter is not None and config.jitter[0] > config.jitter[1]:
        problems.append(f"jitter is {list(config.jitter)}: expected the lowest and then the highest scale")
    if config.preset == "mask-making":
        problems += [
            f"preset: mask-making trains on people's masks, but {entry.uri} has masks: {entry.masks}. Use masks: human"
            for entry in config.datasets
            if entry.masks != "human"
        ]
    if batch.masks < batch.images:
        problems.append(
            f"batch.masks is {batch.masks} for {batch.images} images: expected at least batch.images, because each "
            "image of a step needs a mask"
        )
    if config.resources.workers > batch.images:
        problems.append(
            f"resources.workers is {config.resources.workers} for {batch.images} images per step: expected at most "
            "batch.images, because a worker takes whole images"
        )
    problems += schedule_problems("optimizer", optimizer.warmup, optimizer.decay_steps, config.steps)
    raise_problems(problems)


def schedule_problems(under: str, warmup: int, decay_steps: Sequence[int], steps: int) -> list[str]:
    """Return the problems of a learning-rate schedule. Its keys are below the key `under`."""
    decays, problems = list(decay_steps), []
    if warmup >= steps:
        problems.append(f"{under}.warmup is {warmup}: expected fewer than the {steps} steps")
    if decays != sorted(set(decays)):
        problems.append(f"{under}.decay_steps are {decays}: expected ascending steps, each once")
    if decays and decays[-1] >= steps:
        problems.append(f"{under}.decay_steps end at {decays[-1]}: expected steps before the last, {steps}")
    return problems
