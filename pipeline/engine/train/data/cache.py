"""Cache of a frozen encoder's image embeddings on a local disk, with a maximum size.

An embedding is stored in `<dataset>/<weights>/<JPEG's SHA-256>.npy`. The file is written atomically and ends with a
checksum. Because the key is the JPEG's hash, a run never uses an old embedding after a redaction has changed the image.
When a run opens the cache, it deletes the files of images that the dataset no longer contains, for example after a
takedown.

Any number of processes can share a folder and its maximum size. A full cache doesn't evict anything: training draws all
images about equally often, so evicting the least recently used embedding would remove the embedding that is needed
next.
"""

import hashlib
import io
import math
from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from segmint.catalogs.dataset.training_cache import EMBEDDINGS, CacheSize, recount
from segmint.infra.log import get_logger
from segmint.infra.storage.errors import NotFoundError, StorageFaultError
from segmint.infra.storage.location import Location
from segmint.infra.uris import base_name
from segmint.model.sam.common import EMBEDDING_CHANNELS
from segmint.model.sam.geometry import SAM1

SHAPE = (1, EMBEDDING_CHANNELS, SAM1.embedding_size, SAM1.embedding_size)
_CHECKSUM = 32  # bytes of the SHA-256 at the file's end
BYTES = 128 + 4 * math.prod(SHAPE) + _CHECKSUM
"""Size in bytes of an embedding's file."""

_NPY = ".npy"


class EmbeddingCache:
    """Embeddings of one encoder and precision, in a local folder with a maximum size in bytes."""

    def __init__(self, folder: Location, weights: str, most_bytes: float) -> None:
        """Open the cache. `weights` combines the hash of the encoder's weights with the device and the precision."""
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
        """Return whether a JPEG's embedding is cached, given the dataset's key and the JPEG's SHA-256."""
        return self._file(dataset, jpeg).exists()

    def get(self, dataset: str, jpeg: bytes) -> Tensor | None:
        """Return a JPEG's embedding (1, 256, 64, 64) float32, or None if there is no usable one."""
        file = self._file(dataset, jpeg)
        try:
            data = file.read(max_bytes=2 * BYTES)
            if hashlib.sha256(data[:-_CHECKSUM]).digest() != data[-_CHECKSUM:]:
                raise ValueError("its checksum differs")
            array = np.load(io.BytesIO(data), allow_pickle=False)
            if array.shape != SHAPE or array.dtype != np.float32:
                raise ValueError("its shape differs")
        except NotFoundError:
            return None
        except (ValueError, EOFError, OSError):
            self._forget(file)
            return None
        return torch.from_numpy(array)

    def put(self, dataset: str, jpeg: bytes, features: Tensor) -> None:
        """Store an embedding if there is room. If the disk is full, log it once and stop caching."""
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
            get_logger("train").warning("cache_full", error=str(error), note="training continues without caching more")

    def purge(self, dataset: str, jpegs: Collection[bytes]) -> int:
        """Delete a dataset's embeddings unless their JPEG is in `jpegs`, and return the number of deleted files.

        Temporary files that a killed run left behind are deleted as well.
        """
        kept = {f"{jpeg.hex()}{_NPY}" for jpeg in jpegs}
        own = self._folder / dataset
        names = [entry.name for entry in own.walk(include_temporary=True)]
        stale = [name for name in names if base_name(name) not in kept]
        for name in stale:
            self._forget(own / name)
        return len(stale)

    def make_room(self, images: int) -> None:
        """Delete other weights' embeddings until `images` embeddings of these weights fit, up to the size limit.

        If the limit is now lower than the size of these weights' embeddings, some of these are deleted as well.
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
        """Delete a file and subtract its size from the cache's total."""
        with self._room.locked() as used:
            try:
                size = file.size()
            except NotFoundError:
                return
            file.delete()
            used.set(used.get() - size)

    def _file(self, dataset: str, jpeg: bytes) -> Location:
        return self._folder / f"{dataset}/{self._weights}/{jpeg.hex()}{_NPY}"
