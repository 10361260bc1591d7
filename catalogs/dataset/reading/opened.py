"""Random access to the images of a shard, through its tar on a local disk and its table of images.

Byte ranges of each image's files in a shard's tar, which allow reading any of them separately.
"""

import os
import re
import threading
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any, BinaryIO, NoReturn

import numpy as np
import pyarrow as pa

from segmint.catalogs.dataset.commits import Commit, FileEntry
from segmint.catalogs.dataset.reader import (
    HELP,
    Dataset,
    Sample,
    check_file,
    make_sample,
    not_where_it_should_be,
)
from segmint.catalogs.dataset.reading.cache import ShardCache
from segmint.catalogs.layout import ADDED_COLUMNS, MOST_MEMBER_BYTES, DamagedDatasetError, check_member
from segmint.infra.arrays import Ints
from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.tars import BadTarError, TarReader

_BLOCK = 512
_PLAIN = re.compile(rb"sa_[1-9]\d{0,15}\.(?:jpg|json)\0")
_SIZE = re.compile(rb"[0-7]{11}\0")
_END = bytes(_BLOCK)
_NONE = -1

ReadRange = Callable[[int, int], bytes]
"""Function that reads a number of bytes of a tar from an offset, or fewer bytes at the end of the tar."""


Places = Ints
"""Byte ranges of a shard's images, (N, 4) int64: offset and size of the JPEG, and those of the JSON.

The offset of a missing JPEG is `_NONE`. An image takes only 32 bytes, because a process keeps the ranges for all shards
in its window in memory.
"""


def find_places(tar: Location, read: ReadRange) -> Places:
    """Return the byte ranges of the images in a tar, in the tar's order. This reads only the headers.

    Raises `DamagedDatasetError` if the file is not the tar of a shard.
    """
    try:
        found = _paired(_plain_members(read))
    except _OtherTarError:
        found = _paired(_any_members(tar, read))
    return found


class _OtherTarError(Exception):
    """A tar that segmint did not write, which may still be valid."""


def _paired(members: Iterator[tuple[str, int, int]]) -> Places:
    found = array("q")
    jpeg = _NONE, 0
    for name, offset, size in members:
        if name.endswith(".jpg"):
            jpeg = offset, size
        elif name.endswith(".json"):
            found.extend((*jpeg, offset, size))
            jpeg = _NONE, 0
    return np.array(found, np.int64).reshape(-1, 4)


def _plain_members(read: ReadRange) -> Iterator[tuple[str, int, int]]:
    """Yield the name, offset, and size of each file in a tar from a build. This is ten times as fast as `tarfile`.

    Raises `_OtherTarError` if the tar has any other form.
    """
    offset = 0
    while (header := read(offset, _BLOCK)) != _END:
        name = _PLAIN.match(header)
        plain = header[156:157] == b"0" and header[257:262] == b"ustar" and _SIZE.match(header, 124)
        if name is None or not plain:
            raise _OtherTarError
        size = int(header[124:135], 8)
        if size > MOST_MEMBER_BYTES:
            raise _OtherTarError
        yield name[0][:-1].decode("ascii"), offset + _BLOCK, size
        offset += _BLOCK + -(-size // _BLOCK) * _BLOCK


def _any_members(tar: Location, read: ReadRange) -> Iterator[tuple[str, int, int]]:
    """Yield the name, offset, and size of each file in a tar that segmint may not have written."""
    try:
        for member in TarReader(_Ranges(read)):
            check_member(tar, member)
            yield member.name, member.offset_data, member.size
    except BadTarError as error:
        raise DamagedDatasetError(f"{tar} is not a readable shard: {error}") from error


class _Ranges:
    """Seekable stream over a tar, which is read range by range."""

    def __init__(self, read: ReadRange) -> None:
        self._read = read
        self._position = 0

    def seekable(self) -> bool:
        return True

    def seek(self, position: int) -> None:
        self._position = position

    def read(self, size: int, /) -> bytes:
        data = self._read(self._position, size)
        self._position += len(data)
        return data


_THREADS = 4
_KNOWN = ["id", "width", "height"]


class ImageRow(Mapping[str, Any]):
    """Row of the images table that reads each value on access, and is pickled as a dictionary.

    A `DataLoader` worker pickles rows in a thread that drops exceptions, and the training loop would then wait forever.
    Therefore, pickling a row never raises. If a value can't be read, unpickling the row raises the error.
    """

    def __init__(self, shard: "OpenShard", index: int) -> None:
        self._shard = shard
        self._index = index

    def __getitem__(self, name: str) -> Any:
        known = self._shard.known.get(name)
        if known is not None:
            return known[self._index].as_py()
        table = self._shard.table
        if name not in table.column_names:
            raise KeyError(name)
        try:
            return table.column(name)[self._index].as_py()
        except UnicodeDecodeError as error:  # Arrow decodes text on access
            raise self._shard.unreadable(error) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._shard.table.column_names)

    def __len__(self) -> int:
        return len(self._shard.table.column_names)

    def __repr__(self) -> str:
        return repr(dict(self))

    def __reduce__(self) -> tuple[Any, ...]:
        try:
            return dict, (dict(self),)
        except Exception as error:  # noqa: BLE001 - nobody would see it
            known = isinstance(error, SegmintError | OSError)
            return _raise, (error if known else self._shard.unreadable(error),)


