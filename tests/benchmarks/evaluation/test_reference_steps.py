"""What the counts of the steps taken from the reference code are made of."""

import numpy as np

from benchmarks.evaluation.reference_steps import alone, differs
from segmint.model.automatic.candidates import CandidateMasks, MaskPatch, clean_patch
from segmint.model.automatic.crops import box_of

SIZE = (60, 80)


def candidates(*boxes: tuple[int, int, int, int]) -> CandidateMasks:
    count = len(boxes)
    table = np.array(boxes, np.int64).reshape(-1, 4)
    patches = tuple(MaskPatch.pack(np.ones(SIZE, bool), box) for box in boxes)
    scores = np.ones(count, np.float32)
    return CandidateMasks(scores, scores, np.zeros((count, 2)), table[:, 0], table, np.zeros_like(table), patches)


def test_masks_alone_have_a_box_unlike_all_others() -> None:
    masks = candidates((0, 0, 19, 19), (30, 30, 49, 49))
    assert alone(masks, candidates((0, 0, 19, 18), (30, 30, 39, 49))) == 1
    assert alone(masks, masks) == 0
    assert alone(masks, candidates()) == 2


def test_the_order_of_clean_up_decides_on_a_speck_in_a_hole() -> None:
    ring = np.zeros(SIZE, bool)
    ring[10:50, 10:60] = True
    ring[20:30, 20:32] = False  # 120 pixels: no small hole
    for speck, different in ((False, False), (True, True)):
        ring[23:28, 23:29] = speck  # 30 pixels, which leave a hole of 90
        patch = MaskPatch.pack(ring, box_of(ring))
        assert differs(patch, clean_patch(patch, SIZE, 100, False).patch, SIZE, 100) is different
