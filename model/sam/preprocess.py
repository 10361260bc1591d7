"""Inputs of SAM: preprocessing of images for the encoder, and checked prompts.

Preprocessing for the image encoder: resizing (for SAM as Pillow, on any device), normalization, and padding.

Pillow resizes 8-bit images with a bilinear filter in two passes: one along rows, and one along columns. Each resized
pixel is a weighted sum of the pixels under a triangle, whose width depends on the scale. The weights are fixed-point
numbers with 22 fractional bits. Each pass rounds its results to 8 bits, so the order of the passes matters. Within a
pass, all arithmetic is on integers, so the order of the sums doesn't matter. Torch can therefore compute the same bits
on every device, and a GPU doesn't have to wait for the host.
"""

import functools
import math
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from segmint.infra.arrays import Ints, Pixels, Size
from segmint.model.device import upload
from segmint.model.sam.geometry import SAM1

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


def resized_size(height: int, width: int, long_side: int) -> Size:
    """Return (height, width) in pixels after scaling the longer side to `long_side`. Each side has at least 1 pixel."""
    scale = long_side / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize(image: Pixels, long_side: int) -> Pixels:
    """Resize an image (H, W, 3) uint8 RGB to its `resized_size`, for models that pad their input.

    SAM's weights were trained on images that Pillow's antialiased bilinear filter resized in 8 bits. Torch's filter
    produces different pixels.
    """
    height, width = resized_size(image.shape[0], image.shape[1], long_side)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.array(resized)


def stretch(pixels: Tensor, side: int) -> Tensor:
    """Resize (H, W, 3) uint8 RGB to (side, side, 3) float32 from 0 to 255, on the pixels' device.

    Like the reference code of SAM 2, this uses torch's antialiased bilinear filter and doesn't round to 8 bits.
    """
    planes = pixels.permute(2, 0, 1)[None].float()
    resized = F.interpolate(planes, (side, side), mode="bilinear", align_corners=False, antialias=True)
    return resized[0].permute(1, 2, 0)


def normalize_into(place: Tensor, pixels: Tensor) -> None:
    """Normalize RGB pixels (h, w, 3) from 0 to 255, and write them to the top left corner of `place`.

    `place` (3, side, side) contains zeros, and its dtype may differ. The zeros that remain on the right and at the
    bottom represent the mean color.
    """
    mean, std = mean_and_std(pixels.device)
    inside = place[:, : pixels.shape[0], : pixels.shape[1]].permute(1, 2, 0)
    torch.div(pixels - mean, std, out=inside)


def normalized(pixels: Tensor) -> Tensor:
    """Normalize RGB pixels (h, w, 3) from 0 to 255 to (3, h, w) float32, without padding."""
    mean, std = mean_and_std(pixels.device)
    return ((pixels - mean) / std).permute(2, 0, 1)


