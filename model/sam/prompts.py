"""Validation, conversion, and scaling of a caller's prompts."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from segmint.model.sam.geometry import SAM1

Array = npt.NDArray[Any] | Tensor

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


def _tensor(name: str, value: npt.NDArray[Any], layout: str) -> Tensor:
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
