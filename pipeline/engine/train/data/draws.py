"""Draws of images and masks for each step, which depend only on keys.

A step's draws depend only on the seed, the step, the images, and the settings. Any process can therefore compute a
step's draws without computing the earlier steps. A dataset's images are drawn in the order of a random permutation,
which changes with each pass through the dataset. A dataset that is configured twice is treated as two datasets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segmint.model.training.noise import random_bits, uniforms
from segmint.pipeline.engine.train.data.images import TrainingImages
from segmint.pipeline.engine.train.settings import BatchKeys, MaskChoice

_PREFERRED: tuple[MaskChoice, ...] = ("human", "all", "automatic")

_BLOCK = 4096
"""Number of draws per block. The entries of a block are drawn together."""

_ENTRY, _ORDER, _MASKS, _FIXED, _JITTER = 1, 2, 3, 4, 5  # what a random number is for


@dataclass(frozen=True)
class StepDraw:
    """Image that is drawn for a step, with the masks to train on.

    `slot` is the image's number in the step, from 0, and `image` its row in `TrainingImages`. `masks` contains
    annotation ids, and `numbers` the masks' numbers in the step. `jitter` is None if the whole image is used.
    Otherwise, it contains the image's scale and the position of the crop: its distances from the top and from the left,
    as shares of what is cropped away.
    """

    slot: int
    image: int
    masks: NDArray[np.int64]
    numbers: Sequence[int]
    jitter: tuple[float, float, float] | None = None


class DrawSequence:
    """Sequence of a run's draws. `trained`, (N,) bool, marks the images to draw from."""

    def __init__(
        self,
        images: TrainingImages,
        trained: NDArray[np.bool_],
        weights: Sequence[float],
        batch: BatchKeys,
        seed: int,
        jitter: tuple[float, float] | None = None,
    ) -> None:
        """Set up the draws.

        `weights` contains each dataset's weight, and `jitter` is the range of scales. Raises ValueError if there are no
        images to train on.
        """
        self._images = images
        self._batch = batch
        self._seed = seed
        self._scales = jitter
        entries = np.unique(images.entry[trained]).tolist()  # only the entries with images to train on
        self._rows = {entry: np.flatnonzero(trained & (images.entry == entry)) for entry in entries}
        if not self._rows:
            raise ValueError("no images to train on")
        shares = np.array([weights[entry] * len(rows) for entry, rows in self._rows.items()])
        self._borders = np.cumsum(shares) / shares.sum()
        self._lock = Lock()
        # For each block, the number of earlier draws by entry.
        self._counts: list[NDArray[np.int64]] = [np.zeros(len(self._rows), np.int64)]
        self._entries = lru_cache(maxsize=4)(self._draw_entries)
        self._permutation = lru_cache(maxsize=2 * len(self._rows))(self._permute)

    def step(self, step: int) -> list[StepDraw]:
        """Draw the images of a step, counted from 1, for all workers. Each image keeps at least one mask."""
        chosen = [self._image(place) for place in range((step - 1) * self._batch.images, step * self._batch.images)]
        wanted = [min(len(self._images.masks_of(image)), self._batch.masks_per_image) for image in chosen]
        draws = []
        for slot, (image, count) in enumerate(zip(chosen, capped(wanted, self._batch.masks), strict=True)):
            place = (step - 1) * self._batch.images + slot
            first = slot * self._batch.masks_per_image
            masks = self._masks(image, place, count)
            draws.append(StepDraw(slot, image, masks, range(first, first + count), self._jitter(place)))
        return draws

    def _image(self, place: int) -> int:
        """Return the image at index `place` of the run's whole sequence of draws."""
        block, offset = divmod(place, _BLOCK)
        chosen = self._entries(block)
        which = int(chosen[offset])
        before = int(self._before(block)[which] + (chosen[:offset] == which).sum())
        entry, rows = list(self._rows.items())[which]
        turn, index = divmod(before, len(rows))
        return int(rows[self._permutation(entry, turn)[index]])

    def _draw_entries(self, block: int) -> NDArray[np.int64]:
        """Draw a configuration entry for each draw of a block. The draw then takes an image of this entry's dataset."""
        places = torch.arange(block * _BLOCK, (block + 1) * _BLOCK)
        drawn = uniforms(random_bits(_key(self._seed, _ENTRY), places), 1)[:, 0].numpy()
        return np.minimum(np.searchsorted(self._borders, drawn, "right"), len(self._borders) - 1)

    def _before(self, block: int) -> NDArray[np.int64]:
        """Count the draws from each entry in all blocks before this one."""
        with self._lock:  # a prefetch thread calls this, too
            while len(self._counts) <= block:
                chosen = self._draw_entries(len(self._counts) - 1)
                self._counts.append(self._counts[-1] + np.bincount(chosen, minlength=len(self._rows)))
        return self._counts[block]

    def _permute(self, entry: int, turn: int) -> NDArray[np.int64]:
        bits = random_bits(_key(self._seed, _ORDER, entry, turn), torch.arange(len(self._rows[entry])))
        return np.argsort(bits.numpy(), kind="stable")

    def _jitter(self, place: int) -> tuple[float, float, float] | None:
        if self._scales is None:
            return None
        low, high = self._scales
        scale, top, left = uniforms(_key(self._seed, _JITTER, place), 3)[0].tolist()
        return low + (high - low) * scale, top, left

    def _masks(self, image: int, place: int, count: int) -> NDArray[np.int64]:
        return choose_masks(self._images.masks_of(image), count, _key(self._seed, _MASKS, place))


