"""Masks and their corrections find one another."""

import numpy as np
import pytest
from pycocotools import mask as coco

from segmint.pipeline.engine.study.score import ImagePairs, MaskPair, StudyMask, ids_hold, pair_masks


def box(id: int | None, x: int, y: int, w: int, h: int) -> StudyMask:
    """A rectangle in 40 x 40 pixels."""
    mask = np.zeros((40, 40), np.uint8)
    mask[y : y + h, x : x + w] = 1
    return StudyMask(id, coco.encode(np.asfortranarray(mask)))


DRAWN = [box(10000, 0, 0, 10, 10), box(10001, 0, 0, 10, 5), box(10002, 20, 20, 10, 10)]


def test_by_id_also_where_another_overlaps_more() -> None:
    corrected = [box(10001, 0, 0, 10, 10), box(10000, 0, 0, 10, 5), box(10002, 20, 20, 10, 9)]
    found = pair_masks(DRAWN, corrected, by_id=True)
    assert found == ImagePairs(
        (MaskPair(10000, 0.5, True), MaskPair(10001, 0.5, True), MaskPair(10002, 0.9, True)), (), 0
    )


def test_by_iou_the_best_first_and_none_twice() -> None:
    corrected = [box(1, 0, 0, 10, 4), box(2, 0, 0, 10, 9), box(3, 20, 20, 10, 10)]
    found = pair_masks(DRAWN, corrected, by_id=False)
    assert set(found.pairs) == {MaskPair(10000, 0.9, False), MaskPair(10001, 0.8, False), MaskPair(10002, 1.0, False)}
    assert (found.deleted, found.added) == ((), 0)


def test_what_lost_its_id_is_paired_with_what_is_left() -> None:
    corrected = [box(10000, 0, 0, 10, 10), box(None, 0, 0, 10, 4), box(None, 30, 0, 5, 5)]
    found = pair_masks(DRAWN, corrected, by_id=True)
    assert found == ImagePairs((MaskPair(10000, 1.0, True), MaskPair(10001, 0.8, False)), (10002,), 1)


def test_little_overlap_is_no_correction() -> None:
    assert pair_masks(DRAWN[2:], [box(None, 29, 20, 10, 10)], by_id=True) == ImagePairs((), (10002,), 1)
    assert pair_masks(DRAWN[2:], [box(10002, 29, 20, 10, 10)], by_id=True).pairs[0].iou == pytest.approx(10 / 190)


def test_nothing_left_of_a_mask_is_a_deletion() -> None:
    assert pair_masks(DRAWN[:1], [box(10000, 0, 0, 0, 0)], by_id=True) == ImagePairs((), (10000,), 0)
    assert pair_masks(DRAWN[:1], [], by_id=True) == ImagePairs((), (10000,), 0)
    assert pair_masks([], [box(None, 0, 0, 3, 3)], by_id=True) == ImagePairs((), (), 1)


def test_of_two_with_one_id_the_other_is_added() -> None:
    corrected = [box(10002, 20, 20, 10, 10), box(10002, 0, 30, 10, 10)]
    assert pair_masks(DRAWN[2:], corrected, by_id=True) == ImagePairs((MaskPair(10002, 1.0, True),), (), 1)


def test_ids_hold_unless_one_is_of_another_image() -> None:
    drawn = {1: DRAWN, 2: [box(20000, 0, 0, 5, 5)]}
    assert ids_hold(drawn, {1: [box(10001, 0, 0, 5, 5), box(7, 0, 0, 5, 5)], 2: [box(None, 0, 0, 5, 5)]})
    assert not ids_hold(drawn, {2: [box(10000, 0, 0, 5, 5)]})
    assert not ids_hold(drawn, {1: [box(10001, 0, 0, 5, 5)], 2: [box(10000, 0, 0, 5, 5)]}), "one is enough"
