"""The whole SAM: construction from a checkpoint or with random weights, and encoding in batches."""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from segmint.model.device import upload
from segmint.model.sam.geometry import SAM1, SAM2, Geometry
from segmint.model.sam.image_encoder_hiera import HIERA_SHAPES, ImageEncoderHiera
from segmint.model.sam.image_encoder_tinyvit import ImageEncoderTinyViT
from segmint.model.sam.image_encoder_vit import VIT_B, VIT_H, VIT_L, ImageEncoderViT, VitShape
from segmint.model.sam.mask_decoder import SAM1_TRAITS, SAM2_TRAITS, MaskDecoder, PromptEncoder
from segmint.model.sam.preprocess import normalize_into


class Sam(nn.Module):
    """SAM's three parts, with the same names as in its checkpoints.

    `image_encoder` maps normalized images (B, 3, 1024, 1024) to embeddings (B, 256, 64, 64). If the model has
    high-resolution features, the result is a tuple in which they follow the embeddings. The image encoder and the
    prompt encoder must have the same geometry.
    """

    def __init__(self, image_encoder: nn.Module, prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder

    @property
    def geometry(self) -> Geometry:
        """Sizes of the input, the image embedding, and low-resolution masks."""
        return self.prompt_encoder.geometry

    @property
    def high_res_channels(self) -> tuple[int, ...]:
        """Number of channels of the high-resolution features: (64, 32) in SAM 2, and empty if the model has none."""
        channels: tuple[int, ...] = getattr(self.image_encoder, "high_res_channels", ())
        return channels

    @property
    def image_size(self) -> int:
        """Side of the image encoder's square input in pixels."""
        return self.geometry.image_size

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.mask_decoder.iou_token.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point dtype of the decoder's weights. The image encoder may have a different dtype."""
        return self.mask_decoder.iou_token.weight.dtype


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
    state = read_state(path, "meta")
    try:
        return detect_architecture(state)
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

    Such a checkpoint contains the state dict, usually as its only item, `model`. Anything else is returned unchanged.
    Raises SamWeightsError if two tensors would have the same name.
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


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


CompileMode = Literal["default", "max-autotune-no-cudagraphs", "reduce-overhead"]
"""Modes of `torch.compile`. `reduce-overhead` replays CUDA graphs."""

MAX_BATCH = 64
"""Maximum batch size. Above about 100, the output of a layer exceeds the 2^31 elements that kernels can index."""

CUDA_BATCH = 7
"""Default batch size on a GPU. It's a third of the 21 crops per image in SA-1B's settings."""


class CompilationError(RuntimeError):
    """Raised when the image encoder must be compiled but `torch.compile` fails."""


class BatchEncoder:
    """Runner of a SAM's image encoder. Create it after the model has its device, dtype, and weights.

    For MobileSAM in float32, the runner keeps a copy of the encoder with folded batch norms
    (`ImageEncoderTinyViT.folded`). In bfloat16, folding would round the weights twice, so the runner uses the model's
    encoder, as it does for all other models. Even in bfloat16, torch's kernels compute the softmax and the statistics
    of layer norms in float32.

    If compilation fails, the runner issues a RuntimeWarning and runs the encoder eagerly from then on. With
    `must_compile`, it raises `CompilationError` instead.
    """

    def __init__(self, sam: Sam, compile_mode: CompileMode | None = None, must_compile: bool = False) -> None:
        encoder = sam.image_encoder
        self.sam = sam
        self.network: nn.Module = encoder
        self._dtype = next(encoder.parameters()).dtype
        if isinstance(encoder, ImageEncoderTinyViT) and self._dtype == torch.float32:
            self.network = encoder.folded()
        self.compile_mode = compile_mode
        self._must_compile = must_compile
        self._compiled = None
        if compile_mode is not None:
            how = compile_arguments(compile_mode, sam.device)
            self._compiled = torch.compile(self.network, dynamic=False, **how)

    def __call__(self, images: Sequence[Tensor], batch_size: int | None = None) -> list[tuple[Tensor, ...]]:
        """Encode images, and return an embedding (1, 256, 64, 64) in the decoder's dtype for each of them, in order.

        If the model has high-resolution features, they follow the embedding. `images` are (h, w, 3) RGB, uint8 or float
        from 0 to 255, on any device. No side may exceed the encoder's input. Every batch contains exactly `batch_size`
        images, because the last one is padded with empty images. Shapes are therefore static, and an image's arithmetic
        depends only on `batch_size`, not on the number of images. Raises ValueError if `batch_size` is less than 1 or
        greater than `MAX_BATCH`.
        """
        size = default_batch_size(self.sam.device) if batch_size is None else batch_size
        if not 1 <= size <= MAX_BATCH:
            raise ValueError(f"batch_size is {size}: expected 1 to {MAX_BATCH} images")
        embeddings: list[tuple[Tensor, ...]] = []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            encoded = [maps.to(self.sam.dtype) for maps in self._encode(self._batch(part, size))]
            embeddings += [tuple(maps[index : index + 1] for maps in encoded) for index in range(len(part))]
        return embeddings

    def before_each_layer(self, call: Callable[[], None]) -> None:
        """Register a callback that runs before each layer, in the encoding thread. A compiled encoder ignores it."""
        for module in self.network.modules():
            if not any(module.children()):
                module.register_forward_pre_hook(lambda *_: call())

    def _batch(self, images: Sequence[Tensor], size: int) -> Tensor:
        """Assemble a batch (size, 3, side, side) on the model's device, in the encoder's dtype."""
        side = self.sam.image_size
        batch = torch.zeros(size, 3, side, side, dtype=self._dtype, device=self.sam.device)
        for place, image in zip(batch, images, strict=False):
            normalize_into(place, upload(image, self.sam.device))
        return batch

    def _encode(self, batch: Tensor) -> tuple[Tensor, ...]:
        encoded = self._run(batch)
        return encoded if isinstance(encoded, tuple) else (encoded,)

    def _run(self, batch: Tensor) -> Tensor | tuple[Tensor, ...]:
        encoded: Tensor | tuple[Tensor, ...]
        if self._compiled is None:
            encoded = self.network(batch)
            return encoded
        try:
            encoded = self._compiled(batch)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # from Dynamo, Inductor, or Triton; the model's own errors are raised again below
            failed = f"torch.compile of the image encoder failed ({type(error).__name__}: {_first_lines(error)})"
            if self._must_compile:
                raise CompilationError(failed) from error
            self._compiled = None
            encoded = self.network(batch)
            warnings.warn(
                f"{failed}; running it eagerly, which is slower and differs in the last bits",
                RuntimeWarning,
                stacklevel=2,
            )
            return encoded
        if self.compile_mode != "reduce-overhead":
            return encoded
        # Copy the output, because the next replay of a CUDA graph overwrites it.
        return tuple(maps.clone() for maps in encoded) if isinstance(encoded, tuple) else encoded.clone()


def compile_arguments(mode: CompileMode, device: torch.device) -> dict[str, Any]:
    """Return the arguments of `torch.compile` for a mode.

    On a GPU, the default mode doesn't choose kernels by timing them. The other modes do, so two processes can choose
    different kernels, which may round differently.
    """
    return {"options": {"deterministic": True}} if mode == "default" and device.type == "cuda" else {"mode": mode}


def default_batch_size(device: torch.device) -> int:
    """Return 1 for a CPU, because one image keeps all cores busy, or `CUDA_BATCH` for a GPU."""
    return CUDA_BATCH if device.type == "cuda" else 1


def _first_lines(error: Exception) -> str:
    """Return the text before the first blank line as one line. After it, Dynamo prints advice for its developers."""
    return " ".join(str(error).strip().partition("\n\n")[0].split()) or "no message"
