"""The truths of the benchmark of several prompts: coins apart, and objects whose pixels are where their masks say."""

import numpy as np

from benchmarks.evaluation.several_prompts import BACKGROUNDS, OBJECTS, coins, composed, rgb


def test_there_are_24_coins_apart_from_one_another() -> None:
    scene = coins()
    assert len(scene.truths) == 24
    assert np.sum(scene.truths, axis=0).max() == 1
    dark = scene.image[~np.any(scene.truths, axis=0)].mean()
    assert all(scene.image[truth].mean() > 1.3 * dark for truth in scene.truths)


def test_what_is_pasted_is_the_masks_alone() -> None:
    for number, scene in zip(range(len(BACKGROUNDS)), composed(), strict=False):
        assert len(scene.truths) == OBJECTS
        assert np.sum(scene.truths, axis=0).max() == 1
        objects = np.any(scene.truths, axis=0)
        changed = (scene.image != rgb(BACKGROUNDS[number])).any(axis=2)
        assert not changed[~objects].any()
        assert changed[objects].mean() > 0.95
