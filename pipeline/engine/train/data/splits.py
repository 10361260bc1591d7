"""Split into training and held-out images by a hash of the source. Similar images are on the same side.

A group of similar images is held out only if the hash of *each* image in the group qualifies. This rule protects later
rounds of training. Suppose that an earlier run used the same share, but had fewer images. Its groups had fewer members,
so fewer hashes had to qualify. Every image that is held out now, if that run had it, was therefore held out there, too,
and no weights of the lineage were trained on it or on a similar image. docs/decisions/0022-splits.md gives the reasons.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from segmint.operators.similar.clusters import find_groups
from segmint.pipeline.engine.train.data.images import TrainingImages

_SALT = b"segmint held-out 1\0"
_RANGE = 1 << 64


def held_out(images: TrainingImages, share: float) -> NDArray[np.bool_]:
    """Decide which of the N images are held out, (N,) bool."""
    sources, same = np.unique(images.source_sha256, axis=0, return_inverse=True)
    alone = np.array([is_held_out(source.tobytes(), share) for source in sources], bool)
    groups = _similar_groups(images)
    trained = np.zeros(len(images) + 1, bool)
    np.logical_or.at(trained, groups, ~alone[same.reshape(-1)])
    held: NDArray[np.bool_] = ~trained[groups]
    return held


def _similar_groups(images: TrainingImages) -> NDArray[np.int64]:
    """Group the N images by similarity. Returns a group number per image, (N,)."""
    sources, first, same = np.unique(images.source_sha256, axis=0, return_index=True, return_inverse=True)
    # Images with the same source belong to one group, and so do images with the same JPEG, because two catalogs may
    # encode one source differently.
    groups = find_groups(images.hashes[first], lambda rows: images.thumbnails[first[rows]], np.arange(len(sources)))
    _, jpegs = np.unique(images.jpeg_sha256, axis=0, return_inverse=True)
    return _joined(groups[same.reshape(-1)], jpegs.reshape(-1))


def is_held_out(source_sha256: bytes, share: float) -> bool:
    """Return whether an image would be held out on its own. `source_sha256` is its source's SHA-256, 32 bytes."""
    value = int.from_bytes(hashlib.sha256(_SALT + source_sha256).digest()[:8], "big")
    return value < share * _RANGE


def digest_of_sources(images: TrainingImages, chosen: NDArray[np.bool_]) -> tuple[int, str]:
    """Count the distinct sources of the `chosen` images, (N,) bool, and hash their sorted list with SHA-256."""
    sources = np.unique(images.source_sha256[chosen], axis=0)
    return len(sources), hashlib.sha256(sources.tobytes()).hexdigest()


def _joined(groups: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.int64]:
    """Merge two groupings: images that share a group in either one share a group in the result."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = int(groups.max(initial=-1)) + 1
    size = count + int(others.max(initial=-1)) + 1
    links = coo_array((np.ones(len(groups), bool), (groups, count + others)), shape=(size, size))
    labels: NDArray[np.int64] = connected_components(links, directed=False)[1].astype(np.int64)
    return labels[groups]
