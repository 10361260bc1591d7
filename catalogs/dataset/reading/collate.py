"""A batch of a dataset's images for a training loop: `DataLoader(dataset, batch_size=4, collate_fn=collate)`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from segmint.catalogs.dataset.reader import MaskAnnotation, Sample


@dataclass(frozen=True)
class Batch:
    """B images with their masks, as tensors; sizes and numbers of masks differ, so these are lists.

    Attributes:
        ids: (B,) int64, the images' numbers in the dataset.
        images: B of (3, height, width) uint8 RGB.
        masks: B of (masks, height, width) bool, in the order of the image's JSON.
        annotations: what the dataset says of these masks: scores, boxes, points.
        rows: each image's row of `images/*.parquet`.
    """

    ids: Tensor
    images: list[Tensor]
    masks: list[Tensor]
    annotations: list[list[MaskAnnotation]]
    rows: list[Mapping[str, Any]]

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{image.shape[2]} x {image.shape[1]}" for image in self.images[:4])
        more = ", …" if len(self) > 4 else ""
        return f"Batch({len(self)} images: {sizes}{more}; {sum(map(len, self.masks))} masks)"

    def to(self, device: str | torch.device, non_blocking: bool = False) -> Self:
        """Return the batch with its tensors on a device."""
        return self._moved(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Return the batch in pinned memory, which `DataLoader(pin_memory=True)` asks for."""
        return self._moved(Tensor.pin_memory)

    def _moved(self, move: Any) -> Self:
        return replace(self, ids=move(self.ids), images=[*map(move, self.images)], masks=[*map(move, self.masks)])


def collate(samples: Sequence[Sample], most_masks: int | None = None) -> Batch:
    """Decode samples into a batch; in a `DataLoader` with workers that happens there.

    A mask takes a byte a pixel: 100 masks of 1500 x 2250 pixels are 340 MB. `most_masks` keeps that many of an image
    that has more, evenly spread over its list; set it by `functools.partial(collate, most_masks=32)`. Raises what
    `Sample.image` raises, and ValueError without samples or for a negative `most_masks`.
    """
    if not samples:
        raise ValueError("no samples were given: expected one or more")
    if most_masks is not None and most_masks < 0:
        raise ValueError(f"most_masks is {most_masks}: expected 0 or more")
    kept = [_spread(sample.masks, most_masks) for sample in samples]
    return Batch(
        ids=torch.tensor([sample.id for sample in samples]),
        images=[torch.from_numpy(np.ascontiguousarray(sample.image.transpose(2, 0, 1))) for sample in samples],
        masks=[_stacked(masks, sample) for masks, sample in zip(kept, samples, strict=True)],
        annotations=kept,
        rows=[sample.row for sample in samples],
    )


def _spread(masks: Sequence[MaskAnnotation], most: int | None) -> list[MaskAnnotation]:
    if most is None or len(masks) <= most:
        return list(masks)
    return [masks[index * len(masks) // most] for index in range(most)]


def _stacked(masks: Sequence[MaskAnnotation], sample: Sample) -> Tensor:
    stacked = np.zeros((len(masks), *sample.image.shape[:2]), bool)
    for place, mask in zip(stacked, masks, strict=True):
        place[:] = _decoded(mask)
    return torch.from_numpy(stacked)


def _decoded(mask: MaskAnnotation) -> np.ndarray[Any, Any]:
    """The mask's pixels, without keeping them in the annotation, which the batch holds."""
    return replace(mask).mask
