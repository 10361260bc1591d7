"""Scenes by seed: their masks are exact, apart, and of textures that differ from what is around."""

import numpy as np

from benchmarks.training.scenes import AREAS, SHAPES, SIDE, TEXTURES, compose


def test_scenes_are_the_same_for_a_seed_and_their_masks_lie_apart() -> None:
    scenes = compose("known", 6, seed=3)
    again, other = compose("known", 6, seed=3), compose("known", 6, seed=4)
    assert all(np.array_equal(one.pixels, two.pixels) for one, two in zip(scenes, again, strict=True))
    assert not np.array_equal(scenes[0].pixels, other[0].pixels)
    for scene in scenes:
        assert scene.pixels.shape == (SIDE, SIDE, 3)
        assert SHAPES[0] <= len(scene.masks) <= SHAPES[1]
        assert scene.masks.sum(axis=0).max() == 1, "a pixel belongs to one shape"
        assert scene.masks.mean(axis=(1, 2)).min() > AREAS[0] / 4
        assert scene.masks.any(axis=0).mean() < 0.8, "some of the ground is seen"


def test_the_new_textures_are_in_no_training_scene() -> None:
    assert not set(TEXTURES["known"]) & set(TEXTURES["new"])
    known, new = compose("known", 1, seed=0), compose("new", 1, seed=0)
    assert not np.array_equal(known[0].masks, new[0].masks)
