"""Server-side view of the owner, who leads the annotators: a table of all images, their submissions, and returns."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from segmint.catalogs.dataset.annotations.assignments import is_merged, merged_assignment
from segmint.catalogs.dataset.annotations.submissions import Return, put_return, read_return
from segmint.catalogs.layout import wrong_fields
from segmint.infra.errors import UsageError
from segmint.pipeline.engine.annotate.annotator_view import AnnotatorView
from segmint.pipeline.engine.annotate.progress_board import LatestSubmission
from segmint.pipeline.engine.annotate.requests import field
from segmint.pipeline.engine.annotate.source import ConflictError

OPEN, STARTED, SUBMITTED, RETURNED, MERGED = STATES = "open", "in progress", "submitted", "returned", "merged"
FLAGGED = "flagged"
ROWS = 100  # maximum number of rows in a response
LEAST = 10  # minimum number of submissions to estimate the remaining time

_SAVED_AGAIN = "this image was saved again in the meantime. Look at the new submission first"


@dataclass(frozen=True)
class OwnerView:
    """Table of a server's images for its `owner`. Thread-safe."""

    view: AnnotatorView
    owner: str

    def table(self, asked: Mapping[str, str]) -> dict[str, Any]:
        """Return a page of the table, which starts at the rank `start` in the queue, and counts over the whole table.

        `asked` can also filter the rows: `show` is a state or `flagged`, and `person` is an annotator.
        """
        show, person, start = asked.get("show"), asked.get("person"), asked.get("start", "0")
        if show not in (None, FLAGGED, *STATES) or not (start.isascii() and start.isdecimal() and len(start) < 16):
            raise UsageError("table: expected a state to show and a number to start with")
        if start == "0":
            self.view.find_merges()
        waiting = self.view.waiting()
        rows: list[dict[str, Any]] = []
        rank = int(start)
        while rank < len(self.view.queue) and len(rows) < ROWS:
            found = self._rows(rank, waits=bool(waiting[rank]))
            shown = (row for row in found if show in (None, row["state"], FLAGGED if row["flag"] else None))
            rows += (row for row in shown if person in (None, row["annotator"]))
            rank += 1
        following = rank if rank < len(self.view.queue) else None
        return {"rows": rows, "next": following, **self._counts(waiting)}

    def submission(self, image: int, assignment: int) -> dict[str, Any]:
        """Return an image with the last submission of an assignment. Raises `UsageError` if there is none."""
        found = self.view.source.read(image)
        last = self._last(image, assignment)
        submission = self.view.board.submission(found, assignment)
        return {
            **self._row(image, last),
            "size": list(found.size),
            "masks": list(found.masks),
            "submission": None if submission is None else submission.model_dump(mode="json"),
        }

    def give_back(self, image: int, assignment: int, body: Any) -> dict[str, Any]:
        """Return submission `n` of an assignment to its annotator, with a `comment`. Responds like `submission`.

        Raises `UsageError` if the comment is invalid or the submission doesn't exist. Raises `ConflictError` if a later
        submission exists, or if this one was merged or already returned with another comment.
        """
        n, comment = field(body, "n", int), field(body, "comment", str)
        found, last = self.view.source.read(image), self._last(image, assignment)
        if last.name.n != n:
            raise ConflictError(_SAVED_AGAIN)
        merged = found.row.get("submission")
        if is_merged(merged, assignment, n) or merged_assignment(merged) not in (None, assignment):
            raise ConflictError("this image already has a merged submission, so this one can't be returned")
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        said = {"n": n, "by": self.owner, "comment": comment, "saved_at": now}
        try:
            returned = Return.model_validate({"image": image, "assignment": assignment, **said})
        except ValidationError as error:
            raise UsageError(f"this comment can't be used: {wrong_fields(error)}") from error
        if not put_return(self.view.dataset, returned):
            other = read_return(self.view.dataset, returned.name)
            if (other.by, other.comment) != (self.owner, comment):  # otherwise, the first response was lost
                raise ConflictError(f"{other.by} has already returned this submission: {other.comment}")
        if self._last(image, assignment).name.n != n:
            raise ConflictError(_SAVED_AGAIN)
        return self.submission(image, assignment)

    def _last(self, image: int, assignment: int) -> LatestSubmission:
        last = self.view.board.refresh(image).get(assignment)
        if last is None or last.annotator is None:
            raise UsageError(f"image {image} has no readable submission of assignment {assignment}")
        return last

    def _rows(self, rank: int, *, waits: bool) -> Iterator[dict[str, Any]]:
        image = int(self.view.queue.ids[rank])
        done = self.view.board.assignments(image)
        for assignment in range(self.view.queue.assignments(image)):
            if assignment in done:
                yield self._row(image, done[assignment])
            elif waits:
                holder = self.view.leases.holder((image, assignment))
                state = OPEN if holder is None else STARTED
                row = {"image": image, "name": self.view.source.places.name(image), "assignment": assignment}
                yield {**row, "state": state, "annotator": holder, "flag": False}

    def _row(self, image: int, last: LatestSubmission) -> dict[str, Any]:
        returned = None if last.returned is None else last.returned.model_dump(mode="json")
        state = {"state": self._state(image, last), "returned": returned}
        of_image = {"image": image, "name": self.view.source.places.name(image)}
        return {**vars(last), **of_image, "assignment": last.name.assignment, "n": last.name.n, **state}

    def _state(self, image: int, last: LatestSubmission) -> str:
        if last.returned is not None:
            return RETURNED
        merged = self.view.queue.merged.get(image)
        return MERGED if is_merged(merged, last.name.assignment, last.name.n) else SUBMITTED

    def _counts(self, waiting: NDArray[np.bool_]) -> dict[str, Any]:
        """Count the submissions and the assignments that still need one, and average the seconds per submission."""
        queue, board = self.view.queue, self.view.board
        ranks = {image: rank for image in board.answered() if (rank := queue.rank(image)) is not None}
        last = [(image, each) for image in ranks for each in board.assignments(image).values()]
        counts = Counter(self._state(image, each) for image, each in last)
        left = int((1 + queue.twice.astype(np.int64))[waiting].sum()) + counts[RETURNED]
        timed = [each.seconds for _, each in last if each.seconds > 0]
        return {
            "counts": {**counts, FLAGGED: sum(each.flag for _, each in last)},
            "annotators": sorted({each.annotator for _, each in last if each.annotator is not None}),
            "left": left - sum(bool(waiting[ranks[image]]) for image, _ in last),
            "timed": len(timed),
            "seconds": sum(timed) / len(timed) if len(timed) >= LEAST else None,
        }
