"""Image embeddings of a frozen encoder on a local disk, within a bound.

An embedding's file is `<dataset>/<weights>/<JPEG's SHA-256>.npy`, written whole or not at all, with a checksum at its
end. It is found by the bytes of the JPEG, so that of an image that a takedown or a redaction changed none is used
again; what a dataset no longer has is deleted when a run opens the cache. Any number of processes share a folder and
its bound. What is full stays as it is: each image is drawn about as often as any other, and leaving out the one used
longest ago would leave out the one that comes next.
"""

import hashlib
import io
from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from segmint.catalogs.dataset.training_cache import EMBEDDINGS, CacheSize, recount
from segmint.infra.log import get_logger
from segmint.infra.storage.errors import NotFoundError, StorageFaultError
from segmint.infra.storage.location import Location
from segmint.infra.uris import base_name

SHAPE = (1, 256, 64, 64)
_CHECKSUM = 32  # bytes of the SHA-256 at the file's end
BYTES = 128 + 4 * 256 * 64 * 64 + _CHECKSUM
"""Of the file of one embedding."""

_NPY = ".npy"


class EmbeddingCache:
    """The embeddings of one encoder and one precision, in a local folder of at most so many bytes."""

    def __init__(self, folder: Location, weights: str, most_bytes: float) -> None:
        """`weights` names what embeds: a hash of the encoder's weights, device and precision."""
        self._root = folder
        self._folder = folder / EMBEDDINGS
        self._room = CacheSize(folder)
        self._weights = weights
        self._most = most_bytes
        self._full = False
        recount(folder)

    @property
    def used(self) -> int:
        """Bytes of all embeddings in the folder."""
        with self._room.locked() as used:
            return used.get()

    def has(self, dataset: str, jpeg: bytes) -> bool:
        """Whether there is the embedding of a JPEG, by the dataset's key and the SHA-256 of its bytes."""
        return self._file(dataset, jpeg).exists()

    def get(self, dataset: str, jpeg: bytes) -> Tensor | None:
        """The embedding (1, 256, 64, 64) float32 of a JPEG; None if there is none that can be used."""
        file = self._file(dataset, jpeg)
        try:
            data = file.read(max_bytes=2 * BYTES)
            if hashlib.sha256(data[:-_CHECKSUM]).digest() != data[-_CHECKSUM:]:
                raise ValueError("its checksum is another")
            array = np.load(io.BytesIO(data), allow_pickle=False)
            if array.shape != SHAPE or array.dtype != np.float32:
                raise ValueError("it has another shape")
        except NotFoundError:
            return None
        except (ValueError, EOFError, OSError):
            self._forget(file)
            return None
        return torch.from_numpy(array)

    def put(self, dataset: str, jpeg: bytes, features: Tensor) -> None:
        """Keep an embedding if there is room. A full disk is a warning, once, and the run goes on without."""
        file = self._file(dataset, jpeg)
        if self._full or file.exists():
            return
        buffer = io.BytesIO()
        np.save(buffer, features.detach().to("cpu", torch.float32).numpy(), allow_pickle=False)
        data = buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest()
        try:
            with self._room.locked() as used:
                before = used.get()
                if before + len(data) > self._most or file.exists():
                    return
                used.set(before + len(data))
                try:
                    file.put(data)
                except StorageFaultError:
                    used.set(before)
                    raise
        except (StorageFaultError, OSError) as error:
            self._full = True
            get_logger("train").warning("cache_full", error=str(error), note="the run goes on; nothing more is cached")

    def purge(self, dataset: str, jpegs: Collection[bytes]) -> int:
        """Delete the embeddings of a dataset's JPEGs that are not among these; return how many there were.

        Temporary files that a killed run has left go, too.
        """
        kept = {f"{jpeg.hex()}{_NPY}" for jpeg in jpegs}
        own = self._folder / dataset
        names = [entry.name for entry in own.walk(include_temporary=True)]
        stale = [name for name in names if base_name(name) not in kept]
        for name in stale:
            self._forget(own / name)
        return len(stale)

    def make_room(self, images: int) -> None:
        """Delete embeddings of other weights until there is room for those of so many images, or for all of the bound.

        Where the bound is lower than it was, embeddings of these weights go, too.
        """
        sizes = recount(self._root)
        used = sum(sizes.values())
        own = sum(size for path, size in sizes.items() if self._is_own(path))
        wanted = min(self._most, max(own, images * BYTES))
        for path in sorted(sizes, key=lambda path: (self._is_own(path), path)):
            others_and_room = used - own + wanted if not self._is_own(path) else used
            if others_and_room <= self._most:
                return
            self._forget(self._folder / path)
            used -= sizes[path]

    def _is_own(self, path: str) -> bool:
        return path.split("/")[1:2] == [self._weights]

    def _forget(self, file: Location) -> None:
        """Delete a file, and count its bytes as free."""
        with self._room.locked() as used:
            try:
                size = file.size()
            except NotFoundError:
                return
            file.delete()
            used.set(used.get() - size)

    def _file(self, dataset: str, jpeg: bytes) -> Location:
        return self._folder / f"{dataset}/{self._weights}/{jpeg.hex()}{_NPY}"
