"""Edges of masks, and their matches with boundaries, against second implementations that are plain and slow."""

import numpy as np
import pytest
import torch
import torchvision
from scipy import ndimage
from segment_anything import SamPredictor

from segmint.model.sam.predictor import Embedding, Predictor
from segmint.operators.evaluate.edges import (
    count_edges,
    edge_settings,
    find_edges,
    ignored_pixels,
    label_boundaries,
    match_edges,
    suppress,
    thin,
    thresholds,
)

SIDE = 4


def naive_edges(reference: SamPredictor) -> tuple[np.ndarray, np.ndarray]:
    """Strength and direction of the edges over whole images, before suppression: (H, W) and (2, H, W), x and y."""
    height, width = reference.original_size
    probabilities, scores = [], []
    for row in range(SIDE):
        for column in range(SIDE):
            point = np.array([[(column + 0.5) * width / SIDE, (row + 0.5) * height / SIDE]])
            logits, iou, _ = reference.predict(point, np.array([1]), return_logits=True)
            probabilities.extend(1 / (1 + np.exp(-logits.astype(np.float64))))
            scores.extend(iou)
    boxes = []
    for each in probabilities:
        y, x = np.nonzero(each > 0.5)
        boxes.append([x.min(), y.min(), x.max(), y.max()] if len(y) else [0, 0, 0, 0])
    kept = torchvision.ops.nms(torch.tensor(boxes, dtype=torch.float32), torch.tensor(np.array(scores)), 0.7)
    assert 3 < len(kept) < len(boxes)
    strength, direction = np.zeros((height, width)), np.zeros((2, height, width))
    for index in kept.tolist():
        probability = probabilities[index]
        gradient = np.stack([ndimage.sobel(probability, axis=axis, mode="nearest") for axis in (1, 0)])
        mask = probability > 0.5
        size = np.hypot(*gradient) * (ndimage.binary_dilation(mask) & ~mask)
        direction = np.where(size > strength, gradient, direction)
        strength = np.maximum(size, strength)
    return (strength - strength.min()) / (strength.max() - strength.min()), direction


def naive_suppression(strength: np.ndarray, direction: np.ndarray) -> np.ndarray:
    height, width = strength.shape

    def at(y: int, x: int) -> float:
        return strength[y, x] if 0 <= y < height and 0 <= x < width else 0.0

    result = np.zeros_like(strength)
    for y, x in np.argwhere(strength > 0):
        right, down = direction[:, y, x]
        if right < 0 or (right == 0 and down < 0):
            right, down = -right, -down
        neighbors = []
        for sign in (1, -1):
            if abs(right) >= abs(down):  # between two pixels of the next column
                share = sign * down / right
                low = int(np.floor(share))
                part = share - low
                neighbors.append((1 - part) * at(y + low, x + sign) + part * at(y + low + 1, x + sign))
            else:
                way = sign * (1 if down > 0 else -1)
                share = way * right / down
                low = int(np.floor(share))
                part = share - low
                neighbors.append((1 - part) * at(y + way, x + low) + part * at(y + way, x + low + 1))
        if strength[y, x] > neighbors[0] and strength[y, x] >= neighbors[1]:
            result[y, x] = strength[y, x]
    return result


def test_settings_are_the_papers() -> None:
    settings = edge_settings()
    assert (settings.points_per_side, settings.box_nms_thresh, settings.crop_n_layers) == (16, 0.7, 0)
    assert settings.pred_iou_thresh == settings.stability_score_thresh == 0


def test_edges_are_those_of_a_second_implementation(
    predictor: Predictor, embedding: Embedding, reference: SamPredictor
) -> None:
    found = find_edges(predictor, embedding, edge_settings(SIDE))
    expected = naive_suppression(*naive_edges(reference))
    assert found.max() == 1
    assert (expected > 0.05).sum() > 200
    # Where two neighbors are equal but for rounding, one of them is left in one and the other in the other.
    same = np.abs(found - expected) < 1e-3
    assert same.mean() > 0.999
    assert same[expected > 0.05].mean() > 0.99


