"""The guard set: photographs that replay does not have, 24 coins, and pasted things whose masks are exact."""

from pathlib import Path

import numpy as np

from benchmarks.training.guard import CUT_OUT, GROUNDS, REPLAYED, guard


def test_the_guard_set_has_exact_masks_in_photographs_that_are_not_replayed(photos: Path) -> None:
    scenes = {scene.name: scene for scene in guard(photos)}
    assert not set(scenes) & set(REPLAYED)
    assert not {source for source, _ in CUT_OUT.values()} & set(REPLAYED)
    assert len(scenes["coins"].masks) == 24
    assert sum(len(scene.masks) for scene in scenes.values()) == 67
    for scene in scenes.values():
        assert scene.pixels.dtype == np.uint8
        assert scene.masks.shape[1:] == scene.pixels.shape[:2]
        assert scene.masks.mean(axis=(1, 2)).min() > 0.0005
        assert scene.masks.mean(axis=(1, 2)).max() < 0.2
    for ground in GROUNDS:
        pasted = scenes[f"pasted-{ground}"]
        changed = (pasted.pixels != scenes[ground].pixels).any(axis=-1)
        things = pasted.masks.any(axis=0)
        assert not (changed & ~things).any(), "nothing is pasted outside of the masks"
        assert changed[things].mean() > 0.95
        assert pasted.masks.sum(axis=0).max() == 1