def _raise(error: Exception) -> NoReturn:
    raise error


class ShardTar:
    """A shard's tar on the local disk: either the dataset's own file or a cached copy.

    If another process deletes the cached copy, this process can still read it through the open file.
    """

    def __init__(self, tar: Location, entry: FileEntry, cache: ShardCache | None, check: bool) -> None:
        """Open the tar. With `check`, hash it first. If `cache` is None, the tar must be a local file."""
        self._tar, self._entry, self._cache = tar, entry, cache
        self._lock = threading.Lock()
        if cache is None and check:
            check_file(tar, entry)
        self._file: BinaryIO | None = self._open(check)

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes starting at `offset`, or fewer at the end of the file."""
        if self._file is None:
            self._file = self._open(check=False)
        if hasattr(os, "pread"):
            return os.pread(self._file.fileno(), size, offset)
        with self._lock:  # on Windows, threads share the file's position
            self._file.seek(offset)
            return self._file.read(size)

    def keep(self) -> None:
        """Mark the cached copy as recently used.

        If another process has deleted the copy, its space is only freed when this process closes it. In that case,
        close the copy. The next read then fetches the shard again.
        """
        if self._cache is not None and not self._cache.use(self._entry):
            self.close()

    def renew(self) -> bool:
        """Delete a damaged copy, so that the next read fetches it again. Return False if there is no cache."""
        if self._cache is None:
            return False
        self.close()
        self._cache.discard(self._entry)
        return True

    def close(self) -> None:
        """Close the file. The next read opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self, check: bool) -> BinaryIO:
        return self._tar.open() if self._cache is None else self._cache.open(self._tar, self._entry, check)


class OpenShard:
    """Open shard. `sample` reads any of its images, or of those in the dataset's subset.

    `known` contains the ids and sizes of all images.
    """

    def __init__(self, dataset: Dataset, commit: Commit, cache: ShardCache | None, check: bool) -> None:
        """Read the images' ids and sizes, and the headers of the tar. With `check`, hash the tar first.

        Raises `DamagedDatasetError` if the shard doesn't match its commit, and `NotFoundError` if a file is gone.
        """
        entry = commit.file("shards")
        self._location = dataset.location / entry.path
        self._dataset, self._commit = dataset, commit
        table = dataset.table(commit, "images", _KNOWN)
        self.known = {name: table[name].combine_chunks() for name in _KNOWN}
        self._rows: Sequence[int] = range(len(self.known["id"]))  # rows of the images to read
        if dataset.subset is not None:
            chosen = dataset.subset.inside(commit.ordinals)
            self._rows = np.flatnonzero(np.isin(self.known["id"].to_numpy(), chosen)).tolist()
        self._labels = dataset.labels(commit)
        self._tar = ShardTar(self._location, entry, cache, check)
        try:
            self._places = find_places(self._location, self._tar.read)
        except DamagedDatasetError:
            if not self._tar.renew():
                raise
            self._places = find_places(self._location, self._tar.read)

    def __len__(self) -> int:
        return len(self._rows)

    @cached_property
    def table(self) -> pa.Table:
        """The whole images table, which is read on the first access to a column other than the ids and sizes."""
        try:
            table = self._dataset.table(self._commit, "images")
        except DamagedDatasetError as error:
            raise with_help(error, self._commit.shard, self._dataset) from error
        except NotFoundError as error:
            shard, generation = self._commit.shard, self._commit.generation
            raise changed(self._dataset, shard, generation) or self.unreadable(error) from error
        rows = len(self.known["id"])
        if table.num_rows != rows:
            raise self.unreadable(f"the table of images had {rows} rows before, and {table.num_rows} now")
        for name in ADDED_COLUMNS:
            if name not in table.column_names:
                table = table.append_column(name, pa.nulls(rows))
        return table

    def unreadable(self, reason: object) -> DamagedDatasetError:
        """Return the error for a damaged images table."""
        file = self._dataset.location / self._commit.file("images").path
        return with_help(DamagedDatasetError(f"{file}: {reason}"), self._commit.shard, self._dataset)

    def sample(self, row: int) -> Sample:
        """Read an image, counted from 0, with its masks.

        If a cached copy is damaged, it is fetched again once.
        """
        try:
            return self._read(self._rows[row])
        except DamagedDatasetError:
            if not self._tar.renew():
                raise
            self._places = find_places(self._location, self._tar.read)
            return self._read(self._rows[row])

    def keep(self) -> None:
        """Mark the shard as in use."""
        self._tar.keep()

    def close(self) -> None:
        self._tar.close()

    def _read(self, row: int) -> Sample:
        if row >= len(self._places):
            raise not_where_it_should_be(self._location, self.known["id"][row].as_py())
        picture, picture_size, annotations, size = self._places[row].tolist()
        jpeg = None if picture == _NONE else self._bytes(picture, picture_size)
        return make_sample(self._location, ImageRow(self, row), jpeg, self._bytes(annotations, size), self._labels)

    def _bytes(self, offset: int, size: int) -> bytes:
        data = self._tar.read(offset, size)
        if len(data) != size:
            raise DamagedDatasetError(f"{self._location} is not a readable shard: unexpected end of data")
        return data


