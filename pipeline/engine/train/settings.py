"""The configuration of a training run: one frozen, typed tree, read from YAML as a build's is.

Keys decide what is learned, and are pinned by the run's first start, except those of `RUNTIME_KEYS`, which may differ
each time it goes on.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from segmint.infra.assets.known import absolute_name
from segmint.infra.errors import UsageError
from segmint.infra.uris import absolute
from segmint.model.training.objects import Backbone, ObjectsRecipe
from segmint.model.training.recipe import FINETUNE
from segmint.model.training.settings import (
    FocalNormalization,
    IouSupervision,
    LossSettings,
    Resolution,
    SamplingSettings,
)
from segmint.pipeline.config.config import StorageOptions

RUNTIME_KEYS = frozenset({"output", "overlays", "checkpoints", "cache", "resources", "storage", "assets"})
"""Keys that may differ when a run goes on: they decide nothing of what is learned."""

Preset = Literal["finetune", "paper"]
MaskChoice = Literal["all", "human", "automatic"]


def _number(value: Any) -> Any:
    """Refuse true and false, which pydantic takes for 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("expected a number")
    return value


def _uri(value: str) -> str:
    try:
        return absolute(value)
    except UsageError as error:
        raise ValueError(str(error)) from error


def _weights(value: str) -> str:
    try:
        return absolute_name(value)
    except UsageError as error:
        raise ValueError(str(error)) from error


def _auto_or_threads(value: Any) -> Any:
    if value == "auto" or (type(value) is int and value >= 1):
        return value
    raise ValueError("expected auto or a whole number from 1")


def _auto_or_gpus(value: Any) -> Any:
    if value == "auto" or (type(value) is int and value in (0, 1)):
        return value
    raise ValueError("expected auto, 0 or 1: a worker computes on one GPU at most")


Uri = Annotated[str, Field(min_length=1), AfterValidator(_uri)]
Positive = Annotated[int, Field(ge=1), BeforeValidator(_number)]
Share = Annotated[float, Field(ge=0, lt=1)]


class _TrainModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


class DatasetKeys(_TrainModel):
    """A dataset to train on. One may be named twice, with other masks and another weight."""

    uri: Uri
    """Path or URI of the dataset's folder."""
    masks: MaskChoice = "all"
    """human: those that people made, corrected or imported; automatic: those that the model made."""
    weight: Annotated[float, Field(gt=0, le=1000), BeforeValidator(_number)] = 1.0
    """How often an image of it is drawn, against one of weight 1."""


class BatchKeys(_TrainModel):
    """What one step trains on, over all workers."""

    images: Positive = FINETUNE.batch_images
    """Images of a step."""
    masks: Positive = FINETUNE.batch_images * FINETUNE.masks_per_image
    """Masks of a step at most; each of its images keeps one or more."""
    masks_per_image: Positive = FINETUNE.masks_per_image
    """Masks of one image in a step at most."""
    images_at_once: Positive = 1
    """Images whose embeddings are in memory together. Gradients add up over a step, so this bounds memory alone; it
    changes the last bits."""
    masks_at_once: Positive = 64
    """Masks that the decoder takes together; it bounds memory and changes the last bits."""
    recompute: bool = False
    """Whether the blocks of an encoder that is trained are computed again for their gradients: less memory, a third
    slower."""


class OptimizerKeys(_TrainModel):
    """AdamW, its learning rate over the steps, and what regularizes (docs/decisions/0023-recipes.md)."""

    learning_rate: float = Field(default=FINETUNE.learning_rate, gt=0, le=1)
    warmup: int = Field(default=FINETUNE.warmup_steps, ge=0)
    """Steps over which the learning rate rises linearly."""
    decay_steps: tuple[Positive, ...] = FINETUNE.decay_steps
    """Steps from which on the learning rate is a tenth of the one before."""
    weight_decay: float = Field(default=FINETUNE.weight_decay, ge=0, le=1)
    """Of the weights of linear maps and convolutions."""
    layer_decay: float = Field(default=FINETUNE.layer_decay, gt=0, le=1)
    """Factor on the learning rate from one block of the image encoder to the block before; 1: the same for all."""
    drop_path: Share = FINETUNE.drop_path
    """Chance that an image skips a branch of the encoder's last block, rising from 0 in the first."""
    dropout: Share = FINETUNE.dropout
    """Chance that a number in the mask decoder becomes 0."""
    max_norm: Annotated[float, Field(gt=0)] | None = None
    """Gradients of a larger norm are scaled down to this; null: never."""


