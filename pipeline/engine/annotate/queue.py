"""Queue of an annotation session: the images to annotate, their order, and which of them have two assignments."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from segmint.catalogs.dataset.annotations.assignments import Merged
from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.dataset.tables import DatasetTables, check_selection
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.pipeline.quality.study.files import MANIFEST, kind_of, read_json
from segmint.pipeline.quality.study.kind import StudyKind

_STEP = 4096  # ids per call of `is_open`


Order = Literal["number", "fewest", "lowest", "random"]
"""Order in which images are leased to annotators. All annotators share the same `random` order."""

_SQL: dict[Order, str] = {
    "number": "id",
    "fewest": "masks, id",
    "lowest": "statistics.mean_predicted_iou NULLS LAST, id",
    "random": "id",
}


@dataclass(frozen=True)
class QueueOptions:
    """Selection and order of the images. `overlap` is the share of images with two assignments."""

    select: str | None = None
    order: Order = "number"
    study: Location | None = None
    overlap: float = 0.0


@dataclass(frozen=True)
class Queue:
    """Ids of the images to annotate, in order. `twice` marks images with two assignments.

    `shards` contains the shard of each image. `merged` maps image ids to the merges that are known so far.
    """

    ids: NDArray[np.int64]
    twice: NDArray[np.bool_]
    shards: NDArray[np.int64]
    merged: dict[int, Merged]

    @cached_property
    def _ranks(self) -> NDArray[np.int64]:
        """Positions of the ids when sorted."""
        return np.argsort(self.ids, kind="stable")

    @cached_property
    def _sorted(self) -> NDArray[np.int64]:
        return self.ids[self._ranks]

    def __len__(self) -> int:
        return int(self.ids.size)

    def rank(self, image: int) -> int | None:
        """Return an image's rank in the queue, or None if it isn't queued."""
        place = int(np.searchsorted(self._sorted, image))
        if place == self.ids.size or self._sorted[place] != image:
            return None
        return int(self._ranks[place])

    def assignments(self, image: int) -> int:
        """Return the number of assignments of an image: 1 or 2."""
        rank = self.rank(image)
        return 2 if rank is not None and self.twice[rank] else 1

    def after(self, image: int | None, is_open: Callable[[NDArray[np.int64]], NDArray[np.bool_]]) -> Iterator[int]:
        """Yield the open images after `image` in the queue, and then those before it.

        If `image` is None, yields all open images from the start. `is_open` receives many ranks per call.
        """
        rank = None if image is None else self.rank(image)
        first = 0 if rank is None else rank + 1
        last = len(self) if rank is None else rank
        for start, stop in ((first, len(self)), (0, min(first, last))):
            for begin in range(start, stop, _STEP):
                ranks = np.arange(begin, min(begin + _STEP, stop))
                yield from self.ids[ranks[is_open(ranks)]].tolist()


def make_queue(tables: DatasetTables, manifest: DatasetManifest, options: QueueOptions) -> Queue:
    """Build the queue of a dataset. Raises `UsageError` if the condition, the study, or the share is invalid."""
    if not 0 <= options.overlap <= 1:
        raise UsageError(f"--overlap {options.overlap:g}: expected a share of the images, from 0 to 1")
    condition = "true" if options.select is None else check_selection(tables, options.select)
    found = tables.query(
        "SELECT id, shard, submission.assignment AS assignment, submission.n AS n FROM images "
        f"WHERE {condition} "
        f"ORDER BY {_SQL[options.order]}"
    )
    ids, shards = (found.column(name).to_numpy().astype(np.int64) for name in ("id", "shard"))
    merged = {row["id"]: row for row in found.filter(pc.field("assignment").is_valid()).to_pylist()}
    if options.study is not None:
        drawn = _drawn(options.study, manifest)
        chosen = np.isin(ids, drawn)
        ids, shards = ids[chosen], shards[chosen]
    if options.order == "random":
        shuffled = np.argsort(_shares(ids, f"order of {manifest.config_sha256}"), kind="stable")
        ids, shards = ids[shuffled], shards[shuffled]
    if not ids.size:
        raise UsageError("no images to annotate: none match --select and --study")
    return Queue(ids, _shares(ids, f"overlap of {manifest.config_sha256}") < options.overlap, shards, merged)


def _drawn(study: Location, manifest: DatasetManifest) -> NDArray[np.int64]:
    """Return the ids of a study's images. Raises `UsageError` if it isn't a study of this dataset's masks."""
    if kind_of(study) is not StudyKind.MASKS:
        raise UsageError(f"--study {study} is not a study of masks")
    file = study / MANIFEST
    value = read_json(file, f"can't read --study {study}")
    try:
        of, ids = value["dataset"]["config_sha256"], [int(image["id"]) for image in value["images"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"--study {study}: {file.name} doesn't list the images of a study") from error
    if of != manifest.config_sha256:
        raise UsageError(f"--study {study} was drawn from another dataset")
    return np.array(ids, dtype=np.int64)


def _shares(ids: NDArray[np.int64], key: str) -> NDArray[np.float64]:
    """Return a pseudorandom number from 0 to 1 for each id, derived from the key with SplitMix64's mixing step."""
    seed = np.uint64(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big"))
    with np.errstate(over="ignore"):
        mixed = ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + seed
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    shares: NDArray[np.float64] = (mixed >> np.uint64(11)).astype(np.float64) / float(1 << 53)
    return shares
