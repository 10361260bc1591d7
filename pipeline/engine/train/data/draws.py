"""What each step trains on: draws of (image, masks), by keys alone.

Any step's draws can be computed without those before it, in any process: they depend on the seed, the step, the images
and the settings. Images of one dataset are drawn in the order of a random permutation, another one each time round; a
dataset that is named twice counts as two.
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
"""Places whose entries are drawn together."""

_ENTRY, _ORDER, _MASKS, _FIXED = 1, 2, 3, 4  # what a number is drawn for


@dataclass(frozen=True)
class StepDraw:
    """An image of a step: its row in `TrainingImages`, annotation ids of its masks, and their numbers in the step.

    `slot` is the image's own number in the step, from 0.
    """

    slot: int
    image: int
    masks: NDArray[np.int64]
    numbers: Sequence[int]


class DrawSequence:
    """The draws of a run over the images that are `trained` on, (N,) bool."""

    def __init__(
        self, images: TrainingImages, trained: NDArray[np.bool_], weights: Sequence[float], batch: BatchKeys, seed: int
    ) -> None:
        """`weights` are those of the configuration's datasets. Raises ValueError if no image is trained on."""
        self._images = images
        self._batch = batch
        self._seed = seed
        entries = np.unique(images.entry[trained]).tolist()  # with their images that are trained on
        self._rows = {entry: np.flatnonzero(trained & (images.entry == entry)) for entry in entries}
        if not self._rows:
            raise ValueError("no image is trained on")
        shares = np.array([weights[entry] * len(rows) for entry, rows in self._rows.items()])
        self._borders = np.cumsum(shares) / shares.sum()
        self._lock = Lock()
        # Of draws by entry, before each block of places.
        self._counts: list[NDArray[np.int64]] = [np.zeros(len(self._rows), np.int64)]
        self._entries = lru_cache(maxsize=4)(self._draw_entries)
        self._permutation = lru_cache(maxsize=2 * len(self._rows))(self._permute)

    def step(self, step: int) -> list[StepDraw]:
        """The draws of a step, from 1, for all workers: images in order, each with one mask or more."""
        chosen = [self._image(place) for place in range((step - 1) * self._batch.images, step * self._batch.images)]
        wanted = [min(len(self._images.masks_of(image)), self._batch.masks_per_image) for image in chosen]
        draws = []
        for slot, (image, count) in enumerate(zip(chosen, capped(wanted, self._batch.masks), strict=True)):
            place = (step - 1) * self._batch.images + slot
            first = slot * self._batch.masks_per_image
            draws.append(StepDraw(slot, image, self._masks(image, place, count), range(first, first + count)))
        return draws

    def _image(self, place: int) -> int:
        """The image that has this place among all that the run draws."""
        block, offset = divmod(place, _BLOCK)
        chosen = self._entries(block)
        which = int(chosen[offset])
        before = int(self._before(block)[which] + (chosen[:offset] == which).sum())
        entry, rows = list(self._rows.items())[which]
        turn, index = divmod(before, len(rows))
        return int(rows[self._permutation(entry, turn)[index]])

    def _draw_entries(self, block: int) -> NDArray[np.int64]:
        """Which entry each place of a block draws from."""
        places = torch.arange(block * _BLOCK, (block + 1) * _BLOCK)
        drawn = uniforms(random_bits(_key(self._seed, _ENTRY), places), 1)[:, 0].numpy()
        return np.minimum(np.searchsorted(self._borders, drawn, "right"), len(self._borders) - 1)

    def _before(self, block: int) -> NDArray[np.int64]:
        """How often each entry is drawn before a block."""
        with self._lock:  # a thread reads ahead
            while len(self._counts) <= block:
                chosen = self._draw_entries(len(self._counts) - 1)
                self._counts.append(self._counts[-1] + np.bincount(chosen, minlength=len(self._rows)))
        return self._counts[block]

    def _permute(self, entry: int, turn: int) -> NDArray[np.int64]:
        bits = random_bits(_key(self._seed, _ORDER, entry, turn), torch.arange(len(self._rows[entry])))
        return np.argsort(bits.numpy(), kind="stable")

    def _masks(self, image: int, place: int, count: int) -> NDArray[np.int64]:
        return choose_masks(self._images.masks_of(image), count, _key(self._seed, _MASKS, place))


def fixed_draws(
    images: TrainingImages, chosen: NDArray[np.bool_], most: int, masks: int, choices: Sequence[MaskChoice]
) -> list[StepDraw]:
    """At most so many of the chosen images (N,) bool, with at most so many masks each: the same in every run.

    They are chosen by the images' sources, whatever the seed and the order of the datasets are. `choices` are the masks
    of the configuration's datasets: of the images of one source, one with masks of people alone is preferred, then one
    with all.
    """
    rank = np.array([_PREFERRED.index(choice) for choice in choices])
    keys = [shard.dataset.key for shard in images.shards]

    def preferred(row: int) -> tuple[int, str, int]:
        return int(rank[images.entry[row]]), keys[int(images.shard[row])], int(images.ids[row])

    rows = np.array(sorted(np.flatnonzero(chosen).tolist(), key=preferred), np.int64)
    _, first = np.unique(images.source_sha256[rows], axis=0, return_index=True)
    rows = rows[first]  # in the order of the sources' hashes, which are random
    found = []
    for slot, row in enumerate(rows[:most].tolist()):
        chosen_masks = choose_masks(images.masks_of(row), masks, _key(0, _FIXED))
        found.append(StepDraw(slot, row, chosen_masks, range(len(chosen_masks))))
    return found


def choose_masks(annotations: NDArray[np.int64], count: int, key: Tensor) -> NDArray[np.int64]:
    """So many of the annotation ids, or all, at random by a key (1,) int64; in ascending order."""
    order = np.argsort(random_bits(key, torch.from_numpy(annotations)).numpy(), kind="stable")
    return np.sort(annotations[order[:count]])


def capped(wanted: Sequence[int], most: int) -> list[int]:
    """Lower the largest of the counts so that they sum up to at most `most`; each stays 1 or more."""
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
    """A key (1,) int64 of several numbers."""
    key = torch.zeros(1, dtype=torch.int64)
    for number in numbers:
        key = random_bits(key, number)
    return key
