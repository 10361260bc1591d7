"""What the server knows of answers, beside others who write, and what the progress page shows of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from segmint.catalogs.dataset.submissions import (
    Return,
    SubmissionName,
    put_return,
    put_submission,
    read_returns,
    submissions_of,
)
from segmint.pipeline.engine.annotate import queue as module
from segmint.pipeline.engine.annotate.queue import ProgressBoard
from tests.support.locations import location_of
from tests.support.protocol import DatasetPath, two_shards
from tests.support.submissions import answer_to, new_mask

CUT, APART = (3, 4, 11, 21), (22, 5, 28, 30)


@pytest.fixture
def place() -> Iterator[DatasetPath]:
    """Two shards of three rows: images 1, 2, 4 and 5."""
    with two_shards() as place:
        yield place


def give(place: DatasetPath, image: int, *boxes: tuple[int, int, int, int], **fields: Any) -> None:
    masks = [new_mask(box) for box in boxes]
    assert put_submission(place.location, answer_to(place.location, image, masks, **fields))


def numbers(board: ProgressBoard, image: int) -> dict[int, int]:
    return {assignment: done.name.n for assignment, done in board.assignments(image).items()}


def test_answers_of_other_servers_are_seen_at_the_next_look(place: DatasetPath) -> None:
    give(place, 1)
    board = ProgressBoard(place.location)
    give(place, 1, n=2)
    give(place, 1, assignment=1, annotator="Bo")
    give(place, 2)
    assert (numbers(board, 1), numbers(board, 2), board.answered()) == ({0: 1}, {}, [1])
    assert (
        {assignment: done.name.n for assignment, done in board.refresh(1).items()} == numbers(board, 1) == {0: 2, 1: 1}
    )
    assert (board.submitted_by("Ada"), board.submitted_by("Bo"), board.submitted_by("Cy")) == ([1], [1], [])
    (place.location / "annotations/0/1.1.json").delete()
    board.refresh(1)
    assert numbers(board, 1) == {0: 2}
    board.forget(1)
    assert board.answered() == []


def test_a_look_that_began_before_a_save_does_not_undo_it(place: DatasetPath, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers are saved in both assignments after the store was listed, and before that list is noted."""
    give(place, 1)
    board = ProgressBoard(place.location)
    later = [answer_to(place.location, 1, n=2), answer_to(place.location, 1, assignment=1, annotator="Bo")]

    def listed(dataset: Any, ordinal: int) -> list[SubmissionName]:
        found = submissions_of(dataset, ordinal)
        for submission in later:
            assert put_submission(dataset, submission)
            board.put(submission)
        return found

    monkeypatch.setattr(module, "submissions_of", listed)
    board.refresh(1)
    assert numbers(board, 1) == {0: 2, 1: 1}
    monkeypatch.undo()
    assert {assignment: done.name.n for assignment, done in board.refresh(1).items()} == {0: 2, 1: 1}


def test_a_look_that_began_before_a_return_does_not_undo_it(
    place: DatasetPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(place, 1)
    board = ProgressBoard(place.location)
    value = {"image": 1, "assignment": 0, "n": 1, "by": "Bo", "comment": "x", "saved_at": "2026-11-22T10:00:00Z"}

    def listed(dataset: Any, ordinal: int) -> Any:
        found = read_returns(dataset, ordinal)
        monkeypatch.undo()
        assert put_return(dataset, Return.model_validate(value))
        board.refresh(1)
        return found

    monkeypatch.setattr(module, "read_returns", listed)
    board.refresh(1)
    assert board.returned_to("Ada") == ProgressBoard(place.location).returned_to("Ada") == {1: 0}
    assert board.returned_to("Bo") == {}
    give(place, 1, n=2)
    board.refresh(1)
    assert board.returned_to("Ada") == {}


def test_progress_counts_the_images_asked_for_and_masks_that_people_worked_on(place: DatasetPath) -> None:
    box = {"kind": "box", "x": 5.0, "y": 22.0, "w": 25.0, "h": 6.0}
    filled = new_mask(APART, seconds=0, prompts=[box])
    submission = answer_to(place.location, 1, [filled, new_mask(CUT, seconds=8.0)], stage="semi")
    assert put_submission(place.location, submission)
    give(place, 2, CUT, APART)
    give(place, 2, CUT, assignment=1, annotator="Bo")
    board = ProgressBoard(place.location)
    told = board.progress(["Cy"])
    assert (told["submitted"], told["masks"]) == (2, 4)
    assert told["annotators"] == [
        {"name": "Cy", "images": 0, "masks": 0, "seconds_a_mask": None},
        {"name": "Ada", "images": 2, "masks": 4, "seconds_a_mask": (8.0 + 4.5 + 4.5) / 3},
        {"name": "Bo", "images": 1, "masks": 1, "seconds_a_mask": 4.5},
    ]
    assert told["agreement"] == {"images": 1, "pairs": 1, "mean_iou": 1.0}
    told = board.progress([], lambda image: image == 1)
    assert (told["submitted"], told["masks"], told["agreement"]) == (1, 2, None)
    assert told["annotators"] == [{"name": "Ada", "images": 1, "masks": 2, "seconds_a_mask": 8.0}]


def test_an_answer_that_cannot_be_read_keeps_its_number(place: DatasetPath, tmp_path: Path) -> None:
    give(place, 1)
    (place.location / "annotations/0/0.2.json").put(b"{}")
    board = ProgressBoard(location_of(Path(place.uri)))
    assert (numbers(board, 1), board.read(1, 0)) == ({0: 2}, None)
    assert board.progress([])["annotators"] == []
