"""Server-side annotator view, without HTTP: leases images, predicts masks, and saves submissions."""

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np
import pyarrow.compute as pc

from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.submissions import RemovedImageError, Submission, put_submission
from segmint.catalogs.layout import DamagedDatasetError
from segmint.infra.arrays import Bools, Ints
from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.log import get_logger
from segmint.infra.stopping import map_ahead
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.model.automatic.rle import Rle
from segmint.operators.shards.revise import read_shard_table, with_latest_commit
from segmint.pipeline.engine.annotate.decoder import Decoder, Embeddings, ImageEmbedding, Prediction
from segmint.pipeline.engine.annotate.drawing import checked_counts, clean_mask, parse_prompt
from segmint.pipeline.engine.annotate.prefill import PrefillCache
from segmint.pipeline.engine.annotate.queue import LatestSubmission, Leases, ProgressBoard, Queue
from segmint.pipeline.engine.annotate.requests import SessionInfo
from segmint.pipeline.engine.annotate.source import (
    ConflictError,
    ImageGoneError,
    ImageMemory,
    ImageSource,
    OpenImage,
    PixelHolder,
)
from segmint.pipeline.serving.images import NoImageError

AHEAD = 3
"""Number of upcoming images per annotator whose embeddings are computed in advance."""

_LOOKS = 16  # concurrent store reads alongside clicks

_SAID = frozenset({"base", "masks", "replaced", "deleted", "seconds", "complete", "comment", "flag"})


class MaskFiles(Protocol):
    """External files that store the masks of a dataset's images. Thread-safe."""

    def refresh(self, image: int) -> None:
        """Reimport an image's file if someone else has changed it. Raises `UsageError` if the file can't be used."""

    def write(self, image: int) -> None:
        """Write an image's masks to its file, including all submissions."""


