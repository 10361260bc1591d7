"""Answers: files that are read back as they were, put once, and refused where something in them is wrong."""

import json
from typing import Any

import numpy as np
import pytest

from segmint.catalogs.dataset.inventory import unknown_files
from segmint.catalogs.dataset.submissions import (
    RemovedImageError,
    Return,
    Submission,
    SubmissionError,
    SubmissionName,
    base_digest,
    list_submissions,
    put_return,
    put_submission,
    read_return,
    read_returns,
    read_submissions,
    returned_submissions,
    submission_path,
)
from segmint.catalogs.dataset.tombstones import RemovedImage, TakedownRequest, Tombstone, put_tombstone
from segmint.catalogs.layout import canonical_json
from segmint.model.automatic.rle import compress
from tests.support.locations import location_of
from tests.support.submissions import answer_value, counts_of, new_mask

FORMER = {"id": 10_001, "counts": counts_of((3, 4, 13, 21))}


def with_mask(**fields: Any) -> dict[str, Any]:
    value = answer_value()
    return {**value, "masks": [{**value["masks"][0], **fields}]}


def test_an_answer_is_read_as_it_was_written_and_has_one_form() -> None:
    prompts = [{"kind": "box", "x": 0, "y": 0, "w": 40, "h": 30}, {"kind": "mask"}, {"kind": "text", "text": "größte"}]
    value = answer_value(
        masks=[new_mask((3, 4, 11, 21), 10_001, prompts=prompts), new_mask((1, 1, 2, 2))], replaced=[FORMER]
    )
    submission = Submission.from_value(value)
    data = submission.to_json()
    assert Submission.from_json(data) == submission
    assert data == canonical_json(json.loads(data))
    assert submission.path == "annotations/0/0.1.json"
    assert submission.masks[0].prompts[0].kind == "box"
    later = Submission.from_value({**value, "saved_at": "2026-11-22T10:00:09Z"})
    assert later != submission
    assert later.same_work(submission)
    for changes in ({"seconds": 62.0}, {"comment": "the hand\nis cut off"}, {"flag": True}):
        other = Submission.from_value({**value, **changes})
        assert Submission.from_json(other.to_json()) == other
        assert not later.same_work(other)
    assert (submission.comment, submission.flag) == (None, False)
    with pytest.raises(SubmissionError, match=r"^there is not a submission: it is not in canonical form$"):
        Submission.from_json(data.replace(b'":', b'": '), "there")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "Input should be an object"),
        (answer_value(more=1), "more: Extra inputs"),
        (answer_value(assignment=2), "assignment: Input should be 0 or 1"),
        (answer_value(n=0), "n: Input should be greater"),
        (answer_value(image="1"), "image: Input should be a valid integer"),
        (answer_value(seconds=-1), "seconds: Input should be greater"),
        (answer_value(seconds=1e400), "not JSON compliant"),
        (answer_value(base="AB" * 32), "base: String should match"),
        (answer_value(annotator="A\x1b[2J"), "it has a control character"),
        (answer_value(annotator=" "), "it is empty"),
        (answer_value(comment=""), "comment: String should have at least 1 character"),
        (answer_value(comment="x" * 2001), "comment: String should have at most 2000 characters"),
        (answer_value(comment="one\ntwo\x1b[2J"), "comment: Value error, it has a control character"),
        (answer_value(flag=1), "flag: Input should be a valid boolean"),
        (answer_value(annotator="x" * 101), "annotator: String should have at most 100"),
        (answer_value(saved_at="yesterday"), "saved_at: String should match"),
        (answer_value(size=[31, 40]), "masks.0.counts: the runs do not fill 40 x 31 pixels"),
        (answer_value(size=[65_535, 65_535]), "over 250,000,000 pixels"),
        (with_mask(counts="zz\x7f"), "a character outside COCO's alphabet"),
        (with_mask(counts=compress(np.array([1200]))), "a mask without pixels"),  # 1,200 pixels of background
        (with_mask(source="automatic"), "masks.0.source: Input should be 'assisted', 'corrected' or 'manual'"),
        (with_mask(source="corrected"), "a corrected mask needs a parent"),
        (with_mask(parent=10_001), "replaced: expected exactly the parents of the masks"),
        (with_mask(parent=20_001), "mask 20001 is not of image 1"),
        (answer_value(replaced=[FORMER]), "replaced: expected exactly the parents of the masks"),
        (answer_value(deleted=[FORMER, FORMER]), "a mask is listed twice"),
        (answer_value(deleted=[{**FORMER, "id": 20_001}]), "mask 20001 is not of image 1"),
        (with_mask(prompts=[{"kind": "point", "x": 40.5, "y": 4.0, "label": 1}]), "masks.0.prompts.0: outside"),
        (with_mask(prompts=[{"kind": "point", "x": 4.0, "y": -1.0, "label": 1}]), "y: Input should be greater"),
        (with_mask(prompts=[{"kind": "point", "x": 4.0, "y": 1.0, "label": 2}]), "label: Input should be 0 or 1"),
        (with_mask(prompts=[{"kind": "box", "x": 4, "y": 1, "w": 37, "h": 3}]), "masks.0.prompts.0: outside"),
        (with_mask(prompts=[{"kind": "text", "text": " "}]), "text.text: Value error, it is empty"),
        (with_mask(prompts=[{"kind": "text", "text": "a\nb"}]), "text.text: Value error, it has a control character"),
        (with_mask(prompts=[{"kind": "stroke"}]), "does not match any of the expected tags"),
    ],
)
def test_what_is_wrong_is_said(value: Any, said: str) -> None:
    with pytest.raises(SubmissionError) as caught:
        Submission.from_value(value)
    assert str(caught.value).startswith("the submission cannot be used: ")
    assert said in str(caught.value)
    if not str(caught.value).endswith("compliant"):
        with pytest.raises(SubmissionError):
            Submission.from_json(json.dumps(value).encode())


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b'"' + b"[" * 100_000, b"null"])
def test_bytes_that_are_no_answer_are_refused(data: bytes) -> None:
    with pytest.raises(SubmissionError, match=r"^the submission is not a submission: "):
        Submission.from_json(data)


