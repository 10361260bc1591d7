"""Model registry and constructors with the names of `segment_anything`."""

import os
from collections.abc import Callable
from functools import partial

from segmint.compat.sam import Sam
from segmint.infra.assets import resolve_default
from segmint.model.sam import load
from segmint.model.sam.load import Architecture, inspect_checkpoint, load_sam


def _build(architecture: Architecture, checkpoint: str | os.PathLike[str] | None = None) -> Sam:
    """Return a SAM in evaluation mode on the CPU, with a checkpoint's weights or, without one, random weights.

    `checkpoint` is a path, a URI, or the name of known weights (vit_b, vit_l, vit_h, mobile_sam). Raises
    `UsageError` if it cannot be found, and ValueError if it contains a different architecture.
    """
    if checkpoint is None:
        return Sam.of(load.build_sam(architecture))
    path = resolve_default(os.fspath(checkpoint), os.fspath(checkpoint), "checkpoint")
    found, _ = inspect_checkpoint(path)
    if found != architecture:
        way = f"sam_model_registry[{found!r}]" if found in sam_model_registry else "segmint.load_sam"
        raise ValueError(f"{os.fspath(checkpoint)} contains {found}, not {architecture}. Load it with {way}.")
    return Sam.of(load_sam(path))


build_sam_vit_h = partial(_build, "vit_h")
build_sam_vit_l = partial(_build, "vit_l")
build_sam_vit_b = partial(_build, "vit_b")
build_sam = build_sam_vit_h

_build_mobile_sam = partial(_build, "mobile_sam")

sam_model_registry: dict[str, Callable[..., Sam]] = {
    "default": build_sam,
    "vit_h": build_sam_vit_h,
    "vit_l": build_sam_vit_l,
    "vit_b": build_sam_vit_b,
    "vit_t": _build_mobile_sam,  # the name in MobileSAM's own registry
    "mobile_sam": _build_mobile_sam,
}
