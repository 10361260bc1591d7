"""Batches of a dataset for training: batch b has the same images for any number of ranks and workers."""

import copy
import hashlib
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed
from torch.utils.data import IterableDataset, get_worker_info

from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.reader import Dataset, Sample
from segmint.catalogs.dataset.reading.cache import ShardCache, drop_stale
from segmint.catalogs.dataset.reading.opened import OpenShard, OpenShards, open_shard, with_help
from segmint.catalogs.dataset.reading.order import EpochOrder
from segmint.catalogs.dataset.versions.record import read_commits
from segmint.catalogs.layout import DamagedDatasetError
from segmint.infra.errors import UsageError


@dataclass(frozen=True)
class ReaderPosition:
    """Position of a reader, `part` from 0, among the `parts` readers that share a dataset."""

    part: int
    parts: int


def current_rank() -> ReaderPosition:
    """Return the rank in `torch.distributed` if it is initialized, else that of `RANK` and `WORLD_SIZE`, else 0 of 1.

    Raises `UsageError` for invalid variables, and for a size without a rank, with which all ranks would read the same
    images.
    """
    if distributed.is_available() and distributed.is_initialized():
        return ReaderPosition(distributed.get_rank(), distributed.get_world_size())
    ranks = os.environ.get("WORLD_SIZE", "1")
    rank = os.environ.get("RANK", "0" if ranks == "1" else "(not set)")
    if not (rank.isdecimal() and ranks.isdecimal() and int(rank) < int(ranks)):
        raise UsageError(f"RANK={rank} and WORLD_SIZE={ranks} in the environment: expected 0 <= RANK < WORLD_SIZE")
    return ReaderPosition(int(rank), int(ranks))


class RankHere:
    """The calling process's rank, which the spawned workers of a `DataLoader` receive by pickling.

    Those workers can't determine the rank themselves. Any other process gets its own rank by unpickling.
    """

    def __init__(self) -> None:
        self._sent: tuple[int, ReaderPosition] | None = None  # the process id that it was sent to, and the rank

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
_OPEN_SHARDS = 8  # kept by `Batches.sample`

Last = Literal["pad", "drop"]
"""Handling of an epoch's last images if they don't fill a batch: pad it with the epoch's first images, or drop them."""


class Batches(IterableDataset[list[Sample]]):
    """Iterable over an epoch's batches as lists of samples; each rank gets its part of every batch.

    Pass it to a `DataLoader` with `batch_size=None`, whose workers share the batches. Each iteration starts at the
    epoch and position set by `begin` and yields the rest of that epoch. Rank r of R gets the images [B·r/R, B·(r+1)/R)
    of a batch of B. Only shards that were committed when this object was created are included.
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
        """A `seed` of None keeps the dataset's order; see `TorchDataset.batches` for the other arguments."""
        # A state contains these, and NumPy numbers in checkpoints don't load everywhere.
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
        counts = ((each.shard, each.generation, each.counts.get("images", 0)) for each in commits)
        table = np.array([count for count in counts if count[2]], np.int64).reshape(-1, 3)
        self._shards: NDArray[np.int64] = table[:, :2]  # with their generations
        self._images: NDArray[np.int64] = table[:, 2]
        self.images = int(self._images.sum())
        if self.images < (global_batch if last == "drop" else 1):
            raise UsageError(
                f"{dataset.location} has {self.images} images, too few for a batch of {global_batch}: expected a "
                "smaller global_batch, last='pad', or a dataset with more"
            )
        self._rank = RankHere()
        # In shared memory, so that persistent workers see values that are set later, and share which shards were
        # hashed.
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
        """Return the same batches with an independent start of the next iteration."""
        other = copy.copy(self)
        other._start = _shared_zeros(2, torch.int64)
        return other

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        return self.left(0)

    def left(self, samples: int) -> int:
        """Return the number of batches that remain in an epoch after `samples` of its images."""
        left = self.images - samples
        return left // self.global_batch if self.last == "drop" else -(-left // self.global_batch)

    def begin(self, epoch: int, samples: int = 0) -> None:
        """Set the epoch of the next iteration, from 0, and the number of its images to skip."""
        if epoch < 0 or samples < 0:
            raise UsageError(f"epoch={epoch}, samples={samples}: expected numbers of at least 0")
        self._start[0], self._start[1] = epoch, samples

    def order_key(self) -> dict[str, Any]:
        """Return what determines the order besides the epoch: seed, window, images, and a hash of the shards."""
        table = np.column_stack([self._shards, self._images])
        digest = hashlib.sha256(table.astype("<i8").tobytes()).hexdigest()
        window = self.window if self.seed is not None else None
        return {"seed": self.seed, "window": window, "images": self.images, "shards": digest}

    def checked_position(self, state: Mapping[str, Any], **own: int) -> tuple[int, int]:
        """Return the epoch and the samples of a state; raise `UsageError` if its order or a value of `own` differs."""
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
        """Return the state that `checked_position` accepts."""
        return {"format": _FORMAT, "epoch": epoch, "samples": samples, **self.order_key()}

    def sample(self, position: int) -> Sample:
        """Return the image at a position in dataset order, from 0. Its shard stays open for the next images.

        Only one thread reads at a time, because opening a shard closes another one.
        """
        ends = np.cumsum(self._images)
        index = int(np.searchsorted(ends, position, side="right"))
        with self._reading.setdefault(os.getpid(), Lock()):
            return self._sample(self._keep, index, position - int(ends[index] - self._images[index]))

    def _keep(self, index: int) -> OpenShard:
        if index not in self._kept:
            while len(self._kept) >= _OPEN_SHARDS:
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
        """Yield a worker's batches after the first `samples` images of an epoch, except its first `skip` batches."""
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
        """Return the epoch positions of a rank's part of a batch; positions past the end wrap around."""
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
                f"the table of images has {len(opened)} rows, but the commit lists {self._images[index]}"
            )
        self._checked[index] = 1
        return opened

    def _commit(self, shard: int, generation: int) -> Commit | None:
        version = self.dataset.version
        if version is None:
            return self.dataset.log.read(shard, generation)
        return next(read_commits(self.dataset.location, version, {shard}), None)


class BatchIterator(Iterator[list[Sample]]):
    """Iterator over a worker's batches of an epoch, with a position that torchdata's `StatefulDataLoader` saves."""

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
        """Return the position in the epoch, which is only valid for the same worker and the same number of workers."""
        state = self._batches.state_of(self._epoch, self._samples)
        return {**state, **self._own, "worker": self._worker.part, "returned": self._returned}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the batches that were returned when the state was saved. Raises `UsageError` like a loader."""
        position = self._batches.checked_position(state, **self._own, worker=self._worker.part)
        self._begin(*position, state["returned"])

    def _begin(self, epoch: int, samples: int, returned: int) -> None:
        self._epoch, self._samples, self._returned = epoch, samples, returned
        self._left = self._batches.read(epoch, samples, self._rank, self._worker, returned)


def _whole(number: int) -> int:
    """Return a whole number as Python's `int`; raises `UsageError` for anything else."""
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

    By default, glibc returns most of an image's memory to the kernel, which must map and clear the pages again for the
    next image. That takes a twelfth of the decoding time. glibc's threshold follows the largest block that was mapped
    and freed, so this function maps and frees such a block without touching its pages. Settings in the environment,
    such as `MALLOC_TRIM_THRESHOLD_`, take precedence, and other allocators aren't affected.
    """
    np.empty(_BYTES, np.uint8)
