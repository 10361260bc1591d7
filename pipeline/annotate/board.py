"""What has been answered: the last answer of each lane, and what the progress page shows of them."""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from segmint.catalogs.dataset.annotations.answers import Answer, AnswerError, read_answer
from segmint.catalogs.dataset.annotations.names import AnswerName, answers_of, last_answers, list_answers
from segmint.infra.storage.location import Location
from segmint.infra.threads import map_ahead
from segmint.pipeline.study.agreement import agreement

_THREADS = 16
_AHEAD = 64


@dataclass(frozen=True)
class Done:
    """The last answer of a lane, without its masks; `annotator` is None for a file that cannot be read."""

    name: AnswerName
    annotator: str | None = None
    base: str = ""
    masks: int = 0
    mask_seconds: float = 0.0

    @classmethod
    def of(cls, answer: Answer) -> "Done":
        """Return what is kept of an answer."""
        seconds = sum(mask.seconds for mask in answer.masks)
        name = AnswerName(answer.ordinal, answer.lane, answer.n)
        return cls(name, answer.annotator, answer.base, len(answer.masks), seconds)


class Board:
    """The last answer of each lane of each image. Thread-safe.

    It is read once at the start, and for an image when that is given to somebody: other servers may write, too.
    """

    def __init__(self, dataset: Location) -> None:
        """Read what is there; raises `StorageFaultError` if the store fails."""
        self._dataset = dataset
        self._lock = threading.Lock()
        self._done: dict[int, dict[int, Done]] = {}  # by ordinal and lane
        self._agreed: dict[tuple[AnswerName, AnswerName], tuple[float, ...]] = {}
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
        found = last_answers(answers_of(self._dataset, image - 1)).get(image - 1, {})
        known = self.lanes(image)
        lanes = {
            lane: known[lane] if lane in known and known[lane].name == name else self._read(name)
            for lane, name in found.items()
        }
        with self._lock:
            if lanes:
                self._done[image - 1] = lanes
            else:
                self._done.pop(image - 1, None)
        return lanes

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

    def progress(self, annotators: Iterable[str]) -> dict[str, Any]:
        """Return the images and masks answered so far, by annotator, and how far two people agree on an image."""
        with self._lock:
            done = [each for lanes in self._done.values() for each in lanes.values()]
            first = [lanes[min(lanes)] for lanes in self._done.values()]
            both = [(lanes[0], lanes[1]) for lanes in self._done.values() if len(lanes) == 2]
        names = dict.fromkeys([*annotators, *sorted({each.annotator for each in done if each.annotator})])
        return {
            "answered": len(first),
            "masks": sum(each.masks for each in first),
            "annotators": [_summary(name, [each for each in done if each.annotator == name]) for name in names],
            "agreement": self._agreement([pair for pair in both if pair[0].base == pair[1].base]),
        }

    def _agreement(self, pairs: Sequence[tuple[Done, Done]]) -> dict[str, Any] | None:
        ious: list[float] = []
        images = 0
        for one, other in pairs:
            key = one.name, other.name
            if key not in self._agreed:
                answers = self.read(one.name.ordinal + 1, 0), self.read(one.name.ordinal + 1, 1)
                if answers[0] is None or answers[1] is None:
                    continue
                self._agreed[key] = agreement(answers[0], answers[1])
            images += 1
            ious += self._agreed[key]
        if not images:
            return None
        return {"images": images, "pairs": len(ious), "mean_iou": sum(ious) / len(ious) if ious else None}

    def _read(self, name: AnswerName) -> Done:
        try:
            return Done.of(read_answer(self._dataset, name))
        except AnswerError:
            return Done(name)


def _summary(name: str, done: Sequence[Done]) -> dict[str, Any]:
    masks = sum(each.masks for each in done)
    seconds = sum(each.mask_seconds for each in done)
    return {
        "name": name,
        "images": len(done),
        "masks": masks,
        "seconds_a_mask": seconds / masks if masks else None,
    }
