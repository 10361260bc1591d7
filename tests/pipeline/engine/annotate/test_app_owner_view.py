"""The view of a server's owner: the table of images, submissions of other annotators, and returns."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from segmint.catalogs.dataset.submissions import put_return
from segmint.pipeline.commands.cli import app
from segmint.pipeline.corrections.merge import list_merge, merge_submissions
from segmint.pipeline.engine.annotate import app as module
from segmint.pipeline.engine.annotate.app import ServedView, open_view
from segmint.pipeline.engine.annotate.queue import ProgressBoard
from tests.support.annotating import Annotators, draft, options, saved_files
from tests.support.locations import location_of
from tests.support.viewed import image_rows, mask_rows

PLACE = "/api/images/1/assignments/0"


@pytest.fixture
def team(opened: ServedView) -> Annotators:
    """Ann, who started the server, and Bob."""
    return Annotators(opened, "ann", "bob")


def save(client: Any, image: int, n: int, counts: list[str] | None = None, **fields: Any) -> None:
    body = draft(client.get(f"/api/images/{image}").json(), counts or [], **fields)
    assert client.put(f"/api/images/{image}/submissions/{n}", json=body).status_code == 201


def table(client: Any, **asked: Any) -> dict[tuple[int, int], tuple[str, str | None]]:
    rows = client.get("/api/table", params=asked).json()["rows"]
    return {(row["image"], row["assignment"]): (row["state"], row["annotator"]) for row in rows}


def test_a_returned_image_is_its_annotators_next_one_with_the_masks_as_they_were(
    team: Annotators, dataset: Path
) -> None:
    ann, bob = team.who("ann"), team.who("bob")
    counts, said = mask_rows(dataset, 1)[0]["segmentation"]["counts"], "the hand\nis cut off"
    save(bob, 1, 1, [counts], comment=said, flag=True, seconds=30.0)
    save(bob, 2, 1, seconds=50.0)
    assert bob.post("/api/next", json={"after": 2}).json()["image"] == 4
    by_bob = {1: "submitted", 2: "submitted", 4: "in progress"}
    expected: dict[tuple[int, int], Any] = {(image, 0): (state, "bob") for image, state in by_bob.items()}
    assert table(ann) == {**expected, **{(image, 0): ("open", None) for image in (5, 6, 7)}}
    seen = ann.get("/api/table").json()
    first = seen["rows"][0]
    assert first["name"] == image_rows(dataset)[0]["image_id"]
    assert (first["comment"], first["flag"], first["masks"], first["returned"]) == (said, True, 1, None)
    assert (seen["counts"], seen["annotators"], seen["next"]) == ({"submitted": 2, "flagged": 1}, ["bob"], None)
    assert (seen["left"], seen["timed"], seen["seconds"]) == (4, 2, None)
    assert list(table(ann, show="flagged")) == [(1, 0)]
    assert list(table(ann, show="open", person="bob")) == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LEAST", 2)
        patch.setattr(module, "ROWS", 2)
        assert ann.get("/api/table").json()["seconds"] == 40.0
        assert (list(table(ann, start=2)), ann.get("/api/table").json()["next"]) == ([(4, 0), (5, 0)], 2)

    found = ann.get(PLACE).json()
    assert (found["n"], found["submission"]["masks"][0]["counts"], found["state"]) == (1, counts, "submitted")
    before, left = saved_files(dataset), bob.post("/api/next", json={}).json()["left"]
    asked = {"n": 1, "comment": "Add the hand."}
    returned = ann.post(PLACE, json=asked)
    assert (returned.status_code, returned.json()["state"]) == (200, "returned")
    assert saved_files(dataset).items() > before.items()
    assert (table(ann)[1, 0], ann.get("/api/table").json()["left"]) == (("returned", "bob"), 5)
    assert list_merge(location_of(dataset)).skipped_images == {"returned to the annotator": 1}

    assert ann.post("/api/next", json={}).json()["image"] == 5  # not hers
    assert ann.get("/api/images/1").json()["returned"] is None
    given = bob.post("/api/next", json={"after": 4}).json()
    assert (given["image"], given["assignment"], given["left"]) == (1, 0, left + 1)

    def next_after(image: int) -> Any:
        return bob.post("/api/next", json={"after": image}).json()["image"]

    assert [next_after(image) for image in (1, 4, 6, 7)] == [4, 6, 7, 4]  # 1 is skipped, and 5 is Ann's
    for image in (4, 6, 7):
        save(bob, image, 1)
    assert [next_after(image) for image in (7, 1)] == [1, None]
    again = bob.get("/api/images/1").json()
    assert (again["returned"]["by"], again["returned"]["comment"]) == ("ann", "Add the hand.")
    assert (again["submission"]["masks"][0]["counts"], again["submission"]["comment"]) == (counts, said)
    save(bob, 1, 2, [counts], seconds=70.0)
    assert table(ann)[1, 0] == ("submitted", "bob")
    assert bob.get("/api/images/1").json()["returned"] is None
    assert saved_files(dataset).items() > before.items()
    merge_submissions(location_of(dataset))
    late = ann.post(PLACE, json={**asked, "n": 2})
    assert (late.status_code, "already has a merged submission" in late.json()["error"]) == (409, True)


def test_a_merge_by_another_process_is_shown_and_second_answers_stay_submitted(
    dataset: Path, unhurried: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_view(location_of(dataset), options(overlap=1.0)) as opened:
        team = Annotators(opened, "ann", "bob")
        ann, bob = team.who("ann"), team.who("bob")
        save(ann, 1, 1, [mask_rows(dataset, 2)[0]["segmentation"]["counts"]])
        save(bob, 1, 1)
        save(ann, 2, 1)
        expected = {(1, 0): ("submitted", "ann"), (1, 1): ("submitted", "bob"), (2, 0): ("submitted", "ann")}
        assert expected.items() <= table(ann).items()
        assert len(table(ann)) == 12
        merge_submissions(location_of(dataset))
        after = {**expected, (1, 0): ("merged", "ann"), (2, 0): ("merged", "ann")}
        shown = table(ann)
        assert after.items() <= shown.items()
        assert (2, 1) not in shown  # the image has left the queue
        assert len(shown) == 11
        counts = ann.get("/api/table").json()["counts"]
        assert (counts["merged"], counts["submitted"]) == (2, 1)
        late = ann.post("/api/images/1/assignments/1", json={"n": 1, "comment": "x"})
        assert (late.status_code, "already has a merged submission" in late.json()["error"]) == (409, True)
        with open_view(location_of(dataset), options(overlap=1.0)) as again:
            assert table(Annotators(again, "ann").who("ann")) == shown
    monkeypatch.setenv("GOMP_SPINCOUNT", "0")
    monkeypatch.setattr("segmint.pipeline.engine.annotate.app.serve", lambda *_, **__: None)
    done = CliRunner().invoke(app, ["annotate", str(dataset), "--weights", "mobile_sam", "--device", "cpu"])
    assert "4 images to annotate with mobile_sam" in done.stderr


def test_of_two_who_return_and_one_who_saves_nothing_is_lost_and_no_image_has_two_states(
    team: Annotators, dataset: Path
) -> None:
    ann, other, bob = team.who("ann"), team.who("ann"), team.who("bob")

    def states() -> tuple[str, str]:
        """The state as this server knows it, and as one does that starts now."""
        restarted = ProgressBoard(location_of(dataset)).assignments(1)[0]
        return table(ann)[1, 0][0], "submitted" if restarted.returned is None else "returned"

    save(bob, 1, 1)

    # The server dies between its only write and its response: the return is there, and asked for again.
    def put_and_die(*given: Any) -> bool:
        put_return(*given)
        raise OSError("killed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "put_return", put_and_die)
        assert ann.post(PLACE, json={"n": 1, "comment": "first"}).status_code == 500
    assert ProgressBoard(location_of(dataset)).returned_to("bob") == {1: 0}
    assert ann.post(PLACE, json={"n": 1, "comment": "first"}).status_code == 200
    assert states() == ("returned", "returned")
    second = other.post(PLACE, json={"n": 1, "comment": "second"})
    assert (second.status_code, second.json()["error"]) == (409, "ann has already returned this submission: first")

    # Bob saves again: before a return of his first answer, and while one of the second is written.
    save(bob, 1, 2)
    assert ann.post(PLACE, json={"n": 1, "comment": "first"}).status_code == 409
    assert states() == ("submitted", "submitted")

    def save_and_put(*given: Any) -> bool:
        save(bob, 1, 3)
        return put_return(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "put_return", save_and_put)
        raced = ann.post(PLACE, json={"n": 2, "comment": "late"})
    assert (raced.status_code, "saved again" in raced.json()["error"]) == (409, True)
    assert states() == ("submitted", "submitted")
    assert bob.post("/api/next", json={}).json()["image"] != 1
    names = [f"annotations/0/0.{n}.json" for n in (1, 2, 3)]
    assert sorted(saved_files(dataset)) == sorted([*names, *(f"annotations/0/0.{n}.return.json" for n in (1, 2))])
