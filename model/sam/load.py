"""Construction of a SAM with random weights, or from a checkpoint whose architecture is detected."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from segmint.model.sam.geometry import SAM1, SAM2, Geometry
from segmint.model.sam.image_encoder_hiera import HIERA_SHAPES, ImageEncoderHiera
from segmint.model.sam.image_encoder_tinyvit import ImageEncoderTinyViT
from segmint.model.sam.image_encoder_vit import VIT_B, VIT_H, VIT_L, ImageEncoderViT, VitShape
from segmint.model.sam.mask_decoder import SAM1_TRAITS, SAM2_TRAITS, MaskDecoder
from segmint.model.sam.prompt_encoder import PromptEncoder
from segmint.model.sam.sam import Sam

Architecture = Literal[
    "vit_b", "vit_l", "vit_h", "mobile_sam", "hiera_tiny", "hiera_small", "hiera_base_plus", "hiera_large"
]

VIT_SHAPES: Mapping[str, VitShape] = {"vit_b": VIT_B, "vit_l": VIT_L, "vit_h": VIT_H}

SAM2_NAMES = (
    (r"sam_prompt_encoder\.", "prompt_encoder."),
    (r"sam_mask_decoder\.conv_s1\.", "image_encoder.high_res_projections.0."),
    (r"sam_mask_decoder\.conv_s0\.", "image_encoder.high_res_projections.1."),
    (r"sam_mask_decoder\.", "mask_decoder."),
    (r"no_mem_embed$", "image_encoder.no_memory_embed"),
    (r"(image_encoder\.neck\.convs\.\d+)\.conv\.", r"\1."),
    (r"(.*\.mlp)\.layers\.0\.", r"\1.lin1."),
    (r"(.*\.mlp)\.layers\.1\.", r"\1.lin2."),
)
"""Patterns for the start of names in SAM 2's checkpoints, with the replacements that turn them into our names. They are
applied in this order."""

SAM2_MEMORY = (
    *("maskmem_tpos_enc", "no_mem_pos_enc", "no_obj_ptr", "no_obj_embed_spatial", "mask_downsample."),
    *("memory_attention.", "memory_encoder.", "obj_ptr_proj.", "obj_ptr_tpos_proj."),
)
"""Parts of SAM 2's checkpoints that we don't load because they are only for videos. Names with a dot at the end are
modules; the others are tensors."""

_DECODER_LAYER = re.compile(r"mask_decoder\.transformer\.layers\.(\d+)\.")
_HIERA_BLOCK = re.compile(r"image_encoder\.trunk\.blocks\.(\d+)\.")


class SamWeightsError(ValueError):
    """Raised when a file or state dict doesn't contain the weights of a SAM."""


def build_sam(architecture: Architecture, decoder_depth: int = 2) -> Sam:
    """Create a SAM with random weights, in float32 and evaluation mode.

    Raises ValueError if the architecture is unknown or the decoder has no layers.
    """
    if architecture not in get_args(Architecture):
        names = ", ".join(get_args(Architecture))
        raise ValueError(f"unknown SAM architecture {architecture!r}: expected one of {names}")
    if decoder_depth < 1:
        raise ValueError(f"the mask decoder has {decoder_depth} layers: expected at least 1 (SAM has 2 or 3)")
    if architecture in HIERA_SHAPES:
        prompts, decoder = PromptEncoder(SAM2, pads_boxes=True), MaskDecoder(decoder_depth, SAM2_TRAITS)
        return Sam(ImageEncoderHiera(HIERA_SHAPES[architecture]), prompts, decoder).eval()
    is_tiny = architecture == "mobile_sam"
    encoder = ImageEncoderTinyViT() if is_tiny else ImageEncoderViT(VIT_SHAPES[architecture])
    return Sam(encoder, PromptEncoder(SAM1), MaskDecoder(decoder_depth, SAM1_TRAITS)).eval()


def geometry_of(architecture: Architecture) -> Geometry:
    """Return an architecture's geometry."""
    return SAM2 if architecture in HIERA_SHAPES else SAM1


def load_sam(path: str | Path, device: str | torch.device = "cpu") -> Sam:
    """Load a SAM from the checkpoint at `path` to `device`, in float32 and evaluation mode.

    Raises SamWeightsError if the file isn't a SAM checkpoint, and OSError if it can't be read. Only tensors are
    unpickled, so a file can't run code.
    """
    state = read_state(path, "cpu")
    try:
        sam = sam_from_state_dict(state)
        if odd := [name for name, tensor in sam.state_dict().items() if not _is_finite(tensor)]:
            raise SamWeightsError(f"{len(odd)} of the weights aren't finite numbers: {_some(odd)}")
        return sam.to(device)
    except SamWeightsError as error:
        raise SamWeightsError(f"{path}: {error}") from error


