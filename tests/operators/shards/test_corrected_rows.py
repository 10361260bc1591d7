"""Redacting a row: the boxes are redacted, the rest of the picture and all masks stay."""

import hashlib

import numpy as np
import pytest

from segmint.catalogs.dataset.regions import WantedRegion
from segmint.catalogs.layout import DamagedDatasetError
from segmint.operators.images import decode_jpeg
from segmint.operators.prepare.release import ReleaseConfig, release
from segmint.operators.rows import Row
from segmint.operators.shards.corrected_rows import redact_row, source_region
from tests.support.bombs import jpeg_saying
from tests.support.builds import photograph
from tests.support.described_rows import accepted_row, described


def row_of(width: int = 240, height: int = 180, source: tuple[int, int] = (480, 361)) -> Row:
    """A real photograph as released from a source of another size, with two masks."""
    released = release(photograph("astronaut", (width, height)), ReleaseConfig())
    row = {**accepted_row(0), "release": released.jpeg, "width": width, "height": height}
    row |= {"source_width": source[0], "source_height": source[1]}
    return described([row]).to_pylist()[0]


def box(x: int, y: int, w: int, h: int, kind: str = "face") -> WantedRegion:
    return WantedRegion(id=1, kind=kind, x=x, y=y, w=w, h=h)


def test_the_box_is_a_mosaic_and_the_rest_is_the_same_but_for_one_more_encoding() -> None:
    row = row_of()
    after = redact_row(row, [box(96, 16, 48, 64)], ReleaseConfig())
    old, new = (decode_jpeg(each["release"]).astype(int) for each in (row, after))
    inside = np.zeros(old.shape[:2], bool)
    inside[16:80, 96:144] = True
    assert np.abs(old - new)[inside].mean() > 10
    assert np.abs(old - new)[~inside].mean() < 1.5
    # About 5 x 5 colors are left: hardly any of the picture's detail.
    detail = [np.abs(np.diff(each[18:78, 98:142].mean(axis=2), axis=1)).mean() for each in (old, new)]
    assert detail[1] < detail[0] / 3


def test_regions_and_counts_follow_and_nothing_else_changes() -> None:
    row = row_of()
    after = redact_row(
        row, [box(10, 20, 30, 40), box(0, 0, 240, 10, "plate"), box(5, 5, 9, 9, "other")], ReleaseConfig()
    )
    assert (after["faces"], after["plates"]) == (1, 1)
    assert [(region["kind"], region["score"], region["source"]) for region in after["regions"]] == [
        ("face", 1.0, "manual"),
        ("plate", 1.0, "manual"),
        ("other", 1.0, "manual"),
    ]
    changed = {name for name in row if row[name] != after[name]}
    changed.remove("redacted_share")
    assert changed == {"release", "release_sha256", "hashes", "faces", "plates", "regions"}
    assert after["redacted_share"] > row["redacted_share"]
    assert after["release_sha256"] == hashlib.sha256(after["release"]).hexdigest()


def test_shares_inside_regions_follow() -> None:
    """The masks have columns 3 to 19 and 4 to 20 of an image of 40 x 30 pixels; columns 0 to 19 are redacted."""
    row = described([accepted_row(0)]).to_pylist()[0]
    after = redact_row(row, [box(0, 0, 20, 30, "other")], ReleaseConfig())
    assert [mask["redacted_share"] for mask in after["masks"]] == [1.0, 16 / 17]
    assert [mask["redaction_iou"] for mask in after["masks"]] == [170 / 600, 160 / 610]


def test_earlier_regions_stay_and_count() -> None:
    found = {"kind": "face", "score": 0.9, "x": 1, "y": 2, "w": 3, "h": 4, "source": "mtcnn"}
    row = {**row_of(), "regions": [found], "faces": 1}
    after = redact_row(row, [box(10, 20, 30, 40)], ReleaseConfig())
    assert after["regions"][0] == found
    assert (len(after["regions"]), after["faces"]) == (2, 2)


def test_doing_it_again_changes_nothing() -> None:
    first = redact_row(row_of(), [box(10, 20, 30, 40), box(10, 20, 30, 40)], ReleaseConfig())
    assert len(first["regions"]) == 1
    assert redact_row(first, [box(10, 20, 30, 40)], ReleaseConfig()) is first
    row = row_of()
    assert redact_row(row, [], ReleaseConfig()) is row


@pytest.mark.usefixtures("processes")
def test_a_jpeg_that_cannot_be_decoded_names_its_image() -> None:
    for jpeg, told in ((jpeg_saying(65_500, 65_500), "65500 x 65500 is 4,290,250,000 pixels"), (b"none", "identify")):
        with pytest.raises(DamagedDatasetError, match=f"image 1: its JPEG can't be decoded: .*{told}"):
            redact_row({**row_of(), "release": jpeg}, [box(10, 20, 30, 40)], ReleaseConfig())


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ((0, 0, 240, 180), (0, 0, 480, 361)),
        ((10, 20, 30, 40), (20, 40, 60, 81)),
        ((239, 179, 1, 1), (478, 358, 2, 3)),
    ],
)
def test_a_region_covers_the_box_in_the_source_s_pixels(wanted: tuple[int, ...], expected: tuple[int, ...]) -> None:
    region = source_region(row_of(), box(*wanted))
    assert (region.x, region.y, region.w, region.h) == expected


def test_in_an_image_of_its_source_s_size_the_numbers_are_the_same() -> None:
    region = source_region(row_of(source=(240, 180)), box(7, 11, 13, 17))
    assert (region.x, region.y, region.w, region.h) == (7, 11, 13, 17)


def test_the_smallest_boxes_are_redacted_too() -> None:
    row = row_of()
    image = decode_jpeg(row["release"])
    y, x = np.unravel_index(np.abs(np.diff(image[:, :, 0].astype(int), axis=1))[10:170, 10:230].argmax(), (160, 220))
    after = redact_row(row, [box(int(x) + 8, int(y) + 8, 4, 4)], ReleaseConfig(jpeg_quality=100))
    new = decode_jpeg(after["release"])[y + 8 : y + 12, x + 8 : x + 12].astype(int)
    old = image[y + 8 : y + 12, x + 8 : x + 12].astype(int)
    assert np.abs(old - new).max() > 10
