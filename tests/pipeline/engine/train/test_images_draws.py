"""Draws by keys: random access, each image once a turn, weights, and caps of masks."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segmint.pipeline.engine.train.images import DrawSequence, capped, fixed_draws
from segmint.pipeline.engine.train.settings import BatchKeys
from tests.support.trained import find

BATCH = BatchKeys(images=3, masks=5, masks_per_image=2)


@pytest.fixture(scope="module")
def images(trainable, tmp_path_factory):
    entries = [{"uri": str(trainable), "masks": masks} for masks in ("human", "automatic")]
    return find(tmp_path_factory.mktemp("draws"), trainable, datasets=entries).images


def test_each_image_of_one_dataset_is_drawn_once_a_turn_in_another_order(images):
    trained = images.entry == 0
    draws = DrawSequence(images, trained, [1, 1], BATCH, seed=5)
    turns = [[draw.image for step in range(first, first + 4) for draw in draws.step(step)] for first in (1, 5)]
    assert [sorted(turn) for turn in turns] == [np.flatnonzero(trained).tolist()] * 2
    assert turns[0] != turns[1]


def test_a_step_does_not_depend_on_those_before_it_and_does_on_the_seed(images):
    every = np.ones(len(images), bool)
    in_order = [str(DrawSequence(images, every, [1, 1], BATCH, seed=5).step(step)) for step in range(1, 9)]
    draws = DrawSequence(images, every, [1, 1], BATCH, seed=5)
    assert [str(draws.step(step)) for step in range(8, 0, -1)] == in_order[::-1]
    assert [str(DrawSequence(images, every, [1, 1], BATCH, seed=6).step(step)) for step in range(1, 9)] != in_order


def test_weights_decide_how_often_images_of_a_dataset_are_drawn(images):
    draws = DrawSequence(images, np.ones(len(images), bool), [3, 1], BatchKeys(images=10), seed=0)
    drawn = Counter(draw.image for step in range(1, 201) for draw in draws.step(step))
    first, second = (sum(drawn[row] for row in np.flatnonzero(images.entry == entry)) for entry in (0, 1))
    assert 1.0 * 2000 * 0.75 - 80 < first < 2000 * 0.75 + 80
    assert min(drawn.values()) > 0.6 * 500 / 12
    assert first + second == 2000


def test_each_image_is_drawn_once_before_any_comes_again_of_each_entry(images):
    draws = DrawSequence(images, np.ones(len(images), bool), [3, 1], BatchKeys(images=10), seed=0)
    draws.step(1000)
    drawn = [draw.image for step in range(1, 501) for draw in draws.step(step)]  # beyond a block of places
    for entry in (0, 1):
        rows = np.flatnonzero(images.entry == entry).tolist()
        of_entry = [image for image in drawn if images.entry[image] == entry]
        turns = [of_entry[start : start + 12] for start in range(0, len(of_entry) - 12, 12)]
        assert len(turns) > 90
        assert all(sorted(turn) == rows for turn in turns)


@pytest.mark.parametrize("order", [("human", "automatic"), ("automatic", "human")])
def test_masks_of_people_are_evaluated_whatever_the_order_of_the_datasets(trainable, tmp_path, order):
    entries = [{"uri": str(trainable), "masks": masks} for masks in order]
    images = find(tmp_path, trainable, datasets=entries).images
    fixed = fixed_draws(images, np.ones(len(images), bool), 99, 8, order)
    assert len(fixed) == 12
    assert all(draw.masks.tolist() == [int(images.ids[draw.image]) * 10_000] for draw in fixed)


def test_masks_are_of_their_images_and_their_numbers_are_unique(trainable, tmp_path):
    images = find(tmp_path, trainable).images
    draws = DrawSequence(images, np.ones(len(images), bool), [1], BATCH, seed=0)
    for step in range(1, 6):
        drawn = draws.step(step)
        numbers = [number for draw in drawn for number in draw.numbers]
        assert len(numbers) == len(set(numbers)) == 5
        for draw in drawn:
            assert len(draw.masks) == len(draw.numbers)
            assert set(draw.masks) <= set(images.masks_of(draw.image).tolist())
    fixed = fixed_draws(images, np.ones(len(images), bool), 4, 1, ["all"])
    assert [len(draw.masks) for draw in fixed] == [1] * 4


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(0, 200))
def test_the_largest_counts_are_lowered_until_they_fit(wanted, more):
    most = len(wanted) + more
    counts = capped(wanted, most)
    assert sum(counts) == min(sum(wanted), most)
    assert all(1 <= count <= want for count, want in zip(counts, wanted, strict=True))
    lowered = [count for count, want in zip(counts, wanted, strict=True) if count < want]
    assert all(max(counts) - count <= 1 for count in lowered)
