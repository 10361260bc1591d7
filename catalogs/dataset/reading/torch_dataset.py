"""A dataset for torch's `DataLoader`, whose workers and distributed ranks share the images.

Each reader's share is a range of ordinals in the committed shards, and all shares have the same number of rows. A
reader opens only the shards of its share, and reads at most two of them partially.
"""

import operator
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from torch.utils.data import IterableDataset, get_worker_info

from segmint.catalogs.dataset.commits import FileEntry
from segmint.catalogs.dataset.manifest import DatasetManifest, dataset_keys
from segmint.catalogs.dataset.reader import Dataset, Sample
from segmint.catalogs.dataset.reading.batches import Batches, Last, RankHere, ReaderPosition
from segmint.catalogs.dataset.reading.cache import DEFAULT_BYTES, SHARD_CACHE, ShardCache, drop_stale
from segmint.catalogs.dataset.versions.record import Version
from segmint.infra.assets.cache import cache_folder
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import LOCAL, scheme


def share(shards: Mapping[int, tuple[int, int]], position: ReaderPosition) -> dict[int, range]:
    """Return a reader's share: the ordinals of each of its shards.

    `shards` maps the shards to split, in order, to their ordinals [start, stop). The shares of all positions are
    disjoint, cover all rows, and differ in size by at most one row.
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
    """A dataset that is split among the workers of a `DataLoader` and the ranks of a distributed run.

    Each image goes to exactly one of them. The rank comes from `torch.distributed` if it is initialized, or else from
    the variables `RANK` and `WORLD_SIZE`; without either, it is 0 of 1. The split covers the shards that were committed
    when the dataset was opened. Without workers and ranks, each iteration reads the commits again, as in `Dataset`.
    """

    def __init__(
        self,
        location: Location,
        manifest: DatasetManifest,
        version: Version | None = None,
        verify: bool = False,
        cache: ShardCache | None = None,
    ) -> None:
        super().__init__(location, manifest, version, verify)
        self.cache = cache
        self._drop_stale()
        known = range(manifest.shards)  # a dataset that grew since may contain more
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
        taken = share(self._opened, position)
        for commit in self.commits(taken):
            yield from self.shard(commit, _ids(taken[commit.shard]))

    def __len__(self) -> int:
        """Return the number of images that all workers of this rank yield per iteration, from commits and tables."""
        position = self._rank.find()
        if position.parts == 1:
            return super().__len__()
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
        """Return one image by its position in dataset order, from 0, or from the end if it's negative.

        Positions count the images of the shards that were committed at the first access, and are the same for all
        workers and ranks. Raises IndexError if there is no such image.
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
        """Return batches for training; batch b has the same images for any number of ranks and workers.

        All ranks share a batch's `global_batch` images. With a `seed`, the seed and the epoch determine a shuffled
        order, in which `window - 1` of `window` neighbors come from different shards; a process has `window` shards
        open and prefetches others. If the last batch of an epoch is incomplete, "pad" fills it with the epoch's first
        images, and "drop" leaves it out. Only shards that are already committed are included; if the dataset may
        change, open a `version` of it. Raises `UsageError` for invalid numbers and for too few images.
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
) -> TorchDataset:
    """Open the dataset at `uri`, a folder or an S3 prefix, for reading; only committed shards are visible.

    Iterating yields one `Sample` per image. In a `torch.utils.data.DataLoader`, the workers and ranks share the images.
    To shuffle the images and read them in batches, use `batches`. Pass `storage` if the store needs options, such as an
    endpoint or a profile. `version` opens a recorded version of the dataset, given by number or digest.

    With `verify`, each file is hashed before it is read for the first time. `cache` is a local folder for copies of a
    bucket's shards, which take at most `cache_bytes` in total. Several processes may share the folder. A copy is hashed
    when it is made, and again when a process first opens it. For a bucket, `batches` always uses a cache, by default in
    `SEGMINT_CACHE`.

    Raises `UsageError` if the dataset or the version doesn't exist, or if a correction removed the version's files; the
    message then names the correction.
    """
    location = Location(storage or Storage(), uri)
    manifest, found = TorchDataset.find(location, version)
    kept = None
    if cache is not None and scheme(uri) != LOCAL:
        kept = ShardCache(Path(cache).expanduser().absolute(), dataset_keys(location)[0], cache_bytes)
    return TorchDataset(location, manifest, found, verify, kept)


def _ids(ordinals: range) -> range:
    return range(ordinals.start + 1, ordinals.stop + 1)