class OpenShards:
    """Shards that a process has open for the current steps, or that its threads are opening for later steps."""

    def __init__(self, open_one: Callable[[int], OpenShard], first: float) -> None:
        """Open shards with `open_one`, in an order that differs between processes.

        `first` (0 to 1) is the share of the new shards that this process opens last. It differs between processes, so
        that they don't all fetch the same shard first.
        """
        self._open_one = open_one
        self._first = first
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="shards")
        self._shards: dict[int, Future[OpenShard]] = {}

    def hold(self, shards: Sequence[int], ahead: Collection[int]) -> None:
        """Open the given shards or keep them open, start opening those in `ahead`, and close all others."""
        wanted = {*shards, *ahead}
        for shard in [shard for shard in self._shards if shard not in wanted]:
            self._close(self._shards.pop(shard))
        for future in self._shards.values():
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().keep()
        turn = int(self._first * len(shards))
        for shard in [*shards[turn:], *shards[:turn], *ahead]:
            if shard not in self._shards:
                self._shards[shard] = self._pool.submit(self._open_one, shard)

    def __getitem__(self, shard: int) -> OpenShard:
        return self._shards[shard].result()

    def close(self) -> None:
        """Close all shards.

        This doesn't wait for shards that are still being opened; each of them is closed once it's open.
        """
        for future in self._shards.values():
            self._close(future)
        self._shards.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)

    @staticmethod
    def _close(future: Future[OpenShard]) -> None:
        def close(done: Future[OpenShard]) -> None:
            if not done.cancelled() and done.exception() is None:
                done.result().close()

        future.cancel()
        future.add_done_callback(close)


def open_shard(
    dataset: Dataset, commit: Commit | None, key: tuple[int, int], cache: ShardCache | None, check: bool
) -> OpenShard:
    """Open a shard, given by its `key` (shard, generation) and its `commit`, which is None if the commit is gone.

    Raises `UsageError` if another generation has replaced it, and `DamagedDatasetError` if it is damaged or missing.
    """
    shard, generation = key
    try:
        if commit is None:
            raise NotFoundError(f"the commit of generation {generation} is missing")
        return OpenShard(dataset, commit, cache, check)
    except NotFoundError as error:
        raise changed(dataset, shard, generation) or DamagedDatasetError(str(error)) from error


def changed(dataset: Dataset, shard: int, generation: int) -> UsageError | None:
    """Return the error for a shard that a newer generation has replaced, or None if `generation` is the latest."""
    newer = max(dataset.log.generations_of(shard), default=0)
    if newer <= generation:
        return None
    return UsageError(
        f"shard {shard} of {dataset.location} was changed while it was read: generation {newer} replaced "
        f"{generation}. Open the dataset again; a state from before does not fit it"
    )


def with_help(error: DamagedDatasetError, shard: int, dataset: Dataset) -> DamagedDatasetError:
    """Return a copy of the error whose message also names the shard and the dataset, and says what to do."""
    text = str(error)
    return DamagedDatasetError(f"shard {shard} of {dataset.location}: {text if HELP in text else f'{text}. {HELP}'}")
