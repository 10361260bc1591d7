"""Groups: chains of similar images are one, and others are not joined."""

import numpy as np

from segmint.operators.similar.clusters import find_groups
from segmint.operators.similar.near import image_hashes
from tests.support.photographs import photograph


def test_a_chain_of_crops_is_one_group_and_other_photographs_are_not_in_it():
    base = photograph("coffee")

    def cropped(share: float) -> np.ndarray:
        height, width = base.shape[:2]
        y, x = (round(side * (1 - share) / 2) for side in (height, width))
        return np.ascontiguousarray(base[y : height - y, x : width - x])

    pictures = [
        photograph("astronaut"),
        *(cropped(share) for share in (1, 0.9, 0.81, 0.73, 0.66)),
        photograph("chelsea"),
    ]
    seen = [image_hashes(picture, mirror=True) for picture in pictures]
    hashes, thumbnails = np.stack([each.views for each in seen]), np.stack([each.thumbnail for each in seen])

    def groups(rows: list[int], same: list[int] | None = None) -> list[int]:
        chosen = np.array(rows, int)
        found = find_groups(hashes[chosen], lambda places: thumbnails[chosen[places]], np.array(same or rows, int))
        return np.unique(found, return_inverse=True)[1].tolist()

    ends = groups([1, 5])
    assert ends[0] != ends[1]  # the frame and its middle alone are not similar
    whole = groups(list(range(7)))
    assert len(set(whole[1:6])) == 1
    assert len({whole[0], whole[1], whole[6]}) == 3
    assert len(set(groups([0, 1, 6], [4, 5, 4]))) == 2  # known to be the same
    assert groups([]) == []
