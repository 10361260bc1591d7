"""Image embeddings of a frozen encoder on a local disk, within a bound.

An embedding's file is `<dataset>/<weights>/<JPEG's SHA-256>.npy`, written whole or not at all, with a checksum at its
end. It is found by the bytes of the JPEG, so that of an image that a takedown or a redaction changed none is used
again; what a dataset no longer has is deleted when a run opens the cache. What is full stays as it is: each image is
drawn about as often as any other, and leaving out the one used longest ago would leave out the one that comes next.
"""

import hashlib
import io
from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from segmint.infra.log import get_logger
from segmint.infra.storage.errors import NotFoundError, StorageFaultError
from segmint.infra.storage.location import Location

SHAPE = (1, 256, 64, 64)
_CHECKSUM = 32  # bytes of the SHA-256 at the file's end
BYTES = 128 + 4 * 256 * 64 * 64 + _CHECKSUM
"""Of the file of one embedding."""

LOOKS = "looks"
"""The folder of looks at shards, beside the embeddings: see `looks.py`."""

_EMBEDDINGS = "embeddings"
_NPY = ".npy"


class EmbeddingCache:
    """The embeddings of one encoder and one precision, in a local folder of at most so many bytes."""

    def __init__(self, folder: Location, weights: str, most_bytes: float, sharers: int = 1) -> None:
        """`weights` names what embeds: a hash of the encoder's weights, device and precision.

        `sharers` are the processes that use the folder at once: each may fill an equal part of the room that is left.
        """
        self._folder = folder / _EMBEDDINGS
        self._sharers = sharers
        self._weights = weights
        self._most = most_bytes
        self._known: dict[str, int] = {}  # bytes, by path
        self._full = False
        for entry in self._folder.walk(include_temporary=True):
            self._known[entry.name] = entry.size
        self._used = sum(self._known.values())
        if sharers > 1 and self._used < most_bytes:
            self._most = self._used + (most_bytes - self._used) / sharers

    @property
    def used(self) -> int:
        """Bytes of all embeddings in the folder."""
        return self._used

    def has(self, dataset: str, jpeg: bytes) -> bool:
        """Whether there is the embedding of a JPEG, by the dataset's key and the SHA-256 of its bytes."""
        return self._is_there(self._path(dataset, jpeg))

    def get(self, dataset: str, jpeg: bytes) -> Tensor | None:
        """The embedding (1, 256, 64, 64) float32 of a JPEG; None if there is none that can be used."""
        path = self._path(dataset, jpeg)
        if not self._is_there(path):
            return None
        try:
            data = (self._folder / path).read(max_bytes=2 * BYTES)
            if hashlib.sha256(data[:-_CHECKSUM]).digest() != data[-_CHECKSUM:]:
                raise ValueError("its checksum is another")
            array = np.load(io.BytesIO(data), allow_pickle=False)
            if array.shape != SHAPE or array.dtype != np.float32:
                raise ValueError("it has another shape")
        except (NotFoundError, ValueError, EOFError, OSError):
            self._forget(path)
            return None
        return torch.from_numpy(array)

    def put(self, dataset: str, jpeg: bytes, features: Tensor) -> None:
        """Keep an embedding if there is room. A full disk is a warning, once, and the run goes on without."""
        path = self._path(dataset, jpeg)
        if self._full or self._used + BYTES > self._most or self._is_there(path):
            return
        buffer = io.BytesIO()
        np.save(buffer, features.detach().to("cpu", torch.float32).numpy(), allow_pickle=False)
        data = buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest()
        try:
            (self._folder / path).put(data)
        except StorageFaultError as error:
            self._full = True
            get_logger("train").warning("cache_full", error=str(error), note="the run goes on; nothing more is cached")
            return
        self._known[path] = len(data)
        self._used += len(data)

    def purge(self, dataset: str, jpegs: Collection[bytes]) -> int:
        """Delete the embeddings of a dataset's JPEGs that are not among these; return how many there were.

        Temporary files that a killed run has left go, too.
        """
        kept = {jpeg.hex() for jpeg in jpegs}
        stale = [
            path
            for path in self._known
            if path.startswith(f"{dataset}/")
            and (path.rpartition("/")[2].removesuffix(_NPY) not in kept or not path.endswith(_NPY))
        ]
        for path in stale:
            self._forget(path)
        return len(stale)

    def make_room(self, images: int) -> None:
        """Delete embeddings of other weights until there is room for those of so many images, or for all of the bound.

        Where the bound is lower than it was, embeddings of these weights go, too.
        """
        own = sum(size for path, size in self._known.items() if self._is_own(path))
        wanted = min(self._most, max(own, images * BYTES))
        for path in sorted(self._known, key=lambda path: (self._is_own(path), path)):
            others_and_room = self._used - own + wanted if not self._is_own(path) else self._used
            if others_and_room <= self._most:
                return
            self._forget(path)

    def _is_there(self, path: str) -> bool:
        """Whether there is a file; those that other processes have put meanwhile count on their part of the room."""
        if path not in self._known and self._sharers > 1 and (self._folder / path).exists():
            self._known[path] = 0
        return path in self._known

    def _is_own(self, path: str) -> bool:
        return path.split("/")[1:2] == [self._weights]

    def _forget(self, path: str) -> None:
        (self._folder / path).delete()
        self._used -= self._known.pop(path, 0)

    def _path(self, dataset: str, jpeg: bytes) -> str:
        return f"{dataset}/{self._weights}/{jpeg.hex()}{_NPY}"


def purge_looks(folder: Location, dataset: str, tars: Collection[str]) -> None:
    """Delete the looks at shards of a dataset whose tars, by SHA-256, are not among these."""
    kept = {f"{sha256}.npz" for sha256 in tars}
    for entry in (folder / LOOKS / dataset).list(include_temporary=True):
        if entry.name not in kept:
            (folder / LOOKS / dataset / entry.name).delete()
