"""Order of images in training, and batches: batch b has the same images for any number of ranks and workers.

Order of an epoch's images, which depends only on the seed, the epoch, and the shards.

Shuffling puts the shards in random order, and then mixes their images step by step. Each step reads a random share of
the images in each of `window` neighboring shards, and mixes these images. Then the window moves by one shard. A process
therefore keeps `window` shards open, and opens one new shard per step. The last shard in the order is followed by the
first one, so every step mixes the same number of shards.
"""

import copy
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal

import numpy as np
import torch
from torch import distributed
from torch.utils.data import IterableDataset, get_worker_info

from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.reader import Dataset, Sample
from segmint.catalogs.dataset.reading.cache import ShardCache, drop_stale
from segmint.catalogs.dataset.reading.opened import OpenShard, OpenShards, open_shard, with_help
from segmint.catalogs.dataset.versions import read_commits
from segmint.catalogs.layout import DamagedDatasetError, bytes_sha256
from segmint.infra.arrays import Ints
from segmint.infra.errors import UsageError

_TURN, _SHARD, _STEP = range(3)
"""Purposes of random numbers: to order the shards, the images of a shard, and the mixed images of a step."""


class EpochOrder:
    """The order in which an epoch's images are read, as pairs (shard, row).

    Steps are mixed one at a time. The order takes 24 bytes of memory per shard of the dataset, and 8 bytes per image in
    the shards of the current step.
    """

    def __init__(self, images: Ints, seed: int | None, epoch: int, window: int) -> None:
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
        self._rows: dict[int, Ints] = {}
        self._step = -1
        self._mixed: Ints = np.empty((0, 2), np.int64)

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

    def _mix(self, step: int) -> Ints:
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
        images: Ints = np.concatenate(parts)
        if self._seed is not None:
            images = images[self._drawn(_STEP, step, len(images))]
        return images

    def _share(self, count: Ints | int, slot: int) -> tuple[Any, Any]:
        """Return the range [start, stop) of a shard's shuffled images that a step reads from a slot of the window."""
        return count * slot // self._window, count * (slot + 1) // self._window

    def _drawn(self, purpose: int, number: int, count: int) -> Ints:
        """Return the numbers from 0 to `count` - 1 in random order.

        The order is computed from the raw bits of Philox. NumPy guarantees that these bits stay the same across
        versions, unlike the random numbers that it derives from them.
        """
        seeds = np.random.SeedSequence([self._seed or 0, self._epoch, purpose, number])
        drawn: Ints = np.argsort(np.random.Philox(seeds).random_raw(count), kind="stable")
        return drawn


@dataclass(frozen=True)
class ReaderPosition:
    """Position of a reader, `part` from 0, among the `parts` readers that share a dataset."""

    part: int
    parts: int


def current_rank() -> ReaderPosition:
    """Return this process's rank and the number of ranks.

    Both come from `torch.distributed` if it is initialized, and otherwise from the environment variables `RANK` and
    `WORLD_SIZE`. Without either, the process is rank 0 of 1. Raises `UsageError` if a variable is invalid, or if
    `WORLD_SIZE` is greater than 1 but `RANK` isn't set. In that case, all ranks would read the same images.
    """
    if distributed.is_available() and distributed.is_initialized():
        return ReaderPosition(distributed.get_rank(), distributed.get_world_size())
    ranks = os.environ.get("WORLD_SIZE", "1")
    rank = os.environ.get("RANK", "0" if ranks == "1" else "(not set)")
    if not (rank.isdecimal() and ranks.isdecimal() and int(rank) < int(ranks)):
        raise UsageError(f"RANK={rank} and WORLD_SIZE={ranks} in the environment: expected 0 <= RANK < WORLD_SIZE")
    return ReaderPosition(int(rank), int(ranks))


