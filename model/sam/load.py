"""Construction of SAM with random weights or from a checkpoint, whose architecture is detected."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from segmint.model.sam.image_encoder_tinyvit import ImageEncoderTinyViT
from segmint.model.sam.image_encoder_vit import VIT_B, VIT_H, VIT_L, ImageEncoderViT, VitShape
from segmint.model.sam.mask_decoder import MaskDecoder
from segmint.model.sam.prompt_encoder import PromptEncoder
from segmint.model.sam.sam import Sam

Architecture = Literal["vit_b", "vit_l", "vit_h", "mobile_sam"]

VIT_SHAPES: Mapping[str, VitShape] = {"vit_b": VIT_B, "vit_l": VIT_L, "vit_h": VIT_H}

_DECODER_LAYER = re.compile(r"mask_decoder\.transformer\.layers\.(\d+)\.")


class SamWeightsError(ValueError):
    """Raised for a file or a state dict that does not contain the weights of a SAM."""


def build_sam(architecture: Architecture, decoder_depth: int = 2) -> Sam:
    """Return a SAM with random weights, in float32 and evaluation mode.

    Raises ValueError for an unknown architecture or a decoder without layers.
    """
    if architecture not in get_args(Architecture):
        names = ", ".join(get_args(Architecture))
        raise ValueError(f"unknown SAM architecture {architecture!r}: expected one of {names}")
    if decoder_depth < 1:
        raise ValueError(f"the mask decoder has {decoder_depth} layers: expected at least 1 (SAM has 2 or 3)")
    encoder: nn.Module
    if architecture == "mobile_sam":
        encoder = ImageEncoderTinyViT()
    else:
        encoder = ImageEncoderViT(VIT_SHAPES[architecture])
    return Sam(encoder, PromptEncoder(), MaskDecoder(decoder_depth)).eval()


def load_sam(path: str | Path, device: str | torch.device = "cpu") -> Sam:
    """Load the SAM of the checkpoint at `path`, in float32 and evaluation mode, on `device`.

    Raises SamWeightsError if the file is not a SAM checkpoint, and OSError if it cannot be read. Only tensors are
    unpickled, so a file cannot run code.
    """
    state = _read_state(path, "cpu")
    try:
        return sam_from_state_dict(state).to(device)
    except SamWeightsError as error:
        raise SamWeightsError(f"{path}: {error}") from error


def inspect_checkpoint(path: str | Path) -> tuple[Architecture, int]:
    """Return a checkpoint's architecture and mask decoder depth, only from its names and shapes.

    Raises the same errors as `load_sam`.
    """
    try:
        return detect_architecture(_read_state(path, "meta"))
    except SamWeightsError as error:
        raise SamWeightsError(f"{path}: {error}") from error


def _read_state(path: str | Path, device: str) -> Any:
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except OSError:
        raise
    except Exception as error:
        raise SamWeightsError(
            f"{path} is not a PyTorch checkpoint of plain tensors ({type(error).__name__}): "
            "expected a file such as sam_vit_b_01ec64.pth or mobile_sam.pt"
        ) from error


def sam_from_state_dict(state: Mapping[str, Tensor]) -> Sam:
    """Return the SAM that a state dict describes, in float32 and evaluation mode, on the tensors' device.

    Float32 tensors are shared, not copied. Raises SamWeightsError if names or shapes are not those of a SAM.
    """
    architecture, decoder_depth = detect_architecture(state)
    with torch.device("meta"):
        sam = build_sam(architecture, decoder_depth)
    problems = _differences(sam.state_dict(), state)
    if problems:
        raise SamWeightsError(
            f"the weights look like {architecture} with {decoder_depth} decoder layers, but {problems}"
        )
    sam.load_state_dict(state, strict=True, assign=True)
    return sam.float().eval()


def detect_architecture(state: Any) -> tuple[Architecture, int]:
    """Return the architecture and the mask decoder's depth of a state dict.

    The encoder is identified by its position embedding's width, or by TinyViT's stages, and the depth by the decoder's
    layers. Raises SamWeightsError if either is missing, or if `state` is not a state dict.
    """
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise SamWeightsError(f"expected a dict of tensors by name, found a {type(state).__name__}")
    foreign = sorted(name for name, value in state.items() if not isinstance(value, Tensor))
    if foreign:
        raise SamWeightsError(
            f"expected a dict of tensors by name, but {_some(foreign)} "
            "is not a tensor. If this is a training checkpoint, save only its model's state dict."
        )
    layers = {match[1] for match in map(_DECODER_LAYER.match, state) if match}
    if not layers:
        raise SamWeightsError(f"no SAM mask decoder among the weights; found {_some(sorted(state)) or 'none'}")
    return _encoder_architecture(state), len(layers)


def _encoder_architecture(state: Mapping[str, Tensor]) -> Architecture:
    positions = state.get("image_encoder.pos_embed")
    if positions is not None:
        widths = {shape.width: name for name, shape in VIT_SHAPES.items()}
        width = positions.shape[-1] if positions.ndim else 0
        if width not in widths:
            known = ", ".join(f"{known} ({name})" for known, name in widths.items())
            raise SamWeightsError(f"the image encoder is {width} channels wide: expected {known}")
        return cast(Architecture, widths[width])
    if any(name.startswith("image_encoder.layers.") for name in state):
        return "mobile_sam"
    raise SamWeightsError("no SAM image encoder among the weights: neither a ViT's nor MobileSAM's TinyViT")


def _differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Describe the differences that keep `found` from loading strictly; return an empty string if there are none."""
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected]
    reshaped = [
        f"{name} is {tuple(found[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    kinds = (("missing", missing), ("not SAM's", unknown), ("differently shaped", reshaped))
    return "; ".join(f"{len(names)} are {kind}: {_some(names)}" for kind, names in kinds if names)


def _some(names: Sequence[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
