"""Near copies of removed pictures among committed images, by perceptual hash. They are listed, but never refused."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.tombstones import by_image, read_fingerprints, read_tombstones
from segmint.catalogs.layout import DamagedDatasetError, image_stem
from segmint.infra.arrays import Bytes, Ints
from segmint.infra.progress import track
from segmint.infra.stopping import map_ahead
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.operators.rows import IMAGES
from segmint.operators.similar.near import FRAME, HASHES, NO_HASH, Hashes

BITS = 4
"""Maximum number of bits (of 64) in which a near copy's hash differs from a hash of the removed picture."""

_COLUMNS = ["ordinal", "image_id", "hashes"]
_APART = 65  # more bits than a hash has
_BLOCK = 1 << 12  # removed pictures that are compared at a time
_THREADS = 16
_READ_AHEAD = 64


class NearCopy(NamedTuple):
    """A committed image that looks like a removed picture."""

    id: int
    image_id: str
    of: int  # number of the removed picture
    tombstone: str  # name of the tombstone's file; "" if the picture is still to be removed
    bits: int  # number of bits in which the two nearest hashes differ

    def line(self) -> str:
        """Describe the near copy in one line."""
        why = f" (tombstones/{self.tombstone})" if self.tombstone else ""
        pair = f"{image_stem(self.id)} {self.image_id} looks like {image_stem(self.of)}{why}"
        return f"{pair}: {self.bits} of 64 bits differ"


@dataclass(frozen=True)
class WantedPictures:
    """R pictures to find near copies of: their numbers, tombstones, and hashes (R, 9) uint64.

    `others` contains pairs of an image and a tombstone. A person has decided for each pair that the image doesn't show
    a picture of the tombstone.
    """

    ids: tuple[int, ...]
    tombstones: tuple[str, ...]
    hashes: Hashes
    others: frozenset[tuple[int, str]] = frozenset()


def wanted_pictures(dataset: Location, only: Collection[int] | None = None) -> WantedPictures:
    """Return the pictures that were taken down from a dataset. If `only` is given, return only these numbers."""
    shards = read_fingerprints(dataset).values()
    known = {id: each.views() for id, each in by_image(shards).items()}
    ids, names, hashes = [], [], [_NONE]
    for tombstone in read_tombstones(dataset):
        for image in tombstone.images:
            if image.id in known and len(known[image.id]) and (only is None or image.id in only):
                ids.append(image.id)
                names.append(tombstone.name)
                hashes.append(known[image.id])
    others = frozenset((each.id, each.tombstone) for shard in shards for each in shard.others)
    return WantedPictures(tuple(ids), tuple(names), np.concatenate(hashes), others)


def pictures_at(dataset: Location, commits: Iterable[Commit], ordinals: Collection[int]) -> WantedPictures:
    """Return images that haven't been taken down yet, given by ordinal, in the form of `WantedPictures`."""
    wanted = np.sort(np.fromiter(ordinals, np.int64, len(ordinals)))
    ids, hashes = list[int](), [_NONE]
    for commit in commits:
        if np.diff(np.searchsorted(wanted, commit.ordinals))[0]:
            numbers, _, own = _read(dataset, commit, pa.array(wanted))
            ids += [int(ordinal) + 1 for ordinal in numbers]
            hashes.append(own)
    return WantedPictures(tuple(ids), ("",) * len(ids), np.concatenate(hashes))


def near_copies(dataset: Location, commits: Iterable[Commit], wanted: WantedPictures) -> Iterator[NearCopy]:
    """Yield the images of these commits that look like a wanted picture, in order, each with the nearest picture.

    Two images look alike if the hash of one image's frame differs in at most `BITS` bits from any hash of the other.
    Only three columns of the images tables are read. Raises `DamagedDatasetError` if a table can't be read.
    """
    if not wanted.ids:
        return
    reads = map_ahead(lambda each: _read(dataset, each), commits, _THREADS, _READ_AHEAD, "near")
    for ordinals, names, hashes in track(reads, "shards"):
        apart = distances(hashes, wanted.hashes)
        for row in np.flatnonzero((apart <= BITS).any(axis=1)).tolist():
            id = int(ordinals[row]) + 1
            for picture in np.argsort(apart[row], kind="stable").tolist():
                of, tombstone, bits = wanted.ids[picture], wanted.tombstones[picture], int(apart[row, picture])
                if bits <= BITS and of != id and (id, tombstone) not in wanted.others:
                    yield NearCopy(id, names[row], of, tombstone, bits)
                    break


def distances(one: Hashes, other: Hashes) -> Bytes:
    """Return the distances between N and R images in bits, (N, R) uint8, or 65 if unknown.

    A distance is the smallest distance between the frame of one image and any view of the other. The hashes `one` (N,
    9) and `other` (R, 9) come from `view_hashes`. Two crops, or two turned frames, are never compared.
    """
    found = np.full((len(one), len(other)), _APART, np.uint8)
    for low in range(0, len(other), _BLOCK):
        part = slice(low, low + _BLOCK)
        for view in range(HASHES):
            for left, right in {(FRAME, view), (view, FRAME)}:
                ours, theirs = one[:, left, None], other[None, part, right]
                apart = np.where((ours == NO_HASH) | (theirs == NO_HASH), _APART, np.bitwise_count(ours ^ theirs))
                np.minimum(found[:, part], apart, out=found[:, part], casting="unsafe")
    return found


_NONE: Hashes = np.empty((0, HASHES), np.uint64)


def _read(dataset: Location, commit: Commit, ordinals: pa.Array | None = None) -> tuple[Ints, list[str], Hashes]:
    """Return the ordinals, image_ids, and (N, 9) hashes of a shard's images that have hashes.

    If `ordinals` is given, other images are left out.
    """
    file = dataset / commit.file("images").path
    try:
        with file.open() as stream:
            table = pq.read_table(stream, columns=_COLUMNS).cast(pa.schema([IMAGES.field(name) for name in _COLUMNS]))
    except (pa.ArrowException, ValueError, OSError, NotFoundError) as error:
        raise DamagedDatasetError(f"{file} cannot be read: {error}; `segmint repair` may restore it") from error
    table = table.filter(pc.equal(pc.list_value_length(table.column("hashes")), HASHES))
    if ordinals is not None:
        table = table.filter(pc.is_in(table.column("ordinal"), value_set=ordinals))
    hashes = table.column("hashes").combine_chunks().flatten().to_numpy().reshape(-1, HASHES)
    return table.column("ordinal").to_numpy(), table.column("image_id").to_pylist(), hashes