@dataclass
class AnnotatorView:
    """Shared state of an annotation server: its images, model, and submissions. Thread-safe."""

    dataset: Location
    about: SessionInfo
    queue: Queue
    source: ImageSource
    board: ProgressBoard
    embeddings: Embeddings
    decoder: Decoder
    leases: Leases = field(default_factory=Leases)
    prefills: PrefillCache | None = None
    files: MaskFiles | None = None  # external files to which saved masks are also written

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._looks = ThreadPoolExecutor(_LOOKS, thread_name_prefix="looks")
        holders: list[PixelHolder] = [self.embeddings.recent, self.decoder]
        if self.prefills is not None:
            holders.append(self.prefills.recent)
        self.kept = ImageMemory(self.source, holders, self._pass_over)
        self._over = np.isin(self.queue.ids, list(self.queue.merged))  # images to skip when leasing, by rank
        self._gone: set[int] = set()
        self._generations: dict[int, int] = {}  # by shard, when its merges were last read
        self._merged: dict[int, int] = {}  # by image that a merge has changed: its only assignment
        self._skipped: set[tuple[str, int]] = set()  # returned images that an annotator has skipped
        for image in self.board.answered():
            self._note(image)

    def close(self) -> None:
        """Wait for the running store reads, then stop their threads."""
        self._looks.shutdown()

    def next(self, annotator: str, after: int | None) -> dict[str, Any]:
        """Lease the next image to an annotator, and prefetch the embeddings of the images after it.

        Without `after`, an image that the annotator has already leased comes first. With `after`, the lease of that
        image is released, and the search starts after it in the queue. Images that the owner returned to the annotator
        come before new ones, unless the annotator has skipped them.
        """
        mine = [slot for slot in self.leases.of(annotator) if slot[0] != after]
        if after is not None:
            self.leases.release(after, annotator)
            mine = []
            if after in self.board.returned_to(annotator):
                self._skipped.add((annotator, after))
        slot = next((slot for slot in mine if self._free_assignment(slot[0], annotator, look=True) == slot[1]), None)
        slot = slot or self._returned(annotator, after) or self._lease(annotator, after)
        slot = slot or self._returned(annotator, after, skipped=True)
        about = {"lease": self.leases.seconds, "left": self.left(annotator)}
        if slot is None:
            return {"image": None, "assignment": 0, **about}
        coming = (image for image in self._open_after(slot[0]) if self._free_assignment(image, annotator) is not None)
        ahead = [slot[0], *(image for image, _ in zip(coming, range(AHEAD), strict=False))]
        self.embeddings.prepare(annotator, ahead)
        return {"image": slot[0], "assignment": slot[1], **about}

    def left(self, annotator: str) -> int:
        """Return the number of queued images that an annotator could still be assigned."""
        ranks = [self.queue.rank(image) for image in self.board.submitted_by(annotator)]
        returned = sum(self.queue.rank(image) is not None for image in self.board.returned_to(annotator))
        with self._lock:
            waiting = int(np.count_nonzero(~self._over)) + returned
            return waiting - sum(rank is not None and not self._over[rank] for rank in ranks)

    def waiting(self) -> Bools:
        """Return, for each rank in the queue, whether the image still needs a first or second submission."""
        with self._lock:
            return ~self._over

    def find_merges(self) -> None:
        """Find out which submissions have been merged. Only shards with submissions and a new commit are read."""

        def look(commit: Commit) -> None:
            if self._generations.get(commit.shard, 1) == commit.generation:  # a build's first commit has no merges
                return
            table = read_shard_table(self.dataset, commit, "images").select(["id", "submission"])
            for row in table.filter(pc.field("submission", "assignment").is_valid()).to_pylist():
                self.queue.merged[row["id"]] = row["submission"]
                self._note(row["id"])
            self._generations[commit.shard] = commit.generation

        ranks = [rank for image in self.board.answered() if (rank := self.queue.rank(image)) is not None]
        shards = np.unique(self.queue.shards[ranks]).tolist() if ranks else []
        list(map_ahead(lambda shard: with_latest_commit(self.dataset, shard, look), shards, _LOOKS, _LOOKS, "merges"))

    def open(self, image: int, annotator: str) -> dict[str, Any]:
        """Return an image, its masks, and the last submission of the annotator's assignment.

        If the assignment is free, it is leased to the annotator. Raises the errors of `ImageSource.read`.
        """
        found = self._opened(image)
        self.board.refresh(image)
        self._note(image, found)
        assignment = self._assignment_of(image, annotator)
        self.leases.take((image, assignment), annotator)
        done = self.board.assignments(image).get(assignment)
        submission = self.board.submission(found, assignment)
        return {
            "image": found.row,
            "assignment": assignment,
            "base": found.base,
            "size": list(found.size),
            "masks": list(found.masks),
            "n": 0 if done is None else done.name.n,
            "submission": None if submission is None else submission.model_dump(mode="json"),
            "prefill": [] if submission is not None else self._prefilled(found),
            "state": self.board.state(found, assignment),
            "returned": done.returned.model_dump(mode="json")
            if done is not None and done.returned is not None and done.annotator == annotator
            else None,
        }

    def embed(self, image: int, annotator: str) -> None:
        """Compute an image's embedding if necessary. Raises the errors of `ImageSource.read` and `Embeddings.get`."""
        self.leases.renew(image, annotator)
        self._embedded(self._read(image))

    def predict(self, image: int, annotator: str, body: Any) -> Prediction:
        """Predict the masks for a prompt.

        If the image is in memory, the model predicts on that copy while a thread checks the store. If the check finds
        that the image was taken down or that its pixels have changed, the prediction is discarded. Raises `UsageError`
        for an invalid prompt, and the errors of `embed`.
        """
        self.embeddings.clicked()
        self.leases.renew(image, annotator)
        known = self.source.recent.get(image)
        if known is not None:
            look = self._looks.submit(self._read, image)
            prediction = self._predict(known, annotator, body)
            try:
                found = look.result()
            except ImageGoneError:
                self.kept.forget(image)  # drops the concurrent prediction's logits
                raise
            if found.jpeg_sha256 == known.jpeg_sha256:
                return prediction
            self.kept.see(found)
        return self._predict(self._read(image), annotator, body)

    def clean(self, image: int, annotator: str, counts: Any) -> str:
        """Remove a mask's small specks and holes. Raises `UsageError` if the run lengths `counts` are invalid."""
        self.leases.renew(image, annotator)
        size = (self.source.recent.get(image) or self._read(image)).size
        return clean_mask(Rle(size, checked_counts(counts, size))).counts

    def save(self, image: int, annotator: str, n: int, body: Any) -> Submission:
        """Save a submission and return the stored one. Retrying the same submission doesn't store it twice.

        Raises `UsageError` or `SubmissionError` if the body isn't a submission for this image, `ConflictError` if
        another submission has this number or the image has changed, and `ImageGoneError` or `RemovedImageError` if the
        image was taken down.
        """
        found = self._opened(image)
        if not isinstance(body, Mapping) or set(body) - _SAID:
            raise UsageError(f"expected an object with only {', '.join(sorted(_SAID))}")
        if not isinstance(body.get("base"), str):
            raise UsageError("base: expected the digest that came with the image")
        if body["base"] != found.base:
            self._note(image, found)
            assignment = self._assignment_of(image, annotator)
            raise self._conflict("the image changed after it was opened", found, assignment)
        self.board.refresh(image)
        self._note(image, found)
        assignment = self._assignment_of(image, annotator)
        submission = Submission.from_value(
            {
                **body,
                "image": image,
                "assignment": assignment,
                "n": n,
                "size": list(found.size),
                "annotator": annotator,
                "stage": self.about.stage,
                "model": self.about.weights_sha256,
                "saved_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            }
        )
        for mask in (*submission.replaced, *submission.deleted):
            if found.counts.get(mask.id) != mask.counts:
                raise UsageError(f"replaced, deleted: the image has no mask {mask.id} with these pixels")
        try:
            saved = self._put(submission, found)
        except RemovedImageError:
            self._forget(image)
            raise
        if self.files is not None:
            self.files.write(image)
        return saved

    def progress(self, annotators: list[str]) -> dict[str, Any]:
        """Return the number of images, and the progress so far in total and by annotator."""
        counted = self.board.progress(annotators, lambda image: self.queue.rank(image) is not None)
        return {"images": len(self.queue), **counted}

    def _opened(self, image: int) -> OpenImage:
        """Read an image's current state, after the files of its masks, if any."""
        if self.files is not None:
            self.files.refresh(image)
        return self._read(image)

    def _prefilled(self, found: OpenImage) -> list[dict[str, Any]]:
        """Return the masks that the model predicted for the detector's boxes. Waits for the embedding if necessary."""
        if self.prefills is None:
            return []
        return [mask.to_dict() for mask in self.prefills.of(found, self._embedded(found).embedding)]

    def _predict(self, found: OpenImage, annotator: str, body: Any) -> Prediction:
        prompt = parse_prompt(body, found.size)
        prediction = self.decoder.predict(annotator, self._embedded(found), prompt)
        self.embeddings.clicked()
        return prediction

    def _embedded(self, found: OpenImage) -> ImageEmbedding:
        """Return an image's embedding. If the image can't be decoded, stop leasing it and raise `NoImageError`."""
        try:
            return self.embeddings.get(found)
        except NoImageError as error:
            self._pass_over(found.place.id, error)
            raise

    def _put(self, submission: Submission, found: OpenImage) -> Submission:
        done = self.board.assignments(submission.image).get(submission.assignment)
        if done is not None and done.name.n >= submission.n:
            return self._other(submission, found)
        number = 1 if done is None else done.name.n + 1
        if submission.n != number:
            raise UsageError(f"submissions/{submission.n}: the next submission is {number}")
        if done is not None and done.annotator != submission.annotator:
            conflict = self._conflict(f"{done.annotator} has submitted", found, submission.assignment)
            if conflict.details["winner"] is not None:
                raise conflict
        if not put_submission(self.dataset, submission):
            self.board.refresh(submission.image)
            return self._other(submission, found)
        self.board.put(submission)
        self._skipped.discard((submission.annotator, submission.image))
        self._note(submission.image)
        self.leases.release(submission.image, submission.annotator)
        return submission

    def _other(self, submission: Submission, found: OpenImage) -> Submission:
        """Return the stored submission if it contains the same work as this one, else raise `ConflictError`."""
        winner = self.board.read(submission.image, submission.assignment)
        if winner is not None and winner.n == submission.n and submission.same_work(winner):
            return winner
        raise self._conflict("another submission was saved first", found, submission.assignment)

    def _conflict(self, text: str, found: OpenImage, assignment: int) -> ConflictError:
        """Build an error that contains the assignment's last submission and the digest of the image's current state."""
        winner = self.board.submission(found, assignment)
        return ConflictError(text, winner=None if winner is None else winner.model_dump(mode="json"), base=found.base)

    def _returned(self, annotator: str, after: int | None, *, skipped: bool = False) -> tuple[int, int] | None:
        """Return an image that the owner returned to the annotator, with its assignment, or None.

        `skipped` selects between the images that the annotator has skipped and all others.
        """
        for image in self.board.returned_to(annotator):
            is_skipped = (annotator, image) in self._skipped
            if self.queue.rank(image) is None or image == after or is_skipped != skipped:
                continue
            self.board.refresh(image)
            self._check(image)
            assignment = self.board.returned_to(annotator).get(image)
            if assignment is not None and assignment == self._merged.get(image, assignment) and image not in self._gone:
                return image, assignment
        return None

    def _lease(self, annotator: str, after: int | None) -> tuple[int, int] | None:
        for image in self._open_after(after):
            assignment = self._free_assignment(image, annotator)
            if assignment is None:
                continue
            assignment = self._free_assignment(image, annotator, look=True)
            if assignment is not None and self.leases.take((image, assignment), annotator):
                return image, assignment
        return None

    def _open_after(self, image: int | None) -> Any:
        def is_open(ranks: Ints) -> Bools:
            with self._lock:
                return ~self._over[ranks]

        return self.queue.after(image, is_open)

    def _free_assignment(self, image: int, annotator: str, look: bool = False) -> int | None:
        """Return an assignment of the image that the annotator can lease, or None.

        With `look`, the store is checked first.
        """
        done = self.board.refresh(image) if look else self.board.assignments(image)
        if look:
            self._check(image)
        if image in self._gone or image in self._merged or any(each.annotator == annotator for each in done.values()):
            return None
        for assignment in range(self.queue.assignments(image)):
            if assignment not in done and self.leases.holder((image, assignment)) in (None, annotator):
                return assignment
        return None

    def _check(self, image: int) -> None:
        """Read an image, and stop leasing it if it was taken down or can't be read."""
        try:
            self._note(image, self._read(image))
        except ImageGoneError:
            pass
        except (NoImageError, NotFoundError, DamagedDatasetError) as error:
            self._pass_over(image, error)

    def _assignment_of(self, image: int, annotator: str) -> int:
        """Return the assignment that the annotator has submitted or leased for an image, or else the first open one."""
        if image in self._merged:
            return self._merged[image]
        done = self.board.assignments(image)
        assignments = range(self.queue.assignments(image))
        for assignment, each in sorted(done.items()):
            if each.annotator == annotator:
                return assignment
        for assignment in assignments:
            if self.leases.holder((image, assignment)) == annotator and assignment not in done:
                return assignment
        for assignment in assignments:
            if assignment not in done and self.leases.holder((image, assignment)) is None:
                return assignment
        free = [assignment for assignment in assignments if assignment not in done]
        return free[0] if free else 0

    def _note(self, image: int, found: OpenImage | None = None) -> None:
        """Record whether an image still needs submissions. `found` is the image, if the caller has already read it."""
        assignment = None if found is None else self.board.only_assignment(found)
        if assignment is not None:
            self._merged[image] = assignment
        rank = self.queue.rank(image)
        if rank is None:
            return
        done: Mapping[int, LatestSubmission] = self.board.assignments(image)
        with self._lock:
            over = image in self.queue.merged or image in self._gone or image in self._merged
            self._over[rank] = over or len(done) >= self.queue.assignments(image)

    def _read(self, image: int) -> OpenImage:
        """Read an image's current state and drop data of earlier states. Raises the errors of `ImageSource.read`."""
        try:
            found = self.source.read(image)
        except ImageGoneError:
            self._forget(image)
            raise
        self.kept.see(found)
        return found

    def _forget(self, image: int) -> None:
        self.kept.forget(image)
        self._pass_over(image)

    def _pass_over(self, image: int, error: SegmintError | None = None) -> None:
        """Stop leasing an image because it was taken down or, if there is an `error`, because it can't be opened."""
        if error is None:
            self.board.forget(image)
        elif image not in self._gone:
            get_logger("annotate").warning("image_passed_over", image=image, error=str(error))
        with self._lock:
            self._gone.add(image)
        self._note(image)
