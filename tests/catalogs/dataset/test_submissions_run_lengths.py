"""Run lengths are accepted exactly where they are those that the model's encoder writes for a mask."""

import numpy as np
import pytest

from segmint.catalogs.dataset.submissions import canonical_area
from segmint.model.automatic.rle import Rle, compress, decode, encode


def test_every_mask_is_accepted_in_the_form_that_is_written() -> None:
    draws = np.random.default_rng(0)
    for size in [(1, 1), (3, 5), (40, 30), (600, 700)]:
        for share in (0.0, 0.02, 0.5, 1.0):
            mask = draws.random(size) < share
            assert canonical_area(encode(mask).counts, size) == mask.sum()


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ("", "no run lengths"),
        (compress(np.array([2, 2, 0, 2])), "a run without pixels after the first"),
        (compress(np.array([2, 4, 0])), "a run without pixels after the first"),
        (compress(np.array([2, 3])), "do not fill 2 x 3"),
        (compress(np.array([2, 5])), "do not fill 2 x 3"),
        (compress(np.array([7, -1])), "do not fill 2 x 3"),
        (compress(np.array([2, 2**40, 4, 2 - 2**40])), "do not fill 2 x 3"),
        ("R04", "more groups than it needs"),  # 2 with a second group of no bits
        ("2dp", "a character outside"),
        ("2T", "or a truncated end"),
        ("2\u00e9", "a character outside"),
        ("2\ud800", "a character outside"),
        ("P" * 40 + "1", "a number of more than 60 bits"),
    ],
)
def test_all_else_is_refused(counts: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        canonical_area(counts, (3, 2))


def test_random_text_is_refused_or_the_one_form_of_a_mask() -> None:
    draws = np.random.default_rng(1)
    accepted = 0
    for _ in range(4000):
        text = bytes(
            (48 + draws.choice([0, 1, 2, 3, 4, 6, 29, 30, 31, 34, 63], draws.integers(1, 5))).astype(np.uint8)
        ).decode()
        for size in ((3, 2), (4, 4)):
            try:
                area = canonical_area(text, size)
            except ValueError:
                continue

            mask = decode(Rle(size, text))
            assert (encode(mask).counts, mask.sum()) == (text, area)
            accepted += 1
    assert accepted > 5
