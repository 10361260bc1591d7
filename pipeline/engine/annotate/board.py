"""What has been answered: the last answer of each lane, and what the progress page shows of them."""

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from segmint.catalogs.dataset.annotations.answers import Answer, AnswerError, read_answer
from segmint.catalogs.dataset.annotations.lanes import carried, is_merged, masks_of_people, merged_lane
from segmint.catalogs.dataset.annotations.names import AnswerName, answers_of, last_answers, list_answers
from segmint.infra.storage.location import Location
from segmint.infra.threads import map_ahead
from segmint.pipeline.engine.annotate.source import OpenImage
from segmint.pipeline.quality.study.agreement import agreement, read_apart

_THREADS = 16
_AHEAD = 64


@dataclass(frozen=True)
class Done:
    """The last answer of a lane, without its masks; `annotator` is None for a file that cannot be read.

    `masks` are all new ones; `timed` those that people worked on, for `mask_seconds`.
    """

    name: AnswerName
    annotator: str | None = None
    base: str = ""
    masks: int = 0
    timed: int = 0
    mask_seconds: float = 0.0

    @classmethod
    def of(cls, answer: Answer) -> "Done":
        """Return what is kept of an answer."""
        seconds = sum(mask.seconds for mask in answer.masks)
        name = AnswerName(answer.ordinal, answer.lane, answer.n)
        return cls(name, answer.annotator, answer.base, len(answer.masks), len(masks_of_people(answer)), seconds)


class Board:
    """The last answer of each lane of each image. Thread-safe.

    It is read once at the start, and for an image when that is given to somebody: other servers may write, too.
    """

    def __init__(self, dataset: Location) -> None:
        """Read what is there; raises `StorageFaultError` if the store fails."""
        self._dataset = dataset
        self._lock = threading.Lock()
        self._done: dict[int, dict[int, Done]] = {}  # by ordinal and lane
        self._agreed: dict[tuple[AnswerName, AnswerName], tuple[float, ...] | None] = {}
        names = [name for lanes in last_answers(list_answers(dataset)).values() for name in lanes.values()]
        for done in map_ahead(self._read, names, _THREADS, _AHEAD, "answers"):
            self._done.setdefault(done.name.ordinal, {})[done.name.lane] = done

    def lanes(self, image: int) -> dict[int, Done]:
        """Return the last answer of each lane of an image, as far as known."""
        with self._lock:
            return dict(self._done.get(image - 1, {}))

    def answered_by(self, annotator: str) -> list[int]:
        """Return the ids of the images of which an annotator gave the last answer in a lane."""
        with self._lock:
            return [
                ordinal + 1
                for ordinal, lanes in self._done.items()
                if any(done.annotator == annotator for done in lanes.values())
            ]

    def answered(self) -> list[int]:
        """Return the ids of all images with answers."""
        with self._lock:
            return [ordinal + 1 for ordinal in self._done]

    def refresh(self, image: int) -> dict[int, Done]:
        """Return what `lanes` does after another look at the store."""
        known = self.lanes(image)
        found = last_answers(answers_of(self._dataset, image - 1)).get(image - 1, {})
        lanes = {
            lane: known[lane] if lane in known and known[lane].name == name else self._read(name)
            for lane, name in found.items()
        }
        with self._lock:
            for lane, now in self._done.get(image - 1, {}).items():
                # What was noted meanwhile is newer than the look at the store.
                if now != known.get(lane) and (lane not in lanes or lanes[lane].name.n < now.name.n):
                    lanes[lane] = now
            if lanes:
                self._done[image - 1] = lanes
            else:
                self._done.pop(image - 1, None)
        return dict(lanes)

    def put(self, answer: Answer) -> None:
        """Note an answer that was saved."""
        with self._lock:
            lanes = self._done.setdefault(answer.ordinal, {})
            before = lanes.get(answer.lane)
            if before is None or before.name.n < answer.n:
                lanes[answer.lane] = Done.of(answer)

    def forget(self, image: int) -> None:
        """Forget an image that was taken down."""
        with self._lock:
            self._done.pop(image - 1, None)

    def read(self, image: int, lane: int) -> Answer | None:
        """Return the last known answer of a lane; None if there is none, or it cannot be read."""
        done = self.lanes(image).get(lane)
        if done is None:
            return None
        try:
            return read_answer(self._dataset, done.name)
        except AnswerError:
            return None

    def answer(self, found: OpenImage, lane: int) -> Answer | None:
        """Return the last known answer of a lane; of one to another state, what still fits. None if it was merged."""
        done = self.lanes(found.place.id).get(lane)
        if done is None or (done.base != found.base and is_merged(found.row.get("answer"), lane, done.name.n)):
            return None
        answer = self.read(found.place.id, lane)
        if answer is None or answer.base == found.base:
            return answer
        return carried(answer, found.base, found.size, found.counts)

    def state(self, found: OpenImage, lane: int) -> str:
        """Return whether an image is `answered` in a lane as it is now, else whether it is `merged` or `open`."""
        done = self.lanes(found.place.id).get(lane)
        if done is not None and done.base == found.base:
            return "answered"
        return "open" if merged_lane(found.row.get("answer")) is None else "merged"

    def only_lane(self, found: OpenImage) -> int | None:
        """Return the lane that an image has alone, from the merge on that changed it; None before.

        Work on what came of a merge is merged, too. Who has the other lane has seen the masks of the first then.
        """
        merged = found.row.get("answer")
        lane = merged_lane(merged)
        if merged is None or lane is None:
            return None
        done = self.lanes(found.place.id).get(lane)
        unchanged = done is not None and done.name.n == merged["n"] and done.base == found.base
        return None if unchanged else lane

    def progress(self, annotators: Iterable[str], counts: Callable[[int], bool] = lambda _: True) -> dict[str, Any]:
        """Return the images and masks answered so far, by annotator, and how far two people agree on an image.

        Only images whose ids `counts` takes are in any of the figures.
        """
        with self._lock:
            of_images = [dict(lanes) for ordinal, lanes in self._done.items() if counts(ordinal + 1)]
        done = [each for lanes in of_images for each in lanes.values()]
        first = [lanes[min(lanes)] for lanes in of_images]
        names = dict.fromkeys([*annotators, *sorted({each.annotator for each in done if each.annotator})])
        return {
            "answered": len(first),
            "masks": sum(each.masks for each in first),
            "annotators": [_summary(name, [each for each in done if each.annotator == name]) for name in names],
            "agreement": self._agreement([(lanes[0], lanes[1]) for lanes in of_images if len(lanes) == 2]),
        }

    def _agreement(self, pairs: Sequence[tuple[Done, Done]]) -> dict[str, Any] | None:
        ious: list[float] = []
        images = 0
        for one, other in pairs:
            key = one.name, other.name
            if key not in self._agreed:
                apart = read_apart(self._dataset, one.name.ordinal)
                self._agreed[key] = None if apart is None else agreement(*apart)
            found = self._agreed[key]
            if found is not None:
                images += 1
                ious += found
        if not images:
            return None
        return {"images": images, "pairs": len(ious), "mean_iou": sum(ious) / len(ious) if ious else None}

    def _read(self, name: AnswerName) -> Done:
        try:
            return Done.of(read_answer(self._dataset, name))
        except AnswerError:
            return Done(name)


def _summary(name: str, done: Sequence[Done]) -> dict[str, Any]:
    timed = sum(each.timed for each in done)
    seconds = sum(each.mask_seconds for each in done)
    return {
        "name": name,
        "images": len(done),
        "masks": sum(each.masks for each in done),
        "seconds_a_mask": seconds / timed if timed else None,
    }