class LossKeys(_TrainModel):
    """How predicted masks are scored; docs/decisions/0019-losses-and-sampling.md says what each one does."""

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
        """Convert to what `train_step` takes."""
        return LossSettings(**self.model_dump())


class SamplingKeys(_TrainModel):
    """How the prompts of a mask are drawn."""

    clicks: int = FINETUNE.sampling.clicks
    box_share: float = FINETUNE.sampling.box_share
    box_noise: float = FINETUNE.sampling.box_noise
    box_noise_limit: float = FINETUNE.sampling.box_noise_limit

    @model_validator(mode="after")
    def _usable(self) -> Self:
        self.settings()
        return self

    def settings(self) -> SamplingSettings:
        """Convert to what `train_step` takes."""
        return SamplingSettings(**self.model_dump())


class HeldOutKeys(_TrainModel):
    """Images that are never trained on, and when the model is evaluated on them."""

    share: Annotated[float, Field(ge=0, le=0.9)] = 0.1
    """Share of images, by a hash of their source: the same ones in every run, whatever else is in the datasets."""
    images: Positive = 64
    """Images of them at most that are evaluated, each with `masks_per_image` masks at most."""
    every: Positive = 50
    """Steps from one evaluation to the next; the last step is evaluated too."""
    patience: Positive | None = 5
    """Evaluations without a better mean IoU at one click after which training ends; null: never."""


class OverlayKeys(_TrainModel):
    """Pictures of held-out images with predicted masks beside the target."""

    every: int = Field(default=50, ge=0)
    """Steps from one picture to the next; 0: none."""
    images: int = Field(default=4, ge=1, le=64)


class CheckpointKeys(_TrainModel):
    """What a killed run goes on from."""

    every: Positive = 50
    """Steps from one checkpoint to the next; an evaluation that is the best so far puts one too."""
    keep: Positive = 2
    """Checkpoints that are kept, with the best one."""


class CacheKeys(_TrainModel):
    """Embeddings of a frozen encoder, and the looks at images that splits need, on this machine's disk."""

    folder: str | None = None
    """A local folder; null: `cache` in the output, or in the user's cache where the output is in a bucket."""
    gb: Annotated[float, Field(ge=0)] = 10.0
    """Gigabytes of embeddings, 4 MB an image, that are kept at most; 0: none."""


class TrainResources(_TrainModel):
    """Where the run computes."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[Literal["auto"] | int, BeforeValidator(_auto_or_threads)] = "auto"
    """torch's threads, of each worker; the same number gives the same bits. auto: the physical cores, divided among the
    workers of a machine; 1 on a GPU."""
    workers: Annotated[int, Field(ge=1, le=4096), BeforeValidator(_number)] = 1
    """Processes that divide the images of each step. 1: the command's own, without Ray."""
    gpus_per_worker: Annotated[Literal["auto"] | int, BeforeValidator(_auto_or_gpus)] = "auto"
    """0 or 1. auto: 1 with device cuda, or with device auto on a cluster with GPUs."""
    num_cpus: Annotated[Literal["auto"] | int, BeforeValidator(_auto_or_threads)] = "auto"
    """CPUs that Ray reserves for a worker. auto: as many as threads."""
    address: str = "auto"
    """The Ray cluster of several workers, as in a build's configuration: auto, local, or an address."""


_OBJECTS = ObjectsRecipe()


