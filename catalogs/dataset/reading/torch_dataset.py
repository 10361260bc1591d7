"""A dataset for torch's `DataLoader`, whose workers and distributed ranks share the images.

Each worker of each rank is a reader, and reads one contiguous share of the rows in the committed shards. The shares
differ in size by at most one row. A reader opens only the shards that contain rows of its share, and reads at most two
of these shards partially: the first and the last.

A `DataLoader` that counts the batches its loop received and can resume there, and `collate`, which makes batches.
"""

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from segmint.catalogs.dataset.commits import FileEntry
from segmint.catalogs.dataset.manifest import DatasetManifest, dataset_keys
from segmint.catalogs.dataset.reader import Dataset, MaskAnnotation, Sample, Subset
from segmint.catalogs.dataset.reading.batches import Batches, Last, RankHere, ReaderPosition
from segmint.catalogs.dataset.reading.cache import DEFAULT_BYTES, SHARD_CACHE, ShardCache, drop_stale
from segmint.catalogs.dataset.subsets import choose_images
from segmint.catalogs.dataset.versions import Version
from segmint.infra.assets import cache_folder
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import LOCAL, scheme


def share(shards: Mapping[int, tuple[int, int]], position: ReaderPosition) -> dict[int, range]:
    """Return a reader's share of the rows: the ordinals to read from each shard.

    `shards` maps each shard to its ordinals [start, stop), in shard order. The shares of all readers together cover
    every row exactly once, and differ in size by at most one row.
    """
    rows = sum(stop - start for start, stop in shards.values())
    first, last = rows * position.part // position.parts, rows * (position.part + 1) // position.parts
    taken: dict[int, range] = {}
    before = 0
    for shard, (start, stop) in shards.items():
        ordinals = range(max(start, start + first - before), min(stop, start + last - before))
        if ordinals:
            taken[shard] = ordinals
        before += stop - start
    return taken