def test_suppression_keeps_one_pixel_of_a_ridge_and_one_of_two_equal() -> None:
    profile = np.array([0, 0.2, 0.5, 0.9, 0.6, 0.1, 0, 0.4, 0.4, 0])
    strength = np.tile(profile, (6, 1)).astype(np.float32)
    for sign in (1, -1):
        across = np.full(strength.shape, sign, np.float32)
        across[:, 8] *= -1  # the outlines of two masks side by side have opposite gradients
        kept = suppress(strength, across, np.zeros_like(across))
        assert set(np.flatnonzero(kept.any(axis=0))) == {3, 8}
        turned = suppress(strength.T.copy(), np.zeros_like(across.T), across.T.copy())
        assert np.array_equal(turned, kept.T)


def test_counts_at_each_threshold_are_those_of_naive_matching() -> None:
    generator = np.random.default_rng(3)
    labels = np.zeros((40, 50), np.int64)
    labels[10:30, 12:40] = 1
    labels[15:25, 20:44] = 2
    truths = [label_boundaries(labels), label_boundaries(np.roll(labels, (1, 2), (0, 1)))]
    edges = np.where(generator.random(labels.shape) < 0.15, generator.random(labels.shape), 0).astype(np.float32)
    edges[np.roll(truths[0], 1, 0)] = 0.63
    cuts, tolerance = thresholds(9), 0.03
    pixels = tolerance * np.hypot(40, 50)
    for annotators in (truths[:1], truths):
        counts = count_edges(edges, annotators, cuts, tolerance)
        for index, cut in enumerate(cuts):
            found = thin(edges >= cut)
            matches = [match_edges(found, truth, pixels) for truth in annotators]
            union = np.any([of_found for of_found, _ in matches], axis=0)
            assert counts.found_matched[index] == union.sum()
            assert counts.found[index] == found.sum()
            assert counts.true_matched[index] == sum(of_truth.sum() for _, of_truth in matches)
            assert counts.true[index] == sum(truth.sum() for truth in annotators)
    assert counts.true_matched[5] > counts.found_matched[5] > 0  # one found pixel, both annotators


def test_an_image_without_edges_and_a_truth_without_boundaries() -> None:
    nothing = np.zeros((20, 30), np.float32)
    truth = label_boundaries(np.repeat([[0, 1]], 15, axis=1) * np.ones((20, 1), np.int64))
    missed = count_edges(nothing, [truth], thresholds(3), 0.01)
    assert (missed.found.tolist(), missed.true_matched.tolist(), missed.true.tolist()) == ([0] * 3, [0] * 3, [20] * 3)
    wrong = count_edges(truth.astype(np.float32), [np.zeros_like(truth)], thresholds(3), 0.01)
    assert (wrong.found.tolist(), wrong.found_matched.tolist(), wrong.true.tolist()) == ([20] * 3, [0] * 3, [0] * 3)


def test_nothing_counts_within_the_tolerance_of_ignored_numbers() -> None:
    labels = np.zeros((20, 40), np.int64)
    labels[:, 20:] = 1
    labels[:6] = 255
    other = labels.copy()
    other[14:] = 255  # another annotator leaves out more
    truth, tolerance = label_boundaries(labels), 2.5 / np.hypot(20, 40)
    edges = truth.astype(np.float32)
    edges[:, 35] = 1  # no boundary
    ignored = ignored_pixels([labels], (255,), tolerance)
    assert ignored[:8].all()
    assert not ignored[8:].any()
    one = count_edges(edges, [truth], thresholds(1), tolerance, ignored)
    assert [int(each[0]) for each in (one.found_matched, one.found, one.true_matched, one.true)] == [12, 24, 12, 12]
    both = ignored_pixels([labels, other], (255,), tolerance)
    two = count_edges(edges, [truth, label_boundaries(other)], thresholds(1), tolerance, both)
    assert [int(each[0]) for each in (two.found_matched, two.found, two.true_matched, two.true)] == [4, 8, 8, 8]


@pytest.mark.parametrize("flat", [0.0, 0.5])
def test_flat_strength_has_no_edges_to_divide_by(flat: float) -> None:
    even = np.full((5, 6), flat, np.float32)
    assert np.isfinite(suppress(even, np.zeros_like(even), np.zeros_like(even))).all()
