"""Images drawn from a dataset by a seed: the same ones for any layout of shards, machine or order of reading."""

import hashlib
import heapq
from bisect import bisect_left
from collections.abc import Iterator, Sequence

from segmint.catalogs.dataset.reader import Dataset, Sample


def lot(seed: int, image: int) -> bytes:
    """What an image draws: those with the lowest lots are taken."""
    return hashlib.sha256(f"{seed}:{image}".encode()).digest()


def draw_images(dataset: Dataset, shards: range, count: int, seed: int) -> list[int]:
    """The numbers of `count` images of some shards, ascending, or of all where there are fewer.

    Memory is that of the images drawn.
    """
    numbers = (
        number
        for commit in dataset.commits(shards)
        for number in dataset.table(commit, "images", ["id"])["id"].to_pylist()
    )
    return sorted(heapq.nsmallest(count, numbers, key=lambda number: lot(seed, number)))


def read_images(dataset: Dataset, shards: range, images: Sequence[int] | None) -> Iterator[Sample]:
    """The samples of some shards in order: all, or these images (ascending); a shard with none of them is not read."""
    for commit in dataset.commits(shards):
        if images is None:
            yield from dataset.shard(commit)
            continue
        start, stop = commit.ordinals
        inside = images[bisect_left(images, start + 1) : bisect_left(images, stop + 1)]
        if inside:
            yield from dataset.shard(commit, frozenset(inside))
