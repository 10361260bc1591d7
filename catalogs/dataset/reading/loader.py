"""A `DataLoader` that counts the batches its loop received and can resume there, and `collate`, which makes batches."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from segmint.catalogs.dataset.reader import MaskAnnotation, Sample
from segmint.catalogs.dataset.reading.batches import Batches
from segmint.infra.errors import UsageError


@dataclass(frozen=True)
class Batch:
    """B images with their masks, in lists of tensors, because images differ in size and in their number of masks.

    Attributes:
        ids: (B,) int64, the images' numbers in the dataset.
        images: B tensors (3, height, width), uint8 RGB.
        masks: B tensors (masks, height, width), bool, in the order of the image's JSON.
        annotations: for each image, the dataset's annotations of the same masks: scores, boxes, points.
        rows: for each image, its row of `images/*.parquet`.
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
        """Return the batch in pinned memory, as `DataLoader(pin_memory=True)` requires."""
        return self._moved(Tensor.pin_memory)

    def _moved(self, move: Any) -> Self:
        return replace(self, ids=move(self.ids), images=[*map(move, self.images)], masks=[*map(move, self.masks)])


def collate(samples: Sequence[Sample], most_masks: int | None = None) -> Batch:
    """Decode samples into a batch.

    Pass this function to a `DataLoader` as `collate_fn` to decode in the loader's workers. A mask takes one byte per
    pixel, so 100 masks of 1500 x 2250 pixels take 340 MB. To limit the number of masks per image, pass
    `functools.partial(collate, most_masks=32)`. If an image has more masks, `collate` keeps masks at even intervals.

    Raises `ValueError` if there are no samples or `most_masks` is negative, and the errors of `Sample.image`.
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
    """Decode a mask through a copy of its annotation.

    The batch keeps the original, which would otherwise cache the pixels.
    """
    return replace(mask).mask


class BatchLoader(DataLoader[Any]):
    """`DataLoader` that yields one epoch of `Batches` per iteration and can resume where the training loop stopped.

    After a complete epoch, the next iteration starts a new epoch. After a `break`, the next iteration continues with
    the batch that follows the last one that the loop received. Batches that the workers had only prefetched don't count
    as received. `len` returns the number of batches in an epoch.
    """

    def __init__(self, batches: Batches, **options: Any) -> None:
        """Pass `options`, such as `num_workers`, `collate_fn`, and `pin_memory`, to `DataLoader`.

        `batch_size` isn't allowed. Raises `UsageError` for `in_order=False`.
        """
        if not options.get("in_order", True):
            raise UsageError("in_order=False: expected True, because batches out of order cannot be counted")
        own = batches.with_own_start()  # so that loaders of the same batches don't share a position
        super().__init__(own, batch_size=None, **options)
        self._batches = own
        self._epoch, self._samples = 0, 0
        self._iterations = 0

    @property
    def epoch(self) -> int:
        """Epoch of the next batch, from 0."""
        return self._epoch

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self._iterations += 1
        if not self._batches.left(self._samples):  # after a change of the batch size, a state may leave too few images
            self._epoch, self._samples = self._epoch + 1, 0
        self._batches.begin(self._epoch, self._samples)
        return self._counted(super().__iter__(), self._iterations)

    def state_dict(self) -> dict[str, Any]:
        """Return the training loop's position: the epoch, how many of its images the loop received, and the order.

        After the same number of batches, all ranks return the same state. To resume, you can use a different number of
        ranks or workers.
        """
        return self._batches.state_of(self._epoch, self._samples)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a state in the next iteration.

        Raises `UsageError` if the state belongs to another dataset or order.
        """
        epoch, samples = self._batches.checked_position(state)
        self._iterations += 1
        self._epoch, self._samples = epoch, samples

    def _counted(self, batches: Iterator[Any], iteration: int) -> Iterator[Any]:
        epoch, samples = self._epoch, self._samples
        for batch in batches:
            samples += self._batches.global_batch
            if not self._batches.left(samples):
                epoch, samples = epoch + 1, 0
            if iteration == self._iterations:  # otherwise, another iteration was started, or a state was loaded
                self._epoch, self._samples = epoch, samples
            yield batch