def fixed_draws(
    images: TrainingImages, chosen: NDArray[np.bool_], most: int, masks: int, choices: Sequence[MaskChoice]
) -> list[StepDraw]:
    """Draw up to `most` of the `chosen` images, (N,) bool, with up to `masks` masks each.

    The draw is the same in every run: it depends on the images' sources, but not on the seed or the order of the
    datasets. `choices` contains each dataset's mask choice. If several images have the same source, an image from a
    dataset with only annotated masks takes precedence.
    """
    rank = np.array([_PREFERRED.index(choice) for choice in choices])
    keys = [shard.dataset.key for shard in images.shards]

    def preferred(row: int) -> tuple[int, str, int]:
        return int(rank[images.entry[row]]), keys[int(images.shard[row])], int(images.ids[row])

    rows = np.array(sorted(np.flatnonzero(chosen).tolist(), key=preferred), np.int64)
    _, first = np.unique(images.source_sha256[rows], axis=0, return_index=True)
    rows = rows[first]  # in random order, because `np.unique` sorts by the sources' hashes
    found = []
    for slot, row in enumerate(rows[:most].tolist()):
        chosen_masks = choose_masks(images.masks_of(row), masks, _key(0, _FIXED))
        found.append(StepDraw(slot, row, chosen_masks, range(len(chosen_masks))))
    return found


def choose_masks(annotations: NDArray[np.int64], count: int, key: Tensor) -> NDArray[np.int64]:
    """Choose up to `count` annotation ids at random by a key (1,) int64, and return them in ascending order."""
    order = np.argsort(random_bits(key, torch.from_numpy(annotations)).numpy(), kind="stable")
    return np.sort(annotations[order[:count]])


def capped(wanted: Sequence[int], most: int) -> list[int]:
    """Lower the largest counts until their sum is at most `most`. Each count stays at least 1."""
    counts = sorted(wanted)
    left, level = most, max(wanted, default=0)
    for place, count in enumerate(counts):
        share = left // (len(counts) - place)
        if count > share:
            level = max(1, share)
            break
        left -= count
    lowered = [min(count, level) for count in wanted]
    spare = most - sum(lowered)
    for place, count in enumerate(wanted):
        if spare > 0 and count > lowered[place]:
            lowered[place] += 1
            spare -= 1
    return lowered


def _key(*numbers: int) -> Tensor:
    """Derive a key (1,) int64 from several numbers."""
    key = torch.zeros(1, dtype=torch.int64)
    for number in numbers:
        key = random_bits(key, number)
    return key
