"""Order of an epoch's images, which depends only on the seed, the epoch, and the shards.

Shuffling puts the shards in random order, and then mixes their images step by step. Each step reads a random share of
the images in each of `window` neighboring shards, and mixes these images. Then the window moves by one shard. A process
therefore keeps `window` shards open, and opens one new shard per step. The last shard in the order is followed by the
first one, so every step mixes the same number of shards.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TURN, _SHARD, _STEP = range(3)
"""Purposes of random numbers: to order the shards, the images of a shard, and the mixed images of a step."""


class EpochOrder:
    """The order in which an epoch's images are read, as pairs (shard, row).

    Steps are mixed one at a time. The order takes 24 bytes of memory per shard of the dataset, and 8 bytes per image in
    the shards of the current step.
    """

    def __init__(self, images: NDArray[np.int64], seed: int | None, epoch: int, window: int) -> None:
        """Compute the size of each step. `images` (S,) int64 is the number of images in each shard.

        Without a seed, the order is that of the dataset.
        """
        self._images = images
        self._seed, self._epoch = seed, epoch
        shards = len(images)
        self._turn = np.arange(shards) if seed is None else self._drawn(_TURN, 0, shards)
        self._window = 1 if seed is None else min(window, shards)
        counts = images[self._turn]
        sizes = np.zeros(shards, np.int64)
        for slot in range(self._window):
            start, stop = self._share(counts, slot)
            sizes += np.roll(stop - start, slot)
        self._ends = np.cumsum(sizes)
        self._rows: dict[int, NDArray[np.int64]] = {}
        self._step = -1
        self._mixed: NDArray[np.int64] = np.empty((0, 2), np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def steps_of(self, positions: Sequence[int], more: int = 0) -> list[int]:
        """Return the steps that read these positions, followed by the next `more` steps."""
        if not positions:
            return []
        found: list[int] = np.searchsorted(self._ends, positions, side="right").tolist()
        found += [(found[-1] + each) % len(self._turn) for each in range(1, more + 1)]
        return list(dict.fromkeys(found))

    def shards_of(self, steps: Iterable[int]) -> list[int]:
        """Return the shards that these steps read, without repetition."""
        return list(dict.fromkeys(shard for step in steps for shard in self._shards_of(step)))

    def at(self, positions: Iterable[int]) -> Iterator[tuple[int, int]]:
        """Yield the (shard, row) at each position.

        Positions of the same step should be adjacent, because this method mixes a step again whenever the step changes.
        """
        for position in positions:
            if self._step < 0 or not self._begin(self._step) <= position < self._ends[self._step]:
                self._step = int(np.searchsorted(self._ends, position, side="right"))
                self._mixed = self._mix(self._step)
            shard, row = self._mixed[position - self._begin(self._step)]
            yield int(shard), int(row)

    def _shards_of(self, step: int) -> list[int]:
        """Return the shards in the window of a step. The last one is new."""
        turn = self._turn
        return [int(turn[(step - slot) % len(turn)]) for slot in reversed(range(self._window))]

    def _begin(self, step: int) -> int:
        return int(self._ends[step - 1]) if step else 0

    def _mix(self, step: int) -> NDArray[np.int64]:
        """Return the (shard, row) of each image that a step reads, (N, 2) int64, in reading order."""
        shards = self._shards_of(step)
        self._rows = {shard: rows for shard, rows in self._rows.items() if shard in set(shards)}
        parts = []
        for slot, shard in zip(reversed(range(self._window)), shards, strict=True):
            if shard not in self._rows:
                count = int(self._images[shard])
                self._rows[shard] = np.arange(count) if self._seed is None else self._drawn(_SHARD, shard, count)
            rows = self._rows[shard]
            start, stop = self._share(len(rows), slot)
            parts.append(np.stack([np.full(stop - start, shard), rows[start:stop]], axis=1))
        images: NDArray[np.int64] = np.concatenate(parts)
        if self._seed is not None:
            images = images[self._drawn(_STEP, step, len(images))]
        return images

    def _share(self, count: NDArray[np.int64] | int, slot: int) -> tuple[Any, Any]:
        """Return the range [start, stop) of a shard's shuffled images that a step reads from a slot of the window."""
        return count * slot // self._window, count * (slot + 1) // self._window

    def _drawn(self, purpose: int, number: int, count: int) -> NDArray[np.int64]:
        """Return the numbers from 0 to `count` - 1 in random order.

        The order is computed from the raw bits of Philox. NumPy guarantees that these bits stay the same across
        versions, unlike the random numbers that it derives from them.
        """
        seeds = np.random.SeedSequence([self._seed or 0, self._epoch, purpose, number])
        drawn: NDArray[np.int64] = np.argsort(np.random.Philox(seeds).random_raw(count), kind="stable")
        return drawn
