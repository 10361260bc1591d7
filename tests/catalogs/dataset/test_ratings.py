"""Ratings: files that are read back as they were, put once, and refused where something in them is wrong."""

from typing import Any

import pytest
from pydantic import ValidationError

from segmint.catalogs.dataset.inventory import unknown_files
from segmint.catalogs.dataset.ratings import (
    Rating,
    RatingError,
    counts_digest,
    last_ratings,
    list_ratings,
    parse_rating_path,
    put_rating,
    rater_key,
    read_ratings,
)
from segmint.catalogs.dataset.submissions import RemovedImageError, image_of
from segmint.catalogs.dataset.tombstones import RemovedImage, TakedownRequest, Tombstone, put_tombstone
from tests.support.locations import location_of
from tests.support.submissions import counts_of


def rating(**fields: Any) -> Rating:
    value = {
        "image": 1,
        "mask": 10_001,
        "n": 1,
        "counts_sha256": counts_digest(counts_of((3, 4, 13, 21))),
        "rater": "Ada",
        "score": 7,
        "seconds": 12.5,
        "saved_at": "2026-11-22T10:00:00Z",
    }
    return Rating.model_validate({**value, **fields})


def test_a_rating_is_read_as_it_was_written_and_its_path_says_whose_it_is() -> None:
    first = rating()
    assert Rating.from_json(first.to_json()) == first
    assert first.name.path == f"annotations/ratings/0/10001.{rater_key('Ada')}.1.json"
    assert parse_rating_path(first.name.path) == first.name
    assert image_of(first.name.path) == 0
    assert rating(saved_at="2026-11-22T10:00:09Z").same_work(first)
    assert not rating(score=8).same_work(first)
    with pytest.raises(RatingError, match=r"^there is not a rating: it is not in canonical form$"):
        Rating.from_json(first.to_json().replace(b'":', b'": '), "there")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"score": 0}, "greater than or equal to 1"),
        ({"score": 11}, "less than or equal to 10"),
        ({"score": 7.0}, "valid integer"),
        ({"score": True}, "valid integer"),
        ({"mask": 20_001}, "mask 20001 is not of image 1"),
        ({"rater": "A\x1b[2J"}, "it has a control character"),
        ({"seconds": -1}, "greater than or equal to 0"),
        ({"counts_sha256": "x"}, "should match pattern"),
        ({"more": 1}, "Extra inputs"),
    ],
)
def test_what_is_wrong_is_said(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        rating(**fields)


def test_a_rating_is_put_once_and_a_later_one_takes_its_place(dataset: str) -> None:
    location = location_of(dataset)
    first = rating()
    assert put_rating(location, first)
    assert put_rating(location, first)
    assert not put_rating(location, rating(score=3))
    later = [rating(n=2, score=None), rating(n=3, score=9), rating(rater="Bo"), rating(image=4, mask=40_000)]
    assert all(put_rating(location, each) for each in later)
    names = list_ratings(location)
    assert len(names) == 5
    assert set(read_ratings(location, last_ratings(names))) == set(later[1:])
    assert unknown_files(location) == []


def test_a_file_that_is_no_rating_is_an_error_at_its_place(dataset: str) -> None:
    location = location_of(dataset)
    good, other = rating(), rating(rater="Bo")
    put_rating(location, good)
    (location / other.name.path).put(good.to_json())
    (location / rating(n=2).name.path).put(b" " * 5000)
    found = list(read_ratings(location, list_ratings(location)))
    errors = sorted(str(each) for each in found if isinstance(each, RatingError))
    assert good in found
    assert any("identifies itself as annotations/ratings/0/10001." in error for error in errors)
    assert any("has 5,000 bytes: expected at most 4,096" in error for error in errors)
    (location / "annotations/ratings/0/x.json").put(b"{}")
    assert len(unknown_files(location)) == 1


def test_a_rating_of_an_image_that_was_taken_down_is_not_kept(dataset: str) -> None:
    location = location_of(dataset)
    image = RemovedImage(ordinal=0, id=1, image_id="a", uri="a.jpg", sha256=None)
    put_tombstone(
        location, Tombstone(request=TakedownRequest(), reason="asked", when="2026-11-22T10:00:00Z", images=(image,))
    )
    with pytest.raises(RemovedImageError, match=r"^image 1 was taken down: its ratings are not kept$"):
        put_rating(location, rating())
    assert list_ratings(location) == []