@functools.lru_cache(maxsize=64)
def mean_and_std(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation. They are cached, because a GPU would have to wait for each copy."""
    with torch.inference_mode(False):
        return torch.tensor(PIXEL_MEAN, device=device), torch.tensor(PIXEL_STD, device=device)


_BITS = 22
"""Number of fractional bits in a weight. In 32 bits, this leaves 8 bits for a pixel and 2 bits of headroom."""

MOST_PRODUCTS = 1 << 26
"""Maximum number of products to keep in memory at once, which take 256 MB."""


def resize_on_device(pixels: Tensor, size: Size) -> Tensor:
    """Resize (H, W, 3) uint8 to `size` (h, w) on the pixels' device, with the same bits as Pillow's bilinear filter."""
    resized: Tensor = _resize_operator(pixels, *size, _columns_first((pixels.shape[0], pixels.shape[1]), size))
    return resized


@torch.library.custom_op("segmint::resize", mutates_args=())
def _resize_operator(pixels: Tensor, height: int, width: int, columns_first: bool) -> Tensor:
    """Resize to (height, width). As an operator, it runs a kernel on CUDA, and its output is contiguous and new."""
    if (height, width) == tuple(pixels.shape[:2]):
        return pixels.clone(memory_format=torch.contiguous_format)
    return _resize(pixels, (height, width), columns_first=columns_first).contiguous()


@_resize_operator.register_fake
def _(pixels: Tensor, height: int, width: int, columns_first: bool) -> Tensor:
    return pixels.new_empty(height, width, 3)


def _resize_with_kernel(pixels: Tensor, height: int, width: int, columns_first: bool) -> Tensor:
    """Resize like `_resize_operator` with a Triton kernel, which computes both passes at once, with equal bits."""
    from segmint.model.kernels import encoder_triton as resize_triton

    rows = weights_on_device(pixels.shape[0], height, pixels.device)
    columns = weights_on_device(pixels.shape[1], width, pixels.device)
    return resize_triton.resize(pixels, rows, columns, columns_first)


if find_spec("triton") is not None:
    _resize_operator.register_kernel("cuda")(_resize_with_kernel)


def resize_by_passes(pixels: Tensor, size: Size) -> Tensor:
    """Compute `resize_on_device` with torch's operations on any device, one pass after the other."""
    return _resize(pixels, size, columns_first=_columns_first((pixels.shape[0], pixels.shape[1]), size))


def _columns_first(size: Size, target: Size) -> bool:
    """Return whether the installed Pillow resizes along columns first. Both sizes are (height, width).

    Pillow 13 does so if this removes more than twice as many rows as the other pass removes columns. Versions 12.2 and
    12.3 do so if the image shrinks in height and is over 100 times as high as wide. Older versions never do. Pillow
    doesn't document this; we tested thousands of sizes to find the rule.
    """
    fewer_rows, fewer_columns = size[0] - target[0], size[1] - target[1]
    if fewer_rows <= 0:
        return False
    if pillow_takes_columns_first((64, 8), (21, 5)):
        return fewer_rows > 2 * fewer_columns
    return size[0] > 100 * size[1] and pillow_takes_columns_first((505, 5), (151, 3))


@functools.cache
def pillow_takes_columns_first(size: Size, target: Size) -> bool:
    """Return whether the installed Pillow begins with columns for these sizes, (height, width).

    The test resizes an image of random pixels, and compares the result with rows first.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize(target[::-1], Image.Resampling.BILINEAR))
    return not np.array_equal(_resize(torch.from_numpy(pixels), target, columns_first=False).numpy(), expected)


def _resize(pixels: Tensor, size: Size, *, columns_first: bool) -> Tensor:
    height, width = size
    if columns_first:
        return _resize_rows(_resize_rows(pixels.transpose(0, 1), height).transpose(0, 1), width)
    return _resize_rows(_resize_rows(pixels, width).transpose(0, 1), height).transpose(0, 1)


def _resize_rows(pixels: Tensor, length: int) -> Tensor:
    """Resize (H, W, 3) to (H, length, 3), a group of rows at a time."""
    if pixels.shape[1] == length:
        return pixels
    places, weights = weights_on_device(pixels.shape[1], length, pixels.device)
    taps = places.shape[1]
    rows = max(1, MOST_PRODUCTS // (length * taps * 3))
    parts = []
    for part in torch.split(pixels, rows):
        products = part[:, places].to(torch.int32) * weights[:, :, None]
        sums = products.sum(dim=2, dtype=torch.int32) + (1 << (_BITS - 1))
        parts.append((sums >> _BITS).clamp(0, 255).to(torch.uint8))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


@functools.lru_cache(maxsize=256)
def weights_on_device(pixels: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return positions and weights as tensors. They are cached, because crops have only a few distinct lengths."""
    with torch.inference_mode(False):
        places, weights = triangle_weights(pixels, length)
        return upload(torch.from_numpy(places), device), upload(torch.from_numpy(weights), device)


def triangle_weights(pixels: int, length: int) -> tuple[Ints, NDArray[np.int32]]:
    """Return the source positions and weights for resizing `pixels` pixels to `length` pixels, both (length, taps).

    A weight of 2^22 represents 1. Positions beyond the ends are replaced with the last pixel and have weight 0.
    """
    scale = pixels / length
    reach = max(scale, 1.0)
    taps = math.ceil(reach) * 2 + 1
    centers = (np.arange(length) + 0.5) * scale
    first = np.maximum((centers - reach + 0.5).astype(np.int64), 0)
    stop = np.minimum((centers + reach + 0.5).astype(np.int64), pixels)
    places = first[:, None] + np.arange(taps)
    # Use exactly Pillow's float64 operations, and sum the weights in Pillow's order.
    distances = np.abs((places - centers[:, None] + 0.5) * (1.0 / reach))
    weights = np.where((places < stop[:, None]) & (distances < 1.0), 1.0 - distances, 0.0)
    total = np.zeros(length)
    for tap in range(taps):
        total += weights[:, tap]
    weights /= total[:, None]
    whole = np.trunc(0.5 + weights * (1 << _BITS)).astype(np.int32)
    return np.minimum(places, pixels - 1), whole


Array = NDArray[Any] | Tensor

_BINARY_LOGIT = 10.0
"""Logit of a binary mask's foreground. The background has its negative."""

_LARGEST_LOGIT = 100.0
"""Masks without negative numbers whose maximum is this large, or 1 or less, contain levels or shares, not logits."""


@dataclass(frozen=True)
class Prompts:
    """Prompts of a batch of B, with matching shapes. Omitted parts are None.

    `points` (B, N, 2) and `boxes` (B, 4) are float64, so scaling doesn't lose precision. `labels` (B, N) are 1, 0, or
    -1. `masks` (B, 1, 256, 256) are logits.
    """

    points: Tensor | None
    labels: Tensor | None
    boxes: Tensor | None
    masks: Tensor | None

    def to(self, device: torch.device, mask_dtype: torch.dtype) -> "Prompts":
        """Move the prompts to a device, and cast masks to the model's dtype."""
        moved: dict[str, Tensor] = {}
        for name, part in vars(self).items():
            if part is not None:
                dtype = mask_dtype if name == "masks" else part.dtype
                moved[name] = part.to(device, dtype)
        return replace(self, **moved)

    def scaled(self, x: float, y: float) -> "Prompts":
        """Multiply the x coordinates by `x` and the y coordinates by `y`."""
        return replace(
            self,
            points=None if self.points is None else self.points * self.points.new_tensor([x, y]),
            boxes=None if self.boxes is None else self.boxes * self.boxes.new_tensor([x, y, x, y]),
        )


def check_prompts(
    points: Array | None,
    labels: Array | None,
    boxes: Array | None,
    masks: Array | None,
    low_res_size: int = SAM1.low_res_size,
) -> Prompts:
    """Check prompts, which may be arrays, lists, or tensors on any device, and convert them.

    For a single prompt, you can omit the batch dimension and pass points (N, 2) with labels (N,), a box (4,), or a mask
    (1, 256, 256) or (256, 256). `low_res_size` replaces 256 in these shapes. Masks are logits. If they're bools, or
    integers that are 0 and 1 or 0 and 255, they become the logits -10 and 10.

    Raises ValueError if there is no prompt, if points come without labels or labels without points, if shapes, types,
    or labels are invalid, if batch sizes differ, or if a number isn't finite. The message contains the argument, what
    was found, and what was expected.
    """
    if all(part is None for part in (points, labels, boxes, masks)):
        raise ValueError("no prompt: expected points with labels, boxes, masks, or a combination")
    if (points is None) != (labels is None):
        given, absent = ("points", "labels") if labels is None else ("labels", "points")
        raise ValueError(f"{given} without {absent}: expected points (B, N, 2) together with labels (B, N)")
    one = int(np.ndim(points) == 2 and np.ndim(labels) == 1)  # type: ignore[arg-type]
    side = low_res_size
    prompts = Prompts(
        _checked("points", points, "(B, N, 2), or (N, 2) with labels (N,)", (None, None, 2), torch.float64, one),
        _checked("labels", labels, "(B, N), or (N,) with points (N, 2)", (None, None), torch.float64, one),
        _checked("boxes", boxes, "(B, 4) or (4,)", (None, 4), torch.float64, 1),
        _checked("masks", masks, f"(B, 1, {side}, {side})", (None, 1, side, side), torch.float32, 2),
    )
    _check_labels(prompts.points, prompts.labels)
    _check_batch(prompts)
    return prompts


def _checked(
    name: str, value: Array | None, layout: str, shape: tuple[int | None, ...], dtype: torch.dtype, optional: int
) -> Tensor | None:
    """Convert the value to a tensor of `shape`. The first `optional` dimensions may be omitted."""
    if value is None:
        return None
    tensor = value.detach() if isinstance(value, Tensor) else _tensor(name, np.array(value), layout)
    given = tuple(tensor.shape)
    missing = len(shape) - len(given)
    if 0 < missing <= optional:
        tensor = tensor[(None,) * missing]
    found = tuple(tensor.shape)
    fits = len(found) == len(shape) and all(want in (None, got) for want, got in zip(shape, found, strict=True))
    if not fits:
        raise ValueError(f"{name} have the shape {given}: expected {layout}")
    if tensor.is_complex() or (tensor.dtype == torch.bool and name not in ("labels", "masks")):
        raise ValueError(f"{name} have the type {_type_of(tensor)}: expected numbers, {layout}")
    if name == "masks":
        tensor = _logits(tensor)
    tensor = tensor.to(dtype)
    if not tensor.isfinite().all():
        raise ValueError(f"{name} contain NaN or infinity: expected finite numbers")
    return tensor


def _tensor(name: str, value: NDArray[Any], layout: str) -> Tensor:
    if value.dtype.kind not in "biuf":
        raise ValueError(f"{name} have the type {value.dtype.name}: expected numbers, {layout}")
    if value.dtype.itemsize > 8:  # torch has no long doubles
        value = value.astype(np.float64)
    return torch.from_numpy(value.astype(value.dtype.newbyteorder("="), copy=False))


def _logits(masks: Tensor) -> Tensor:
    """Return logits unchanged, and convert binary masks to logits. Raises ValueError if the masks are neither."""
    real = masks.is_floating_point()
    if real and (masks.numel() == 0 or masks.amin() < 0 or not masks.any()):
        return masks
    values = masks if real else masks.to(torch.int64)  # torch hardly computes with unsigned integers
    for foreground in (1, 255):
        if ((values == 0) | (values == foreground)).all():
            if real:
                raise ValueError(
                    f"masks contain only 0 and {foreground} as {_type_of(masks)}: expected logits, or a binary mask of "
                    "type bool"
                )
            return torch.where(values > 0, _BINARY_LOGIT, -_BINARY_LOGIT)
    if not real or values.amax() <= 1 or _LARGEST_LOGIT <= values.amax() < torch.inf:
        raise ValueError(
            f"masks have the type {_type_of(masks)} and the maximum {values.amax():.4g}: expected logits as "
            "floating-point numbers, or a binary mask of bools, of 0 and 1, or of 0 and 255"
        )
    return masks


def _type_of(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _check_labels(points: Tensor | None, labels: Tensor | None) -> None:
    if points is None or labels is None:
        return
    if labels.shape != points.shape[:2]:
        raise ValueError(
            f"labels have the shape {tuple(labels.shape)}: expected {tuple(points.shape[:2])}, one per point"
        )
    known = (labels == 1) | (labels == 0) | (labels == -1)
    if not known.all():
        wrong = labels[~known][0].item()
        raise ValueError(f"labels contain {wrong:g}: expected 1 (foreground), 0 (background) or -1 (padding)")


def _check_batch(prompts: Prompts) -> None:
    parts = {"points": prompts.points, "boxes": prompts.boxes, "masks": prompts.masks}
    sizes = {name: part.shape[0] for name, part in parts.items() if part is not None}
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{size} in {name}" for name, size in sizes.items())
        raise ValueError(f"the prompts' batch sizes differ: {found}. Use the same batch size B for all.")
