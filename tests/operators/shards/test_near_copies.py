"""Near copies of removed pictures: which pairs of hashes count, and what is left out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.tombstones import (
    OtherPicture,
    RemovedImage,
    TakedownRequest,
    Tombstone,
    change_fingerprints,
    put_fingerprints,
    put_tombstone,
)
from segmint.operators.shards.near_copies import BITS, distances, near_copies, pictures_at, wanted_pictures
from segmint.operators.shards.revise import fingerprint_of
from segmint.operators.similar.near import FRAME, HASHES, MIRROR, NO_HASH, luma, view_hashes
from tests.support.committed import row_of, write_dataset
from tests.support.locations import location_of
from tests.support.photographs import photograph

RANDOM = np.random.default_rng(0).integers(1, 2**64, (6, HASHES), np.uint64)


@pytest.mark.parametrize("bits", [0, BITS, BITS + 1])
@pytest.mark.parametrize("view", range(HASHES))
def test_the_frame_of_one_is_compared_with_all_views_of_the_other(view: int, bits: int) -> None:
    for one, other in (((0, view), (1, FRAME)), ((0, FRAME), (1, view))):
        hashes = RANDOM.copy()
        hashes[one] = hashes[other] ^ np.uint64((1 << bits) - 1)
        assert distances(hashes[:1], hashes[1:3])[0, 0] == bits
        assert distances(hashes[:1], hashes[1:3])[0, 1] > BITS


def test_two_crops_and_missing_hashes_are_not_compared() -> None:
    hashes = RANDOM.copy()
    hashes[0, 2] = hashes[1, 3]
    hashes[0, FRAME] = hashes[2, FRAME] = NO_HASH
    assert (distances(hashes[:1], hashes[1:3]) > BITS).all()


def test_turned_and_cropped_photographs_are_near_and_others_are_not() -> None:
    pixels = photograph("coffee", (600, 400))
    changed = [np.rot90(pixels, turns) for turns in (1, 2, 3)] + [pixels[:, ::-1], pixels[20:-20, 30:-30]]
    hashes = np.stack([view_hashes(luma(np.ascontiguousarray(each))) for each in changed])
    own = view_hashes(luma(pixels))[None]
    assert distances(hashes, own).max() <= BITS
    assert distances(own, hashes).max() <= BITS
    others = [view_hashes(luma(photograph(name, (600, 400)))) for name in ("astronaut", "chelsea", "rocket")]
    assert distances(np.stack(others), own).min() > 10
    assert MIRROR < HASHES


def row(ordinal: int, refused: bool) -> dict[str, Any]:
    """Rows 0, 2, and 3 show one picture, 3 in gray; row 1 another one; row 4 has no hashes."""
    pixels = photograph("chelsea" if ordinal == 1 else "coffee", (240, 160))
    if ordinal == 3:
        pixels = np.asarray(Image.fromarray(pixels).convert("L").convert("RGB"))
    hashes = view_hashes(luma(pixels)).tolist() if ordinal < 4 else None
    return {**row_of(ordinal, refused), "hashes": hashes, "source_sha256": f"{ordinal:064x}"}


def test_near_copies_of_a_dataset_but_those_that_a_person_told_apart(tmp_path: Path) -> None:
    location = location_of(tmp_path)
    write_dataset(location, 2, make_row=row, refuse=0)
    log = CommitLog(location)
    found = list(near_copies(location, log.read_all(), pictures_at(location, log.read_all(), {0})))
    assert [(each.id, each.of, each.tombstone) for each in found] == [(3, 1, ""), (4, 1, "")]
    assert found[0].bits == 0
    assert list(near_copies(location, log.read_all(), wanted_pictures(location))) == []
    images = (RemovedImage(ordinal=9, id=10, image_id="gone", uri="gone.jpg", sha256=None),)
    request = TakedownRequest(ids=("gone",))
    tombstone = Tombstone(request=request, reason="withdrawn", when="2026-11-24T00:00:00Z", images=images)
    put_tombstone(location, tombstone)
    put_fingerprints(location, 2, {10: fingerprint_of({**row(0, False), "pixels_sha256": None}, gone=True)})

    def ids() -> list[int]:
        return [each.id for each in near_copies(location, log.read_all(), wanted_pictures(location))]

    assert ids() == [1, 3, 4]
    assert wanted_pictures(location, {2}).ids == ()
    decision = OtherPicture(id=3, tombstone=tombstone.name, reason="another cup", when="2026-11-24T00:00:00Z")
    change_fingerprints(location, 0, lambda now: now.with_decision(decision))
    assert ids() == [1, 4]
    (line,) = [each.line() for each in near_copies(location, log.read_all(only=[0]), wanted_pictures(location))][:1]
    assert line == f"sa_1 image-0 looks like sa_10 (tombstones/{tombstone.name}): 0 of 64 bits differ"
