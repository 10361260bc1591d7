"""Held-out images: by their sources' hashes, with images that show the same on one side, also as a dataset grows."""

import io
from dataclasses import fields, replace

import numpy as np
import pytest
from PIL import Image

from segmint.operators.similar.near import image_hashes
from segmint.pipeline.engine.train.images import TrainingImages
from segmint.pipeline.engine.train.reading import digest_of_sources, held_out, is_held_out
from tests.support.photographs import photograph


def images_of(pictures: list[np.ndarray], sources: list[bytes]) -> TrainingImages:
    """Images with these pixels and sources, as looks at them give them."""
    count = len(pictures)
    seen = [image_hashes(picture, mirror=True) for picture in pictures]
    numbers = np.arange(count)
    return TrainingImages(
        shards=[],
        entry=np.zeros(count, np.int64),
        shard=np.zeros(count, np.int64),
        ids=numbers,
        sizes=np.array([picture.shape[:2] for picture in pictures]),
        places=np.zeros((count, 4), np.int64),
        jpeg_sha256=np.stack([np.frombuffer(source[::-1], np.uint8) for source in sources]),
        source_sha256=np.stack([np.frombuffer(source, np.uint8) for source in sources]),
        hashes=np.stack([each.views for each in seen]),
        thumbnails=np.stack([each.thumbnail for each in seen]),
        annotations=numbers,
        starts=np.arange(count + 1),
    )


def some(images: TrainingImages, rows: np.ndarray) -> TrainingImages:
    """Some of the images, as of a dataset that has only these."""
    per_row = {field.name for field in fields(images)} - {"shards", "annotations", "starts"}
    return replace(images, **{name: getattr(images, name)[rows] for name in per_row})


def source(number: int, held: bool | None = None) -> bytes:
    """A hash, the number-th one; with `held` the number-th one that is on this side at 20%."""
    found = (np.random.default_rng(seed).bytes(32) for seed in range(10_000))
    wanted = (each for each in found if held is None or is_held_out(each, 0.2) == held)
    return next(each for place, each in enumerate(wanted) if place == number)


@pytest.fixture(scope="module")
def windows() -> list[np.ndarray]:
    """40 windows of photographs that show different things."""
    found = []
    for name in ("astronaut", "coffee", "chelsea", "rocket"):
        picture = photograph(name)
        found += [picture[y : y + 130, x : x + 130] for y in range(0, 170, 85) for x in range(0, 310, 62)]
    return found


def test_the_hash_of_the_source_alone_decides_about_images_that_show_different_things(windows):
    sources = [source(number) for number in range(len(windows))]
    images = images_of(windows, sources)
    held = held_out(images, 0.2)
    assert held.tolist() == [is_held_out(each, 0.2) for each in sources]
    assert 2 <= held.sum() <= 16
    assert not held_out(images, 0.0).any()
    assert digest_of_sources(images, held)[0] == held.sum()


def changed(picture: np.ndarray, how: str) -> np.ndarray:
    if how == "mirrored":
        return np.ascontiguousarray(picture[:, ::-1])
    if how == "smaller":
        return np.asarray(Image.fromarray(picture).resize((200, 200), Image.Resampling.LANCZOS))
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=50)
    return np.asarray(Image.open(buffer))


@pytest.mark.parametrize("how", ["encoded again", "smaller", "mirrored"])
def test_near_duplicates_are_on_one_side_and_one_that_trains_takes_the_others_with_it(how):
    picture = photograph("coffee")[:400, :400]
    pictures = [picture, changed(picture, how), photograph("astronaut")]
    for sides, expected in [
        ([True, True, True], [True, True, True]),
        ([True, False, True], [False, False, True]),
        ([False, True, True], [False, False, True]),
    ]:
        images = images_of(pictures, [source(number, side) for number, side in enumerate(sides)])
        assert held_out(images, 0.2).tolist() == expected


def test_what_is_held_out_was_held_out_in_every_smaller_dataset(windows):
    pictures = [
        changed(windows[number % 20], "encoded again") if number >= 20 else windows[number] for number in range(40)
    ]
    images = images_of(pictures, [source(number) for number in range(40)])
    held = held_out(images, 0.5)
    assert held.any()
    random = np.random.default_rng(0)
    for _ in range(10):
        rows = np.sort(random.permutation(40)[: int(random.integers(1, 40))])
        before = held_out(some(images, rows), 0.5)
        assert (before | ~held[rows]).all()


def test_images_of_one_source_or_one_jpeg_are_on_one_side():
    flat = np.full((300, 300, 3), 128, np.uint8)  # without a perceptual hash
    images = images_of([flat] * 3, [source(0, True), source(0, True), source(0, False)])
    assert held_out(images, 0.2).tolist() == [True, True, False]
    images.jpeg_sha256[2] = images.jpeg_sha256[0]
    assert held_out(images, 0.2).tolist() == [False, False, False]
