"""What the raters' page asks, answered on a small real dataset: what is saved is there once, and nothing tells more."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from segmint.catalogs.dataset.ratings import Rating, counts_digest, last_ratings, list_ratings, put_rating, read_ratings
from segmint.catalogs.dataset.tombstones import RemovedImage, TakedownRequest, Tombstone, put_tombstone
from segmint.pipeline.engine.annotate import rating as rater_view
from segmint.pipeline.engine.annotate.rating import SampleOptions, make_rating_app, open_rater_view
from segmint.pipeline.engine.annotate.requests import Team
from segmint.pipeline.engine.annotate.source import ImageMemory
from tests.support.annotating import ORIGIN, PORT, acting_as
from tests.support.locations import location_of
from tests.support.rated import counts_by_mask, rating_of

KEYS = {"item", "image", "size", "counts", "n", "score", "done", "total"}


@contextmanager
def raters(dataset: Path, *names: str, masks: int = 6) -> Iterator[list[TestClient]]:
    """The browsers of raters, on a server of their own."""
    with open_rater_view(location_of(dataset), SampleOptions(masks=masks)) as view:
        team = Team(PORT, list(names))
        app = make_rating_app(view, team)
        clients = []
        for name in names:
            client = TestClient(app, base_url=ORIGIN, follow_redirects=False, raise_server_exceptions=False)
            assert client.get(team.address(name)).status_code == 303
            client.headers.update(acting_as(name))
            clients.append(client)
        yield clients


def rate(client: TestClient, shown: Any, score: int | None, seconds: float = 4.5) -> Any:
    """Rate a mask that was shown, and return the next one."""
    answer = client.put(f"/api/rate/{shown['item']}/{shown['n'] + 1}", json={"score": score, "seconds": seconds})
    assert answer.status_code == 201, answer.text
    assert answer.json()["n"] == shown["n"] + 1
    return answer.json()["next"]


def saved(dataset: Path) -> dict[tuple[str, int], Rating]:
    """The last rating of each rater and mask."""
    location = location_of(dataset)
    found = list(read_ratings(location, last_ratings(list_ratings(location))))
    assert all(isinstance(each, Rating) for each in found)
    return {(each.rater, each.mask): each for each in found if isinstance(each, Rating)}


def test_masks_come_one_at_a_time_and_what_is_rated_stays_rated(dataset: Path) -> None:
    counts = counts_by_mask(location_of(dataset))
    with raters(dataset, "ann") as (ann,):
        assert ann.get("/api/session").json()["stage"] == "rate"
        assert "How good is this mask?" in ann.get("/").text
        shown = ann.post("/api/rate/next").json()
        assert set(shown) == KEYS
        assert (shown["item"], shown["n"], shown["score"], shown["done"], shown["total"]) == (0, 0, None, 0, 6)
        assert shown["counts"] in counts.values()
        assert ann.get(f"/images/{shown['image']}.jpg").status_code == 200
        seen = [shown["counts"]]
        for score in (7, 10, 1):
            shown = rate(ann, shown, score)
            seen.append(shown["counts"])
        assert (shown["item"], shown["done"]) == (3, 3)
    with raters(dataset, "ann") as (ann,):  # the server was started again
        assert ann.post("/api/rate/next").json() == shown
        for score in (2, 3):
            shown = rate(ann, shown, score)
        assert rate(ann, shown, 4) == {"item": None, "done": 6, "total": 6}
    found = saved(dataset)
    assert sorted(each.score or 0 for each in found.values()) == [1, 2, 3, 4, 7, 10]
    assert {each.counts_sha256 for each in found.values()} >= {counts_digest(each) for each in seen}
    assert all(counts_digest(counts[mask]) == each.counts_sha256 for (_, mask), each in found.items())


def test_a_rating_is_taken_back_and_given_again(dataset: Path) -> None:
    with raters(dataset, "ann") as (ann,):
        first = ann.post("/api/rate/next").json()
        rate(ann, first, 3)
        again = ann.get("/api/rate/0").json()
        assert (again["n"], again["score"], again["counts"]) == (1, 3, first["counts"])
        assert rate(ann, again, None)["item"] == 0
        again = ann.get("/api/rate/0").json()
        assert (again["n"], again["score"], again["done"]) == (2, None, 0)
        rate(ann, again, 9)
    ((_, rating),) = saved(dataset).items()
    assert (rating.n, rating.score) == (3, 9)
    assert len(list_ratings(location_of(dataset))) == 3


def test_raters_rate_the_same_masks_apart(dataset: Path) -> None:
    with raters(dataset, "ann", "bo") as (ann, bo):
        for client, score in ((ann, 5), (bo, 8)):
            shown = client.post("/api/rate/next").json()
            while shown["item"] is not None:
                shown = rate(client, shown, score)
    found = saved(dataset)
    masks = {mask for _, mask in found}
    assert len(masks) == 6
    assert {key: each.score for key, each in found.items()} == {
        (name, mask): score for mask in masks for name, score in (("ann", 5), ("bo", 8))
    }


def test_a_save_that_is_tried_again_is_one_and_another_windows_is_said(dataset: Path) -> None:
    with raters(dataset, "ann") as (ann,), raters(dataset, "ann") as (other,):
        shown = ann.post("/api/rate/next").json()
        assert rate(ann, shown, 6) == rate(ann, shown, 6)  # the first answer was lost on the way
        lost = other.put(f"/api/rate/{shown['item']}/1", json={"score": 2, "seconds": 1.0})
        assert lost.status_code == 409
        assert lost.json() == {"error": "another rating of this mask was saved first", "score": 6}
        assert other.post("/api/rate/next").json()["item"] == 1  # it has learned of it
    assert [each.score for each in saved(dataset).values()] == [6]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"score": 11, "seconds": 1.0}, "expected a score from 1 to 10: score: Input should be less"),
        ({"score": 0, "seconds": 1.0}, "expected a score from 1 to 10: score: Input should be greater"),
        ({"score": "7", "seconds": 1.0}, "score: Input should be a valid integer"),
        ({"score": 7, "seconds": -1}, "seconds: Input should be greater"),
        ({"score": 7}, "expected an object with only score and seconds"),
        ({"score": 7, "seconds": 1, "rater": "bo"}, "expected an object with only score and seconds"),
        ([7], "expected an object with only score and seconds"),
    ],
)
def test_what_is_no_rating_is_refused(dataset: Path, body: Any, said: str) -> None:
    with raters(dataset, "ann") as (ann,):
        answer = ann.put("/api/rate/0/1", json=body)
        assert answer.status_code == 400
        assert said in answer.json()["error"]
    assert list_ratings(location_of(dataset)) == []


def test_odd_addresses_and_strangers_are_refused(dataset: Path) -> None:
    good = {"score": 7, "seconds": 1.0}
    with raters(dataset, "ann", "bo") as (ann, bo):
        for path in ("/api/rate/6/1", "/api/rate/-1/1", "/api/rate/0/x", "/api/rate/0/2", "/api/rate/9999999999/1"):
            assert ann.put(path, json=good).status_code == 400, path
        assert ann.get("/images/3.jpg").status_code == 404
        assert ann.put("/api/rate/0/1", json=good, headers={"x-segmint": ""}).status_code == 403
        assert ann.put("/api/rate/0/1", json=good, headers={"origin": "http://evil.example"}).status_code == 403
        assert ann.put("/api/rate/0/1", json=good, headers=acting_as("bo")).status_code == 403
        assert bo.post("/api/address", json={"annotator": "eve"}).status_code == 403
        bo.cookies.clear()
        assert bo.put("/api/rate/0/1", json=good).status_code == 403
        assert bo.get("/api/rate/0").status_code == 403
    assert list_ratings(location_of(dataset)) == []


def take_down(dataset: Path, image: int) -> None:
    gone = RemovedImage(ordinal=image - 1, id=image, image_id="a", uri="a.jpg", sha256=None)
    told = Tombstone(request=TakedownRequest(), reason="asked", when="2026-11-22T10:00:00Z", images=(gone,))
    put_tombstone(location_of(dataset), told)


def test_an_image_that_is_taken_down_leaves_the_memory_though_nobody_asks_for_it(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rater_view, "ImageMemory", partial(ImageMemory, seconds=0.05))
    with open_rater_view(location_of(dataset), SampleOptions(masks=6)) as view:
        image = view.next("ann")["image"]
        assert image in view.source.recent.images()
        take_down(dataset, image)
        end = time.monotonic() + 20
        while image in view.source.recent.images() and time.monotonic() < end:
            time.sleep(0.05)
        assert image not in view.source.recent.images()


def test_masks_of_an_image_that_is_taken_down_meanwhile_are_passed_over(dataset: Path) -> None:
    with raters(dataset, "ann", masks=10**6) as (ann,):
        shown = ann.post("/api/rate/next").json()
        take_down(dataset, shown["image"])
        assert ann.put("/api/rate/0/1", json={"score": 7, "seconds": 1.0}).status_code == 410
        assert ann.get("/api/rate/0").status_code == 410
        images = set()
        following = ann.post("/api/rate/next").json()
        while following["item"] is not None:
            images.add(following["image"])
            following = rate(ann, following, 5)
    assert shown["image"] not in images
    assert len(images) > 1


def test_a_rating_of_another_form_of_a_mask_counts_for_nothing(dataset: Path) -> None:
    location = location_of(dataset)
    for mask in counts_by_mask(location):
        assert put_rating(location, rating_of(mask, "another form", "ann", None))
    with raters(dataset, "ann") as (ann,):
        shown = ann.post("/api/rate/next").json()
        assert (shown["item"], shown["n"], shown["score"]) == (0, 1, None)
        rate(ann, shown, 5)
