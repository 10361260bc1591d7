"""Suppression keeps the boxes that torchvision keeps, in its order: ties and boxes without area included."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import batched_nms
from torchvision.ops import nms as torchvision_nms

from segmint.model.automatic.candidates import nms, nms_on_device

COORDINATE = st.integers(0, 12)
BOX = st.tuples(COORDINATE, COORDINATE, COORDINATE, COORDINATE).map(
    lambda box: (min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3]))
)
SCORE = st.sampled_from([0.0, 0.5, 0.9, 0.9000001, 1.0, 1.03])
# Fractions that small boxes hit exactly, of which some round up and some down in float32.
THRESHOLD = st.sampled_from([0.0, 0.1, 0.2, 0.25, 0.3, 1 / 3, 0.4, 0.5, 0.6, 2 / 3, 0.7, 0.75, 0.8, 0.9, 1.0])


def check(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> None:
    keep = nms(boxes, scores, threshold)

    as_boxes, as_scores = torch.from_numpy(boxes).float(), torch.from_numpy(scores)
    assert keep.tolist() == torchvision_nms(as_boxes, as_scores, threshold).tolist()
    for block in (4096, 7 + len(boxes) // 5):
        assert keep.tolist() == nms_on_device(torch.from_numpy(boxes), as_scores, threshold, block).tolist()
    one_class = torch.zeros(len(boxes))
    assert keep.tolist() == batched_nms(as_boxes, as_scores, one_class, threshold).tolist()


@given(st.lists(st.tuples(BOX, SCORE), min_size=1, max_size=40), THRESHOLD)
@settings(max_examples=200)
def test_small_boxes_with_ties(items: list[tuple[tuple[int, ...], float]], threshold: float) -> None:
    check(
        np.array([box for box, _ in items], dtype=np.int64),
        np.array([score for _, score in items], dtype=np.float32),
        threshold,
    )


@pytest.mark.parametrize("count", [100, 1000])
def test_boxes_of_a_large_frame(count: int) -> None:
    rng = np.random.default_rng(count)
    corner = rng.integers(0, 4000, (count, 2))
    size = rng.integers(0, 3000, (count, 2)) // rng.integers(1, 40, (count, 1))
    boxes = np.concatenate([corner, corner + size], axis=1)
    check(boxes, rng.choice(np.float32([0.9, 0.95, 1.0]), count), 0.7)


def test_more_boxes_than_torchvision_sorts_stably() -> None:
    rng = np.random.default_rng(0)
    corner = rng.integers(0, 300, (1500, 2))
    boxes = np.concatenate([corner, corner + rng.integers(0, 200, (1500, 2))], axis=1)
    check(boxes, rng.permutation(1500).astype(np.float32), 0.7)


def test_boxes_without_area_suppress_not_even_their_twins() -> None:
    line = [3, 3, 3, 9]
    boxes, scores = np.array([line, line, [3, 3, 3, 3]]), np.ones(3, dtype=np.float32)

    assert nms(boxes, scores, 0.0).tolist() == [0, 1, 2]
    assert nms_on_device(torch.from_numpy(boxes), torch.from_numpy(scores), 0.0).tolist() == [0, 1, 2]


def test_a_long_chain_of_boxes_is_settled_link_by_link() -> None:
    """Each box overlaps the next alone: every other one stays, which a device finds in as many rounds as boxes."""
    x = 10 * np.arange(60)
    boxes = np.stack([x, np.zeros_like(x), x + 30, np.full_like(x, 9)], axis=1)
    scores = np.linspace(1, 0, 60, dtype=np.float32)
    check(boxes, scores, 0.4)
    assert nms(boxes, scores, 0.4).tolist() == list(range(0, 60, 2))


def test_no_boxes() -> None:
    boxes, scores = np.zeros((0, 4), np.int64), np.zeros(0, np.float32)
    assert nms(boxes, scores, 0.7).tolist() == []
    assert nms_on_device(torch.from_numpy(boxes), torch.from_numpy(scores), 0.7).tolist() == []


@pytest.mark.cuda
def test_a_gpu_keeps_the_same_boxes() -> None:
    rng = np.random.default_rng(0)
    for count in (0, 1, 50, 500, 6000):
        corner = rng.integers(0, 1000, (count, 2))
        boxes = np.concatenate([corner, corner + rng.integers(0, 300, (count, 2))], axis=1)
        scores = rng.choice(np.float32([0.9, 0.95, 1.0]), count)
        assert nms(boxes, scores, 0.5, torch.device("cuda")).tolist() == nms(boxes, scores, 0.5).tolist()