class ObjectsKeys(_TrainModel):
    """The detector of objects, of `task: objects`."""

    backbone: Backbone = _OBJECTS.backbone
    weights: str | None = None
    """A local file of torchvision's weights of the backbone for ImageNet; null: from scratch."""
    short_side: int = _OBJECTS.short_side
    """Of the image as the detector sees it, in pixels."""
    long_side: int = _OBJECTS.long_side
    learning_rate: float = Field(default=_OBJECTS.learning_rate, gt=0, le=1)
    weight_decay: float = Field(default=_OBJECTS.weight_decay, ge=0, le=1)
    steps: Positive = _OBJECTS.steps
    warmup: int = Field(default=_OBJECTS.warmup_steps, ge=0)
    decay_steps: tuple[Positive, ...] = _OBJECTS.decay_steps
    images: Positive = _OBJECTS.batch_images
    """Images of a step."""

    @model_validator(mode="after")
    def _usable(self) -> Self:
        self.recipe()
        return self

    def recipe(self) -> ObjectsRecipe:
        """Convert to what `build_objects_detector` takes."""
        keys = self.model_dump(exclude={"weights", "warmup", "images"})
        return ObjectsRecipe(**keys, warmup_steps=self.warmup, batch_images=self.images)


class TrainConfig(_TrainModel):
    """The whole configuration of a training run; the defaults are those of the preset `finetune`."""

    datasets: tuple[DatasetKeys, ...] = Field(description="a list such as [{uri: out/street}]")
    output: Uri
    """Path or URI of the run's folder: checkpoints, logs, and at the end the weights and `training.json`."""
    task: Literal["masks", "objects"] = "masks"
    """masks: SAM. objects: a detector of one class, from the masks' boxes, by the keys of `objects`."""
    objects: ObjectsKeys = ObjectsKeys()
    weights: Annotated[str, AfterValidator(_weights)] = Field(default="mobile_sam", min_length=1)
    """The parent: mobile_sam, vit_b, vit_l, vit_h, or the path or URI of a checkpoint."""
    preset: Preset = "finetune"
    """Sets the defaults of the keys below; explicit keys override them."""
    encoder: Literal["frozen", "trained"] = "frozen"
    """Whether the image encoder learns, too."""
    steps: Positive = FINETUNE.steps
    """With other steps than the preset's, its warm-up and its decay steps are as much shorter or longer."""
    batch: BatchKeys = BatchKeys()
    optimizer: OptimizerKeys = OptimizerKeys()
    losses: LossKeys = LossKeys()
    sampling: SamplingKeys = SamplingKeys()
    max_mask_area_ratio: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Masks over this share of their image are left out."""
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 under autocast on a GPU that supports it, else fp32."""
    held_out: HeldOutKeys = HeldOutKeys()
    overlays: OverlayKeys = OverlayKeys()
    checkpoints: CheckpointKeys = CheckpointKeys()
    cache: CacheKeys = CacheKeys()
    bad_shards: Literal["stop", "skip"] = "stop"
    """What a shard that cannot be read does: it ends the run before the first step, or is left out and listed."""
    resources: TrainResources = TrainResources()
    storage: StorageOptions = {}
    """Options by URI prefix, as in a build's configuration."""
    assets: str | None = None
    """Path or URI of a folder that mirrors the weight files."""

    @field_validator("datasets")
    @classmethod
    def _each_once(cls, value: tuple[DatasetKeys, ...]) -> tuple[DatasetKeys, ...]:
        if not value:
            raise ValueError("expected one dataset or more, such as [{uri: out/street}]")
        for number, entry in enumerate(value):
            for other in value[:number]:
                if entry.uri == other.uri and (entry.masks == other.masks or "all" in (entry.masks, other.masks)):
                    raise ValueError(f"{entry.uri} is named twice with the same masks: expected human and automatic")
        return value


def load_train_config(path_or_uri: str, overrides: list[str] | None = None) -> TrainConfig:
    """Read a YAML file and apply overrides such as "optimizer.learning_rate=3e-5", and check every key alone.

    Raises one `UsageError` that lists every wrong key and value with its place.
    """
    from segmint.pipeline.config.yaml_file import load

    return load(path_or_uri, overrides or [], TrainConfig)


def identity_keys(config: TrainConfig) -> dict[str, Any]:
    """Return the keys that decide what is learned, as plain JSON values."""
    return config.model_dump(mode="json", exclude=set(RUNTIME_KEYS))
