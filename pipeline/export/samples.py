"""Deterministic random samples of a dataset's images, independent of shard layout, machine, and reading order."""

import hashlib
import heapq
from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from segmint.catalogs.dataset.reader import Dataset, Sample
from segmint.infra.progress import track


def draw_key(seed: int, image: int) -> bytes:
    """Return an image's draw key. A sample consists of the images with the lowest keys."""
    return hashlib.sha256(f"{seed}:{image}".encode()).digest()


def draw_images(dataset: Dataset, shards: Collection[int], count: int, seed: int) -> list[int]:
    """Draw `count` images from some shards, or all images if there are fewer. Return the ids in ascending order.

    Memory only grows with the number of images drawn.
    """
    numbers = (number for commit in dataset.commits(shards) for number in dataset.ids(commit))
    return sorted(heapq.nsmallest(count, numbers, key=lambda number: draw_key(seed, number)))


def read_images(dataset: Dataset, shards: Collection[int], images: Sequence[int] | None) -> Iterator[Sample]:
    """Yield the samples of the shards in order: all samples, or only those with an id in `images` (ascending).

    Shards without any of `images` aren't read.
    """
    for commit in track(dataset.commits(shards), "shards", len(shards)):
        if images is None:
            yield from dataset.shard(commit)
            continue
        start, stop = commit.ordinals
        inside = images[bisect_left(images, start + 1) : bisect_left(images, stop + 1)]
        if inside:
            yield from dataset.shard(commit, frozenset(inside))


def without_parts(sample: Sample) -> Sample:
    """Return a sample without masks that lie in a larger mask."""
    return replace(sample, masks=[mask for mask in sample.masks if mask.container is None])
