"""The correlation of views, against the same views cut by Pillow."""

import numpy as np
import pytest
from PIL import Image

from segmint.operators.similar.near import (
    KEPT,
    MIRROR,
    SIDE,
    SIMILAR,
    VIEWS,
    Confirmer,
    image_hashes,
    normalized_views,
    same_view,
    view_box,
)
from tests.support.photographs import photograph

THUMBNAILS = np.stack([image_hashes(photograph(name), mirror=False).thumbnail for name in ("coffee", "chelsea")])


@pytest.mark.parametrize("view", range(VIEWS))
def test_a_view_is_what_pillow_cuts_out_of_the_thumbnail(view: int) -> None:
    image = Image.fromarray(THUMBNAILS[0]).convert("F")
    cut = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=view_box(KEPT[view], 64)))
    cut = cut[:, ::-1] if view == MIRROR else cut
    expected = (cut - cut.mean()).ravel() / np.linalg.norm(cut - cut.mean())
    assert normalized_views(THUMBNAILS[:1], np.array([view]))[0] == pytest.approx(expected, abs=1e-4)


def test_a_brighter_thumbnail_is_similar_and_another_or_a_gray_one_is_not() -> None:
    brighter = (THUMBNAILS[0] * 0.7 + 60).astype(np.uint8)
    gray = np.full_like(brighter, 77)
    rows = np.stack([*THUMBNAILS, brighter, gray])
    confirmer = Confirmer(lambda numbers: rows[numbers])
    frames = np.arange(4) * VIEWS
    assert confirmer.similar(np.repeat(frames[:1], 4), frames).tolist() == [True, False, True, False]
    assert not confirmer.similar(frames[3:], frames[3:]).any()


def test_pictures_that_have_a_caption_in_common_are_not_similar() -> None:
    plain = np.random.default_rng(0).integers(126, 131, (2, 64, 64), np.uint8)
    plain[:, 58:] = 0
    one, other = normalized_views(plain, np.zeros(2, np.int64))
    assert one @ other > SIMILAR
    assert not same_view(one[None], other[None]).any()


def test_sketches_never_fall_short_of_the_correlation() -> None:
    random = np.random.default_rng(0)
    noisy = np.clip(THUMBNAILS[0] + random.normal(0, np.arange(0, 60, 3)[:, None, None], (20, 64, 64)), 0, 255)
    rows = noisy.astype(np.uint8)
    confirmer = Confirmer(lambda numbers: rows[numbers])
    entries = np.arange(20) * VIEWS + 1
    views, sketches = confirmer.views(entries), confirmer.sketches(entries).astype(np.float32)
    exact = views @ views.T
    assert (sketches @ sketches.T >= exact - 0.002).all()
    assert 0 < (exact >= SIMILAR).sum() < exact.size