def test_an_answer_over_its_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segmint.catalogs.dataset.submissions.MOST_BYTES", 400)
    with pytest.raises(SubmissionError, match=r"expected at most 400$"):
        Submission.from_value(answer_value())
    with pytest.raises(SubmissionError, match=r"expected at most 400$"):
        Submission.from_json(b" " * 401)


def test_an_answer_is_put_once_and_its_number_is_then_taken(dataset: str) -> None:
    location = location_of(dataset)
    first, other = (Submission.from_value(answer_value(annotator=name)) for name in ("Ada", "Bo"))
    assert put_submission(location, first)
    assert put_submission(location, first)
    assert not put_submission(location, other)
    second, apart = (Submission.from_value(answer_value(**where)) for where in ({"n": 2}, {"assignment": 1}))
    for submission in (second, apart, Submission.from_value(answer_value(4))):
        assert put_submission(location, submission)
    assert read_submissions(location, 0) == [first, second, apart]
    assert list(list_submissions(location)) == [(0, 0, 1), (0, 0, 2), (0, 1, 1), (3, 0, 1)]
    assert unknown_files(location) == []


def test_a_return_is_beside_its_submission_and_put_once(dataset: str) -> None:
    location = location_of(dataset)
    given = {"assignment": 0, "by": "Ada", "comment": "the hand\nis cut off", "saved_at": "2026-11-22T10:00:00Z"}
    first, second = (Return.model_validate({**given, "image": image, "n": 2}) for image in (1, 4))
    other = Return.model_validate({**given, "image": 1, "n": 2, "by": "Bo"})
    assert [put_return(location, each) for each in (first, second, other)] == [True, True, False]
    assert read_returns(location) == {(0, 0, 2): first, (3, 0, 2): second}
    (location / "annotations/3/0.1.return.json").put(b"{}")
    (location / "annotations/3/0.3.return.json").put((location / "annotations/0/0.2.return.json").read())
    assert read_returns(location, 3) == {(3, 0, 2): second}
    assert returned_submissions(location, 3) == {(3, 0, 1), (3, 0, 2), (3, 0, 3)}
    for n, wrong in ((1, "is not a return"), (3, "identifies itself as annotations/0/0.2"), (4, "is gone")):
        with pytest.raises(SubmissionError, match=wrong):
            read_return(location, SubmissionName(3, 0, n))
    assert list(list_submissions(location)) == []
    assert unknown_files(location) == []


def test_a_file_that_is_another_submission_than_its_name_says_is_refused(dataset: str) -> None:
    location = location_of(dataset)
    (location / submission_path(3, 0, 1)).put(Submission.from_value(answer_value()).to_json())
    with pytest.raises(
        SubmissionError, match=r"annotations/3/0\.1\.json identifies itself as annotations/0/0\.1\.json"
    ):
        read_submissions(location, 3)
    for path in ("annotations/3/2.1.json", "annotations/3/0.01.json", "annotations/03/0.1.json", "annotations/x.json"):
        (location / path).put(b"{}")
    assert len(unknown_files(location)) == 4
    assert list(list_submissions(location)) == [(3, 0, 1)]


def test_an_answer_for_an_image_that_was_taken_down_is_not_kept(dataset: str) -> None:
    location = location_of(dataset)
    image = RemovedImage(ordinal=0, id=1, image_id="a", uri="a.jpg", sha256=None)
    put_tombstone(
        location, Tombstone(request=TakedownRequest(), reason="asked", when="2026-11-22T10:00:00Z", images=(image,))
    )
    with pytest.raises(RemovedImageError, match=r"^image 1 was taken down: its submissions are not kept$"):
        put_submission(location, Submission.from_value(answer_value()))
    assert list(list_submissions(location)) == []


def test_the_base_is_of_the_jpeg_and_of_ids_and_run_lengths_alone() -> None:
    one, two = ({"annotation_id": id, "segmentation": {"counts": f"c{id}"}} for id in (10_000, 10_001))
    base = base_digest(b"jpeg", [one, two])
    assert base == base_digest(b"jpeg", [two, {**one, "area": 5, "source": "automatic"}])
    others = [
        base_digest(b"jpej", [one, two]),
        base_digest(b"jpeg", [one]),
        base_digest(b"jpeg", [one, {**two, "annotation_id": 10_002}]),
        base_digest(b"jpeg", [one, {**two, "segmentation": {"counts": "c"}}]),
        base_digest(b"", [one, two]),
    ]
    assert len({base, *others}) == 6
