"""Progress of a session: the last submission of each assignment, and the values for the progress page."""

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from segmint.catalogs.dataset.annotations.assignments import annotated_masks, carried, is_merged, merged_assignment
from segmint.catalogs.dataset.annotations.names import (
    SubmissionName,
    latest_submissions,
    list_submissions,
    submissions_of,
)
from segmint.catalogs.dataset.annotations.submissions import (
    Return,
    Submission,
    SubmissionError,
    read_returns,
    read_submission,
)
from segmint.infra.storage.location import Location
from segmint.infra.threads import map_ahead
from segmint.pipeline.engine.annotate.source import OpenImage
from segmint.pipeline.quality.study.agreement import agreement, read_pairs

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
