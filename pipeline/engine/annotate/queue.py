"""Queue of an annotation session: the images and their order, leases, and progress.

Leases of images to annotators, so that two people don't start the same image.

Leases only avoid duplicate work. Submissions are safe without them.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc

from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.dataset.submissions import (
    Merged,
    Return,
    Submission,
    SubmissionError,
    SubmissionName,
    annotated_masks,
    carried,
    is_merged,
    latest_submissions,
    list_submissions,
    merged_assignment,
    read_returns,
    read_submission,
    submissions_of,
)
from segmint.catalogs.dataset.tables import DatasetTables, check_selection
from segmint.infra.arrays import Bools, Floats, Ints
from segmint.infra.errors import UsageError
from segmint.infra.stopping import map_ahead
from segmint.infra.storage.location import Location
from segmint.pipeline.engine.annotate.source import OpenImage
from segmint.pipeline.engine.study.files import MANIFEST, StudyKind, kind_of, read_json
from segmint.pipeline.quality.statistics.ratings import agreement, read_pairs

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

    ids: Ints
    twice: Bools
    shards: Ints
    merged: dict[int, Merged]

    @cached_property
    def _ranks(self) -> Ints:
        """Positions of the ids when sorted."""
        return np.argsort(self.ids, kind="stable")

    @cached_property
    def _sorted(self) -> Ints:
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

    def after(self, image: int | None, is_open: Callable[[Ints], Bools]) -> Iterator[int]:
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


def _drawn(study: Location, manifest: DatasetManifest) -> Ints:
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


def _shares(ids: Ints, key: str) -> Floats:
    """Return a pseudorandom number from 0 to 1 for each id, derived from the key with SplitMix64's mixing step."""
    seed = np.uint64(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big"))
    with np.errstate(over="ignore"):
        mixed = ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + seed
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    shares: Floats = (mixed >> np.uint64(11)).astype(np.float64) / float(1 << 53)
    return shares


LEASE_S = 900.0
"""Seconds after which a lease expires if the annotator sends no request for the image."""

Slot = tuple[int, int]
"""An image's id and an assignment."""


@dataclass(frozen=True)
class _Lease:
    annotator: str
    until: float


class Leases:
    """Leases of assignments, held by annotators. Thread-safe. `clock` returns seconds."""

    def __init__(self, seconds: float = LEASE_S, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._held: dict[Slot, _Lease] = {}

    def take(self, slot: Slot, annotator: str) -> bool:
        """Lease an assignment to an annotator, or renew the lease. Return True if the annotator now holds it."""
        with self._lock:
            if self._holder(slot) not in (None, annotator):
                return False
            self._held[slot] = _Lease(annotator, self._clock() + self.seconds)
            return True

    def holder(self, slot: Slot) -> str | None:
        """Return the annotator who holds an assignment's lease, or None."""
        with self._lock:
            return self._holder(slot)

    def renew(self, image: int, annotator: str) -> None:
        """Renew an annotator's leases of an image."""
        with self._lock:
            for assignment in (0, 1):
                if self._holder((image, assignment)) == annotator:
                    self._held[image, assignment] = _Lease(annotator, self._clock() + self.seconds)

    def release(self, image: int, annotator: str) -> None:
        """End an annotator's leases of an image."""
        with self._lock:
            for assignment in (0, 1):
                if self._holder((image, assignment)) == annotator:
                    del self._held[image, assignment]

    def of(self, annotator: str) -> list[Slot]:
        """Return an annotator's leased assignments, oldest lease first."""
        with self._lock:
            now = self._clock()
            mine = [
                (lease.until, slot)
                for slot, lease in self._held.items()
                if lease.annotator == annotator and lease.until > now
            ]
        return [slot for _, slot in sorted(mine)]

    def _holder(self, slot: Slot) -> str | None:
        lease = self._held.get(slot)
        if lease is None:
            return None
        if lease.until <= self._clock():
            del self._held[slot]
            return None
        return lease.annotator


_THREADS = 16
_AHEAD = 64


@dataclass(frozen=True)
class LatestSubmission:
    """Summary of an assignment's last submission, without its masks. `annotator` is None if the file is unreadable.

    `masks` counts all new masks, and `timed` only the masks that an annotator worked on. `mask_seconds` is the total
    time spent on these masks, and `seconds` the time spent on the image. `returned` is set if the owner returned the
    submission for revision.
    """

    name: SubmissionName
    annotator: str | None = None
    base: str = ""
    masks: int = 0
    timed: int = 0
    mask_seconds: float = 0.0
    seconds: float = 0.0
    saved_at: str = ""
    comment: str | None = None
    flag: bool = False
    returned: Return | None = None

    @classmethod
    def of(cls, submission: Submission) -> "LatestSubmission":
        """Summarize a submission."""
        seconds = sum(mask.seconds for mask in submission.masks)
        name = SubmissionName(submission.ordinal, submission.assignment, submission.n)
        return cls(
            name,
            submission.annotator,
            submission.base,
            len(submission.masks),
            len(annotated_masks(submission)),
            seconds,
            submission.seconds,
            submission.saved_at,
            submission.comment,
            submission.flag,
        )


class ProgressBoard:
    """Record of the last submission for each assignment of each image. Thread-safe.

    The board reads all images when the server starts. Because other servers may write to the same dataset, it reads an
    image again before leasing it.
    """

    def __init__(self, dataset: Location) -> None:
        """Read the existing submissions. Raises `StorageFaultError` if the store fails."""
        self._dataset = dataset
        self._lock = threading.Lock()
        self._done: dict[int, dict[int, LatestSubmission]] = {}  # by ordinal and assignment
        self._agreed: dict[tuple[SubmissionName, SubmissionName], tuple[float, ...] | None] = {}
        names = list[SubmissionName]()
        for assignments in latest_submissions(list_submissions(dataset)).values():
            names += assignments.values()
        returned = read_returns(dataset)
        for done in map_ahead(self._read, names, _THREADS, _AHEAD, "submissions"):
            again = replace(done, returned=returned.get(done.name))
            self._done.setdefault(done.name.ordinal, {})[done.name.assignment] = again

    def assignments(self, image: int) -> dict[int, LatestSubmission]:
        """Return the last known submission of each assignment of an image."""
        with self._lock:
            return dict(self._done.get(image - 1, {}))

    def returned_to(self, annotator: str) -> dict[int, int]:
        """Return the assignments that the owner returned to an annotator, by image, in ascending order of image id."""
        found = []
        with self._lock:
            for assignments in self._done.values():
                for done in assignments.values():
                    if done.returned is not None and done.annotator == annotator:
                        found.append(done.name)
        return {name.ordinal + 1: name.assignment for name in sorted(found)}

    def submitted_by(self, annotator: str) -> list[int]:
        """Return the ids of the images with an assignment whose last submission is by an annotator."""
        with self._lock:
            return [
                ordinal + 1
                for ordinal, assignments in self._done.items()
                if any(done.annotator == annotator for done in assignments.values())
            ]

    def answered(self) -> list[int]:
        """Return the ids of all images with submissions."""
        with self._lock:
            return [ordinal + 1 for ordinal in self._done]

    def refresh(self, image: int) -> dict[int, LatestSubmission]:
        """Read an image's submissions from the store again, and return the last one of each assignment."""
        known = self.assignments(image)
        found = latest_submissions(submissions_of(self._dataset, image - 1)).get(image - 1, {})
        assignments, returned = {}, {}
        if found:
            returned = read_returns(self._dataset, image - 1)
        for assignment, name in found.items():
            latest = known.get(assignment)
            if latest is None or latest.name != name:
                latest = self._read(name)
            assignments[assignment] = replace(latest, returned=returned.get(name))
        with self._lock:
            for assignment, now in self._done.get(image - 1, {}).items():
                # A submission or return recorded in the meantime is newer than the listing of the store.
                if now != known.get(assignment) and (
                    assignment not in assignments
                    or assignments[assignment].name.n < now.name.n
                    or (assignments[assignment].name == now.name and now.returned is not None)
                ):
                    assignments[assignment] = now
            if assignments:
                self._done[image - 1] = assignments
            else:
                self._done.pop(image - 1, None)
        return dict(assignments)

    def put(self, submission: Submission) -> None:
        """Record a saved submission."""
        with self._lock:
            assignments = self._done.setdefault(submission.ordinal, {})
            before = assignments.get(submission.assignment)
            if before is None or before.name.n < submission.n:
                assignments[submission.assignment] = LatestSubmission.of(submission)

    def forget(self, image: int) -> None:
        """Drop an image that was taken down."""
        with self._lock:
            self._done.pop(image - 1, None)

    def read(self, image: int, assignment: int) -> Submission | None:
        """Return the last known submission of an assignment, or None if it is missing or unreadable."""
        done = self.assignments(image).get(assignment)
        if done is None:
            return None
        try:
            return read_submission(self._dataset, done.name)
        except SubmissionError:
            return None

    def submission(self, found: OpenImage, assignment: int) -> Submission | None:
        """Return the part of an assignment's last submission that still applies to the image's current state.

        Returns None if there is no submission, or if it was merged into the image.
        """
        done = self.assignments(found.place.id).get(assignment)
        if done is None or (
            done.base != found.base and is_merged(found.row.get("submission"), assignment, done.name.n)
        ):
            return None
        submission = self.read(found.place.id, assignment)
        if submission is None or submission.base == found.base:
            return submission
        return carried(submission, found.base, found.size, found.counts)

    def state(self, found: OpenImage, assignment: int) -> str:
        """Return `submitted` if the assignment's last submission is for this image state, else `merged` or `open`."""
        done = self.assignments(found.place.id).get(assignment)
        if done is not None and done.base == found.base:
            return "submitted"
        if merged_assignment(found.row.get("submission")) is None:
            return "open"
        return "merged"

    def only_assignment(self, found: OpenImage) -> int | None:
        """Return the only assignment that remains after a merge has changed the image, or None if no merge has.

        New work starts from the merged masks, so a second annotator's masks would no longer be independent.
        """
        merged = found.row.get("submission")
        assignment = merged_assignment(merged)
        if merged is None or assignment is None:
            return None
        done = self.assignments(found.place.id).get(assignment)
        if done is not None and done.name.n == merged["n"] and done.base == found.base:
            return None
        return assignment

    def progress(self, annotators: Iterable[str], counts: Callable[[int], bool] = lambda _: True) -> dict[str, Any]:
        """Count the submitted images and masks, in total and by annotator, and measure the annotators' agreement.

        The agreement is measured on images with two submitted assignments. Only images whose ids satisfy `counts` are
        included.
        """
        with self._lock:
            of_images = [dict(assignments) for ordinal, assignments in self._done.items() if counts(ordinal + 1)]
        masks = 0
        pairs = []
        by_annotator: dict[str | None, list[LatestSubmission]] = {}
        for assignments in of_images:
            masks += assignments[min(assignments)].masks
            if len(assignments) == 2:
                pairs.append((assignments[0], assignments[1]))
            for each in assignments.values():
                by_annotator.setdefault(each.annotator, []).append(each)
        names = dict.fromkeys([*annotators, *sorted(filter(None, by_annotator))])
        return {
            "submitted": len(of_images),
            "masks": masks,
            "annotators": [_summary(name, by_annotator.get(name, [])) for name in names],
            "agreement": self._agreement(pairs),
        }

    def _agreement(self, pairs: Sequence[tuple[LatestSubmission, LatestSubmission]]) -> dict[str, Any] | None:
        ious: list[float] = []
        images = 0
        for one, other in pairs:
            key = one.name, other.name
            if key not in self._agreed:
                apart = read_pairs(self._dataset, one.name.ordinal)
                self._agreed[key] = None if apart is None else agreement(*apart)
            found = self._agreed[key]
            if found is not None:
                images += 1
                ious += found
        if not images:
            return None
        mean = None
        if ious:
            mean = sum(ious) / len(ious)
        return {"images": images, "pairs": len(ious), "mean_iou": mean}

    def _read(self, name: SubmissionName) -> LatestSubmission:
        try:
            return LatestSubmission.of(read_submission(self._dataset, name))
        except SubmissionError:
            return LatestSubmission(name)


def _summary(name: str, done: Sequence[LatestSubmission]) -> dict[str, Any]:
    timed, masks, seconds_a_mask = 0, 0, None
    for each in done:
        timed += each.timed
        masks += each.masks
    if timed:
        seconds_a_mask = sum(each.mask_seconds for each in done) / timed
    return {"name": name, "images": len(done), "masks": masks, "seconds_a_mask": seconds_a_mask}