class TorchDataset(Dataset, IterableDataset[Sample]):
    """Dataset that is split among the ranks of a distributed run and the `DataLoader` workers of each rank.

    Exactly one of these workers reads each image. The rank comes from `torch.distributed` if it is initialized, and
    otherwise from the environment variables `RANK` and `WORLD_SIZE`. Without either, the process is rank 0 of 1. The
    workers split the shards that were committed when the dataset was opened. With a single rank and without workers,
    each iteration reads the commits again, as in `Dataset`.
    """

    def __init__(
        self,
        location: Location,
        manifest: DatasetManifest,
        version: Version | None = None,
        verify: bool = False,
        cache: ShardCache | None = None,
        subset: Subset | None = None,
    ) -> None:
        super().__init__(location, manifest, version, verify, subset)
        self.cache = cache
        self._drop_stale()
        known = range(manifest.shards)  # if the dataset has grown since, it may contain other shards
        self._opened = {shard: manifest.ordinals(shard) for shard in self.committed() if shard in known}
        self._rank = RankHere()

    def __iter__(self) -> Iterator[Sample]:
        position = self._rank.find()
        worker = get_worker_info()
        if worker is None or worker.id == 0:
            self._drop_stale()
        if worker is not None:
            position = ReaderPosition(
                position.part * worker.num_workers + worker.id, position.parts * worker.num_workers
            )
        if position.parts == 1 and worker is None:
            yield from super().__iter__()
            return
        if self.subset is not None:
            ids = self.subset.part(position.part, position.parts)
            for commit in self.commits({(number - 1) // self.manifest.images_per_shard for number in ids}):
                yield from self.shard(commit, ids)
            return
        taken = share(self._opened, position)
        for commit in self.commits(taken):
            yield from self.shard(commit, _ids(taken[commit.shard]))

    def __len__(self) -> int:
        """Return the number of images that all workers of this rank together yield per iteration."""
        position = self._rank.find()
        if position.parts == 1:
            return super().__len__()
        if self.subset is not None:
            return len(self.subset.part(position.part, position.parts))
        taken = share(self._opened, position)
        images = 0
        for commit in self.commits(taken):
            if range(*commit.ordinals) == taken[commit.shard]:
                images += commit.counts.get("images", 0)
            else:
                ids = self.table(commit, "images", ["id"])["id"].to_pylist()
                wanted = _ids(taken[commit.shard])
                images += sum(number in wanted for number in ids)
        return images

    def __getitem__(self, index: int) -> Sample:
        """Return the image at a position in dataset order. Positions count from 0; negative ones count from the end.

        Positions count the images in the shards that were committed at the first access. They are the same in all
        workers and ranks. Raises `IndexError` if there is no image at the position.
        """
        place = operator.index(index)
        images = self._in_order.images if self._in_order is not None else 0
        if self._in_order is None or not -images <= place < images:
            raise IndexError(f"image {place} of {self.uri}, which has {images}")
        return self._in_order.sample(place % images)

    def __repr__(self) -> str:
        version = "" if self.version is None else f", version {self.version.number}"
        return f"{type(self).__name__}({self.uri!r}, {len(self._opened)} of {self.manifest.shards} shards{version})"

    @cached_property
    def _in_order(self) -> Batches | None:
        return self.batches(1, shuffle=False) if super().__len__() else None

    def batches(
        self,
        global_batch: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        window: int = 32,
        last: Last = "pad",
    ) -> Batches:
        """Return batches for training. Batch b has the same images for any number of ranks and workers.

        The ranks split the `global_batch` images of each batch among themselves. With `shuffle`, the `seed` and the
        epoch determine a random order. To shuffle, a process keeps `window` shards open and mixes their images, while
        it prefetches other shards. As a result, neighboring images come from different shards in `window - 1` of
        `window` cases.

        If the last batch of an epoch is incomplete, `last="pad"` fills it with the epoch's first images, and
        `last="drop"` leaves it out. The batches only contain images of shards that are already committed. If the
        dataset may change during training, open a recorded `version` of it.

        Raises `UsageError` if a number is invalid, or if the dataset has too few images.
        """
        cache = self.cache
        if cache is None and scheme(self.uri) != LOCAL:
            cache = ShardCache(cache_folder() / SHARD_CACHE, dataset_keys(self.location)[0])
        return Batches(
            self,
            self.commits(),
            global_batch,
            seed=seed if shuffle else None,
            window=window,
            last=last,
            cache=cache,
        )

    def _drop_stale(self) -> None:
        if self.cache is not None:
            drop_stale(self.cache.folder, self.location)

    def _open_tar(self, entry: FileEntry) -> BinaryIO:
        if self.cache is None:
            return super()._open_tar(entry)
        copy = self.cache.open(self.location / entry.path, entry, check=entry.path not in self._verified)
        self._verified.add(entry.path)
        return copy


def open_dataset(
    uri: str,
    storage: Storage | None = None,
    *,
    version: int | str | None = None,
    verify: bool = False,
    cache: str | Path | None = None,
    cache_bytes: int = DEFAULT_BYTES,
    select: str | None = None,
) -> TorchDataset:
    """Open the dataset at `uri`, a folder or an S3 prefix, for reading. Only committed shards are visible.

    Iterating yields one `Sample` per image. If you pass the dataset to a `torch.utils.data.DataLoader`, its workers and
    the ranks of a distributed run split the images among themselves. To shuffle the images and read them in batches,
    use `batches`. If the store needs options, such as an endpoint or a profile, pass a `storage`. To open a recorded
    version of the dataset, pass its number or digest as `version`.

    `select` limits the dataset to some images. It is a condition in SQL over the columns of `images`, such as `"masks >
    20 AND country = 'US'"`, or a file that `segmint select` wrote. The images are chosen now, and all later iterations
    and batches contain the same ones.

    With `verify`, a process hashes each file before it reads the file for the first time. `cache` is a local folder in
    which processes keep copies of a bucket's shards. Several processes can share the folder, and all copies together
    take at most `cache_bytes`. A process hashes a copy when it writes the copy, and again when it first opens an
    existing one. For a bucket, `batches` always uses a cache. By default, this cache is in `SEGMINT_CACHE`.

    Raises `UsageError` if the dataset or the version doesn't exist, or if a correction removed the version's files. In
    the last case, the message names the correction. Also raises `UsageError` if `select` is invalid or selects no
    image.
    """
    location = Location(storage or Storage(), uri)
    manifest, found = TorchDataset.find(location, version)
    subset = None if select is None else choose_images(location, select, found)
    kept = None
    if cache is not None and scheme(uri) != LOCAL:
        kept = ShardCache(Path(cache).expanduser().absolute(), dataset_keys(location)[0], cache_bytes)
    return TorchDataset(location, manifest, found, verify, kept, subset)


def _ids(ordinals: range) -> range:
    return range(ordinals.start + 1, ordinals.stop + 1)


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