def inspect_checkpoint(path: str | Path) -> tuple[Architecture, int]:
    """Detect a checkpoint's architecture and mask decoder depth from the names and shapes of its weights.

    Raises the same errors as `load_sam`.
    """
    try:
        return detect_architecture(read_state(path, "meta"))
    except SamWeightsError as error:
        raise SamWeightsError(f"{path}: {error}") from error


def read_state(path: str | Path, device: str) -> Any:
    """Read a PyTorch checkpoint, but unpickle only tensors. Raises the same errors as `load_sam`."""
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
    """Create the SAM that a state dict describes, in float32 and evaluation mode, on the tensors' device.

    Float32 tensors are shared, not copied. `state` can also be the content of a SAM 2 checkpoint; see `with_our_names`.
    Raises SamWeightsError if names or shapes don't match a SAM.
    """
    state = with_our_names(state)
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


def with_our_names(state: Any) -> Any:
    """Convert the content of a SAM 2 checkpoint to a state dict with our names and without `SAM2_MEMORY`.

    Such a checkpoint contains the state dict as its only item, `model`. Anything else is returned unchanged. Raises
    SamWeightsError if two tensors would have the same name.
    """
    inner = state["model"] if isinstance(state, Mapping) and set(state) == {"model"} else state
    if not isinstance(inner, Mapping) or not any(str(name).startswith("sam_mask_decoder.") for name in inner):
        return state
    found: dict[str, tuple[Any, Any]] = {}
    for name, tensor in inner.items():
        if not is_memory(str(name)) and (other := found.setdefault(our_name(str(name)), (name, tensor))[0]) != name:
            raise SamWeightsError(f"{other} and {name} are names of the same weights: expected only one of them")
    return {name: tensor for name, (_, tensor) in found.items()}


def our_name(name: str) -> str:
    """Convert a tensor's name in SAM 2's checkpoints to our name."""
    for pattern, ours in SAM2_NAMES:
        name = re.sub(rf"\A{pattern}", ours, name)
    return name


def is_memory(name: str) -> bool:
    """Return whether a tensor in SAM 2's checkpoints belongs to `SAM2_MEMORY`, so it isn't loaded."""
    return any(name.startswith(part) if part.endswith(".") else name == part for part in SAM2_MEMORY)


def detect_architecture(state: Any) -> tuple[Architecture, int]:
    """Detect the architecture and the depth of the mask decoder from a state dict.

    The width of the position embedding identifies a ViT, the number of blocks identifies a Hiera, and the names
    identify a TinyViT. The depth is the number of decoder layers. `state` can also be the content of a SAM 2
    checkpoint. Raises SamWeightsError if a part is missing, or if `state` isn't a state dict.
    """
    state = with_our_names(state)
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
    return encoder_architecture(state), len(layers)


def encoder_architecture(state: Mapping[str, Tensor]) -> Architecture:
    """Detect the architecture of the image encoder in a state dict. Raises SamWeightsError if there is none."""
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
    blocks = {match[1] for match in map(_HIERA_BLOCK.match, state) if match}
    if blocks:
        depths = {sum(shape.depths): name for name, shape in HIERA_SHAPES.items()}
        if len(blocks) not in depths:
            known = ", ".join(f"{depth} ({name})" for depth, name in depths.items())
            raise SamWeightsError(f"the Hiera has {len(blocks)} blocks: expected {known}")
        return cast(Architecture, depths[len(blocks)])
    raise SamWeightsError(
        "no SAM image encoder among the weights: neither a ViT's, nor MobileSAM's TinyViT, nor SAM 2's Hiera"
    )


def _differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Describe why `found` can't be loaded strictly. If there are no differences, return an empty string."""
    missing, reshaped, retyped = [], [], []
    for name, tensor in expected.items():
        if name not in found:
            missing.append(name)
            continue
        ours = found[name]
        if ours.shape != tensor.shape:
            reshaped.append(f"{name} is {tuple(ours.shape)}, not {tuple(tensor.shape)}")
        if tensor.is_floating_point() and not ours.is_floating_point():
            retyped.append(f"{name} is {ours.dtype}")
    kinds = (
        ("missing", missing),
        ("not SAM's", [name for name in found if name not in expected]),
        ("differently shaped", reshaped),
        ("of another type", retyped),
    )
    return "; ".join(f"{len(names)} are {kind}: {_some(names)}" for kind, names in kinds if names)


def _is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor contains a number at each place. With NaN, a model would find no masks."""
    return tensor.layout is torch.strided and not tensor.is_meta and bool(tensor.isfinite().all())


def _some(names: Sequence[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
