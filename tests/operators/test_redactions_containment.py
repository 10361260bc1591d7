"""Containers of masks, compared with pixels: the smallest larger mask that contains 95% of a mask, and no cycles."""

from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from pycocotools import mask as coco

from segmint.operators import redactions
from segmint.operators.redactions import container_ids, find_containers
from segmint.operators.rows import Row


def counts_of(mask: np.ndarray) -> str:
    return str(coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode("ascii"))


def containers_of(masks: list[np.ndarray], size: tuple[int, int] = (6, 9)) -> list[int | None]:
    return find_containers(size, [counts_of(mask) for mask in masks])


def by_pixels(masks: list[np.ndarray]) -> list[int | None]:
    """The same, mask by mask and pixel by pixel."""
    found: list[int | None] = []
    for place, mask in enumerate(masks):
        area = int(mask.sum())
        larger = [
            (int(other.sum()), -at)
            for at, other in enumerate(masks)
            if (int(other.sum()), -at) > (area, -place)
            and area > 0
            and Fraction(int((mask & other).sum()), area) >= Fraction(95, 100)
        ]
        found.append(-min(larger)[1] if larger else None)
    return found


@st.composite
def scenes(draw: st.DrawFn) -> list[np.ndarray]:
    """Masks that often contain each other: noise, and rectangles with and without a few pixels."""
    masks = draw(st.lists(nps.arrays(np.bool_, (6, 9)), max_size=3))
    for _ in range(draw(st.integers(0, 9))):
        (top, bottom), (left, right) = (sorted(draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in (6, 9))
        mask = np.zeros((6, 9), bool)
        mask[top:bottom, left:right] = True
        for y, x in draw(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 8)), max_size=2)):
            mask[y, x] ^= True
        masks.append(mask)
    return masks


@settings(max_examples=300)
@given(scenes())
def test_containers_are_those_of_the_pixels_and_never_form_a_cycle(masks: list[np.ndarray]) -> None:
    found = containers_of(masks)
    assert found == by_pixels(masks)
    for place in range(len(masks)):
        seen = {place}
        at = found[place]
        while at is not None:
            assert at not in seen
            seen.add(at)
            at = found[at]
    for place, container in enumerate(found):
        if container is not None:
            area, of_container = int(masks[place].sum()), int(masks[container].sum())
            assert of_container > area or (of_container == area and container < place)


def test_95_percent_is_enough_and_a_pixel_less_is_not() -> None:
    inner, nearly, less = np.zeros((3, 10, 30), bool)
    inner[2:6, 5:10] = True  # 20 pixels
    nearly[2:9, 5:20] = less[2:9, 5:20] = True
    nearly[2, 5] = less[2, 5] = less[3, 5] = False
    assert containers_of([inner, nearly], (10, 30)) == [1, None]
    assert containers_of([inner, less], (10, 30)) == [None, None]


def test_of_masks_with_equal_pixels_each_is_in_the_one_before() -> None:
    mask = np.zeros((6, 9), bool)
    mask[1:3, 1:3] = True
    whole = np.ones((6, 9), bool)
    assert containers_of([mask, mask, whole, mask]) == [2, 0, None, 1]
    assert containers_of([np.zeros((6, 9), bool), whole]) == [None, None]
    assert containers_of([]) == []
    assert containers_of([whole]) == [None]


def test_more_masks_than_are_compared_at_once() -> None:
    """Also more than pycocotools measures at once."""
    count = 2 * redactions.AT_ONCE + 8
    masks = [np.zeros((4, 2 * count), bool) for _ in range(count)]
    for index, mask in enumerate(masks):
        mask[:, index % 3 :: 3][:, : 2 + index // 3] = True
    assert containers_of(masks, (4, 2 * count)) == by_pixels(masks)


def test_ids_are_those_of_the_rows() -> None:
    whole, part = np.ones((2, 6, 9), bool)
    part[:, 4:] = False
    rows: list[Row] = [{"segmentation": {"size": [6, 9], "counts": counts_of(mask)}} for mask in (part, whole)]
    assert container_ids(rows, [70_003, 70_009]) == [70_009, None]
    assert container_ids([], []) == []
