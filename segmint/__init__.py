"""Public Python API of segmint, whose names are imported lazily on first access.

    from segmint import MaskGenerator, show
    generator = MaskGenerator("mobile_sam")
    masks = generator.generate("photo.jpg")
    show(masks)

The command line runs as `python -m segmint`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from segmint.infra.version import VERSION

if TYPE_CHECKING:
    import os

    from segmint.catalogs.dataset.reading.torch_dataset import BatchLoader as BatchLoader
    from segmint.catalogs.dataset.reading.torch_dataset import collate as collate
    from segmint.catalogs.dataset.reading.torch_dataset import open_dataset as open_dataset
    from segmint.model.automatic.settings import MaskSettings as MaskSettings
    from segmint.model.sam.load import Sam
    from segmint.operators.custom.contract import Mask as Mask
    from segmint.operators.custom.contract import Reject as Reject
    from segmint.operators.custom.contract import StageRow as StageRow
    from segmint.operators.segmenter.prompted import PromptedMasks as PromptedMasks
    from segmint.pipeline.build import build as build
    from segmint.pipeline.config.config import Config as Config
    from segmint.pipeline.config.config import StageConfig as StageConfig
    from segmint.pipeline.config.config import load_config as load_config
    from segmint.pipeline.masks.generator import MaskGenerator as MaskGenerator
    from segmint.pipeline.masks.generator import Predictor as Predictor
    from segmint.pipeline.masks.results import show as show

__version__ = VERSION

_HOMES = {
    "BatchLoader": "segmint.catalogs.dataset.reading.torch_dataset",
    "Config": "segmint.pipeline.config.config",
    "Mask": "segmint.operators.custom.contract",
    "MaskGenerator": "segmint.pipeline.masks.generator",
    "MaskSettings": "segmint.model.automatic.settings",
    "Predictor": "segmint.pipeline.masks.generator",
    "PromptedMasks": "segmint.operators.segmenter.prompted",
    "Reject": "segmint.operators.custom.contract",
    "StageConfig": "segmint.pipeline.config.config",
    "StageRow": "segmint.operators.custom.contract",
    "build": "segmint.pipeline.build",
    "collate": "segmint.catalogs.dataset.reading.torch_dataset",
    "load_config": "segmint.pipeline.config.config",
    "open_dataset": "segmint.catalogs.dataset.reading.torch_dataset",
    "show": "segmint.pipeline.masks.results",
}

__all__ = [*_HOMES, "load_sam"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'segmint' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


def load_sam(weights: "str | os.PathLike[str]" = "auto", device: str = "auto", precision: str = "fp32") -> "Sam":
    """Load a SAM, given a name of weights (mobile_sam, vit_b, vit_l, vit_h) or the path or URI of a checkpoint.

    `device` is auto, cpu, cuda, or cuda:N. `precision` is fp32, bf16, or auto; auto picks bf16 on GPUs that support it.
    Raises `segmint.infra.errors.UsageError` if the weights can't be found or if the device isn't available.
    """
    from segmint.pipeline.masks.generator import sam_of

    return sam_of(weights, device, precision)