class RankHere:
    """The rank of the current process, which also works in the workers of a `DataLoader`.

    A spawned worker can't determine its rank. Therefore, pickling this object includes the rank of the process that
    starts the worker. Only a `DataLoader` worker uses the pickled rank. Any other process determines its own rank after
    unpickling.
    """

    def __init__(self) -> None:
        self._sent: tuple[int, ReaderPosition] | None = None  # id of the process that unpickled this, and the rank

    def find(self) -> ReaderPosition:
        """Return the rank. Raises the errors of `current_rank`."""
        if self._sent is not None and self._sent[0] == os.getpid() and get_worker_info() is not None:
            return self._sent[1]
        return current_rank()

    def __getstate__(self) -> dict[str, Any]:
        return {"rank": self.find()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._sent = os.getpid(), state["rank"]


_FORMAT = 1
OPEN_SHARDS = 8  # kept by `Batches.sample`

Last = Literal["pad", "drop"]
"""Treatment of an incomplete last batch: "pad" fills it with the epoch's first images, and "drop" leaves it out."""


class Batches(IterableDataset[list[Sample]]):
    """Batches of one epoch, each a list of samples, split among ranks and `DataLoader` workers.

    Pass this object to a `DataLoader` with `batch_size=None`. All ranks share each batch. For a batch of B images, rank
    r of R reads the images [B·r/R, B·(r+1)/R). The workers of a rank take turns, and each of them reads the rank's
    entire share of a batch.

    An iteration starts at the epoch and the image that `begin` set, and ends with that epoch. It only reads shards that
    were committed when this object was created.
    """

    def __init__(
        self,
        dataset: Dataset,
        commits: Iterable[Commit],
        global_batch: int,
        *,
        seed: int | None,
        window: int,
        last: Last,
        cache: ShardCache | None,
    ) -> None:
        """Count the images in the shards of `commits`, or those of the dataset's subset there.

        The dataset's order is kept if `seed` is None.

        `TorchDataset.batches` describes the other arguments.
        """
        # These numbers become part of a state. They must not be NumPy numbers, because some programs can't load a
        # checkpoint that contains NumPy numbers.
        global_batch, window, seed = _whole(global_batch), _whole(window), None if seed is None else _whole(seed)
        if global_batch < 1 or window < 1 or (seed is not None and seed < 0):
            raise UsageError(
                f"global_batch={global_batch}, window={window}, seed={seed}: expected numbers of at least 1, "
                "and a seed of at least 0"
            )
        if last not in ("pad", "drop"):
            raise UsageError(f"last={last!r}: expected 'pad' or 'drop'")
        self.dataset = dataset
        self.global_batch = global_batch
        self.seed = seed
        self.window = window
        self.last = last
        self.cache = cache
        if cache is not None:
            drop_stale(cache.folder, dataset.location)
        counts = ((each.shard, each.generation, dataset.count(each)) for each in commits)
        table = np.array([count for count in counts if count[2]], np.int64).reshape(-1, 3)
        self._shards: Ints = table[:, :2]  # (S, 2): shard and generation
        self._images: Ints = table[:, 2]
        self.images = int(self._images.sum())
        if self.images < (global_batch if last == "drop" else 1):
            raise UsageError(
                f"{dataset.location} has {self.images} images, too few for a batch of {global_batch}: expected a "
                "smaller global_batch, last='pad', or a dataset with more"
            )
        self._rank = RankHere()
        # Both tensors are in shared memory. Therefore, persistent workers see each new start, and only one of them has
        # to hash a shard.
        self._start = _shared_zeros(2, torch.int64)
        self._checked = _shared_zeros(len(table), torch.uint8)
        self._kept: dict[int, OpenShard] = {}
        self._reading: dict[int, Lock] = {}  # by process id, because a thread may hold one during a fork

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}, "_reading": {}}  # open files belong to their process

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start.share_memory_()  # type: ignore[no-untyped-call]  # a plain pickle only keeps the values
        self._checked.share_memory_()  # type: ignore[no-untyped-call]

    def with_own_start(self) -> "Batches":
        """Return a copy whose `begin` doesn't affect the original."""
        other = copy.copy(self)
        other._start = _shared_zeros(2, torch.int64)
        return other

    def __len__(self) -> int:
        """Return the number of batches in a whole epoch."""
        return self.left(0)

    def left(self, samples: int) -> int:
        """Return the number of batches left in an epoch after its first `samples` images."""
        left = self.images - samples
        return left // self.global_batch if self.last == "drop" else -(-left // self.global_batch)

    def begin(self, epoch: int, samples: int = 0) -> None:
        """Start the next iteration in this epoch, counted from 0, after the epoch's first `samples` images."""
        if epoch < 0 or samples < 0:
            raise UsageError(f"epoch={epoch}, samples={samples}: expected numbers of at least 0")
        self._start[0], self._start[1] = epoch, samples

    def order_key(self) -> dict[str, Any]:
        """Return the values that determine the order of images, besides the epoch.

        The values are the seed, the window, the image count, a hash of the shards, and the hash of the subset, if any.
        """
        table = np.column_stack([self._shards, self._images])
        digest = bytes_sha256(table.astype("<i8").tobytes())
        window = self.window if self.seed is not None else None
        key = {"seed": self.seed, "window": window, "images": self.images, "shards": digest}
        return key if self.dataset.subset is None else {**key, "subset": self.dataset.subset.sha256}

    def checked_position(self, state: Mapping[str, Any], **own: int) -> tuple[int, int]:
        """Return the epoch and the number of samples that a state contains.

        Raises `UsageError` if the state belongs to another order of images, or doesn't contain the values in `own`.
        """
        own = {"format": _FORMAT, **self.order_key(), **own}
        wrong = [name for name, value in own.items() if state.get(name) != value]
        if wrong:
            raise UsageError(
                "the state belongs to another order: "
                + "; ".join(f"{name}: {state.get(name)!r}, here {own[name]!r}" for name in wrong)
                + ". Open the same version of the dataset, with the same seed and window"
            )
        epoch, samples = state.get("epoch"), state.get("samples")
        if not (isinstance(epoch, int) and isinstance(samples, int) and epoch >= 0 <= samples < self.images):
            raise UsageError(f"epoch={epoch!r}, samples={samples!r} in the state: expected numbers of at least 0")
        return epoch, samples

    def state_of(self, epoch: int, samples: int) -> dict[str, Any]:
        """Return a state for this position, which `checked_position` accepts."""
        return {"format": _FORMAT, "epoch": epoch, "samples": samples, **self.order_key()}

    def sample(self, position: int) -> Sample:
        """Return the image at a position in dataset order, counted from 0.

        The image's shard stays open for later calls. At most 8 shards stay open, so opening one may close another.
        Therefore, a lock allows only one thread at a time to read.
        """
        ends = np.cumsum(self._images)
        index = int(np.searchsorted(ends, position, side="right"))
        with self._reading.setdefault(os.getpid(), Lock()):
            return self._sample(self._keep, index, position - int(ends[index] - self._images[index]))

    def _keep(self, index: int) -> OpenShard:
        if index not in self._kept:
            while len(self._kept) >= OPEN_SHARDS:
                self._kept.pop(next(iter(self._kept))).close()
            self._kept[index] = self._open(index)
        return self._kept[index]

    def __iter__(self) -> "BatchIterator":
        epoch, samples = self._start.tolist()  # read now, because `begin` may change it for the next iteration
        rank, worker = self._rank.find(), get_worker_info()
        if rank.parts > self.global_batch:
            raise UsageError(
                f"a global_batch of {self.global_batch} for {rank.parts} ranks: expected at least one image per rank"
            )
        position = ReaderPosition(0, 1) if worker is None else ReaderPosition(worker.id, worker.num_workers)
        if self.cache is not None and position.part == 0:
            drop_stale(self.cache.folder, self.dataset.location)
        return BatchIterator(self, epoch, samples, rank, position)

    def read(
        self, epoch: int, samples: int, rank: ReaderPosition, worker: ReaderPosition, skip: int
    ) -> Iterator[list[Sample]]:
        """Yield one worker's batches of an epoch after the epoch's first `samples` images.

        This skips the first `skip` of these batches.
        """
        keep_freed_memory()
        order = EpochOrder(self._images, self.seed, epoch, self.window)
        first = (rank.part * worker.parts + worker.part) / (rank.parts * worker.parts)
        shards = OpenShards(self._open, first)
        numbers = range(worker.part, self.left(samples), worker.parts)[skip:]
        try:
            held: tuple[list[int], list[int]] = ([], [])  # steps
            for number in numbers:
                places = self._places(samples, number, rank)
                following = self._places(samples, number + worker.parts, rank) if number != numbers[-1] else []
                wanted = order.steps_of(places), order.steps_of([*places[-1:], *following], more=1)
                if wanted != held:
                    held = wanted
                    shards.hold(*map(order.shards_of, held))
                yield [self._sample(shards.__getitem__, shard, row) for shard, row in order.at(places)]
        finally:
            shards.close()

    def _places(self, samples: int, number: int, rank: ReaderPosition) -> list[int]:
        """Return the epoch positions of a rank's share of a batch. Positions past the epoch's end start over at 0."""
        first = samples + number * self.global_batch
        start, stop = (self.global_batch * part // rank.parts for part in (rank.part, rank.part + 1))
        return [place % self.images for place in range(first + start, first + stop)]

    def _sample(self, opened: Callable[[int], OpenShard], shard: int, row: int) -> Sample:
        try:
            return opened(shard).sample(row)
        except DamagedDatasetError as error:
            raise with_help(error, int(self._shards[shard, 0]), self.dataset) from error

    def _open(self, index: int) -> OpenShard:
        key = int(self._shards[index, 0]), int(self._shards[index, 1])
        check = not self._checked[index] and (self.dataset.verify or self.cache is not None)
        opened = open_shard(self.dataset, self._commit(*key), key, self.cache, check)
        if len(opened) != self._images[index]:
            opened.close()
            raise DamagedDatasetError(
                f"{len(opened)} images were found in the table, but {self._images[index]} were expected"
            )
        self._checked[index] = 1
        return opened

    def _commit(self, shard: int, generation: int) -> Commit | None:
        version = self.dataset.version
        if version is None:
            return self.dataset.log.read(shard, generation)
        return next(read_commits(self.dataset.location, version, {shard}), None)


class BatchIterator(Iterator[list[Sample]]):
    """Iterator over one worker's batches of an epoch.

    torchdata's `StatefulDataLoader` saves its position and restores it.
    """

    def __init__(
        self, batches: Batches, epoch: int, samples: int, rank: ReaderPosition, worker: ReaderPosition
    ) -> None:
        self._batches, self._rank, self._worker = batches, rank, worker
        self._own = {"global_batch": batches.global_batch, "workers": worker.parts}
        self._begin(epoch, samples, 0)

    def __next__(self) -> list[Sample]:
        batch = next(self._left)
        self._returned += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the epoch. It is only valid for the same worker and the same number of workers."""
        state = self._batches.state_of(self._epoch, self._samples)
        return {**state, **self._own, "worker": self._worker.part, "returned": self._returned}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the last batch that was returned before the state was saved.

        Raises `UsageError` if the state belongs to another order, batch size, worker, or number of workers.
        """
        position = self._batches.checked_position(state, **self._own, worker=self._worker.part)
        self._begin(*position, state["returned"])

    def _begin(self, epoch: int, samples: int, returned: int) -> None:
        self._epoch, self._samples, self._returned = epoch, samples, returned
        self._left = self._batches.read(epoch, samples, self._rank, self._worker, returned)


def _whole(number: int) -> int:
    """Convert a whole number to Python's `int`. Raises `UsageError` for any other value."""
    try:
        return operator.index(number)
    except TypeError as error:
        raise UsageError(f"{number!r} for a number of images, a window or a seed: expected a whole number") from error


def _shared_zeros(count: int, dtype: torch.dtype) -> torch.Tensor:
    zeros = torch.zeros(count, dtype=dtype)
    zeros.share_memory_()  # type: ignore[no-untyped-call]
    return zeros


_BYTES = 31 << 20  # glibc's dynamic threshold follows blocks of up to 32 MiB


def keep_freed_memory() -> None:
    """Make glibc keep up to 62 MiB of freed memory for the next allocations.

    By default, glibc returns most of an image's memory to the kernel when the image is freed. For the next image, the
    kernel must map and clear the pages again, which takes a twelfth of the decoding time. How much memory glibc keeps
    depends on the largest block that it has mapped and freed so far. Therefore, this function maps and frees a large
    block without touching its pages.

    Settings in the environment, such as `MALLOC_TRIM_THRESHOLD_`, take precedence. Other allocators aren't affected.
    """
    np.empty(_BYTES, np.uint8)
