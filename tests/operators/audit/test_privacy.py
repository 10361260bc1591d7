"""What is still found, and what was obliterated, told apart on a real face: by the row and by the pixels."""

import io
from dataclasses import asdict, replace

import numpy as np
import pytest
from PIL import Image

from segmint.catalogs.dataset.regions import Sighting, WantedRegion
from segmint.model.detectors.detection import Detection
from segmint.operators.audit.privacy import RemainingDetection, cutouts, merge_found, picture, search_release
from segmint.operators.images import decode_jpeg
from segmint.operators.prepare.deidentify import (
    DeidentifyConfig,
    PlatesConfig,
    Region,
    build_detectors,
    outline,
)
from segmint.operators.prepare.release import ReleaseConfig, release
from segmint.operators.rows import Row
from segmint.operators.shards.corrected_rows import redact_row
from tests.support.redacted import redacted

PLAIN = ReleaseConfig()


class CertainDetector:
    """A detector that finds the same things in every image, as one does that takes a mosaic for a face."""

    name = "certain"
    kind = "face"
    score = 0.5

    def __init__(self, *found: Detection) -> None:
        self._found = found

    def detect(self, image: np.ndarray) -> list[Detection]:
        return list(self._found)


@pytest.fixture(scope="module")
def detectors(weights: None):
    return build_detectors(DeidentifyConfig(plates=PlatesConfig(detector="none")))


@pytest.fixture(scope="module")
def face(detectors, astronaut: np.ndarray) -> Detection:
    (found,) = detectors[0].detect(astronaut)
    return found


def row_of(pixels: np.ndarray, regions: list[Region], config: ReleaseConfig = PLAIN) -> Row:
    """A released image as a build has it; `pixels` are those of the source."""
    released = release(pixels, config)
    return {
        "id": 7,
        "source_width": pixels.shape[1],
        "source_height": pixels.shape[0],
        "width": released.width,
        "height": released.height,
        "regions": [asdict(region) for region in regions],
        "release": released.jpeg,
    }


def search(row: Row, *detectors) -> list[RemainingDetection]:
    return search_release(row, decode_jpeg(row["release"]), detectors, (0,))


def again(face: Detection, row: Row, dx: float = 0.0, dy: float = 0.0) -> CertainDetector:
    """The same face where it would be in the released image, moved by (dx, dy) of its pixels."""
    scale = row["width"] / row["source_width"]
    return CertainDetector(face.mapped(scale, scale, dx, dy))


def test_a_face_that_was_left_is_found_with_the_box_that_would_be_obliterated(detectors, astronaut: np.ndarray) -> None:
    (found,) = search(row_of(astronaut, []), *detectors)
    patch = outline(detectors[0].detect(astronaut)[0], astronaut.shape[:2], band=False)
    assert (found.id, found.kind, found.detector, found.redacted) == (7, "face", "mtcnn", False)
    assert found.score > 0.9
    assert (
        np.abs(np.array([found.x - patch.x, found.y - patch.y, found.w - patch.width, found.h - patch.height])).max()
        <= 4
    )


@pytest.mark.parametrize("short_side", [512, 300, 160])
@pytest.mark.parametrize("quality", [95, 75])
def test_a_mosaic_that_is_taken_for_a_face_was_obliterated(
    detectors, face: Detection, astronaut: np.ndarray, short_side: int, quality: int
) -> None:
    clean, regions = redacted(astronaut, detectors)
    row = row_of(clean, regions, ReleaseConfig(short_side=short_side, jpeg_quality=quality))
    assert search(row, *detectors) == [], "the detector itself does not find it again"
    (found,) = search(row, again(face, row))
    assert found.redacted
    width = face.box[2] - face.box[0]
    (beside,) = search(row, again(face, row, dx=0.6 * width * row["width"] / row["source_width"]))
    assert not beside.redacted


@pytest.mark.parametrize("short_side", [512, 300, 160])
@pytest.mark.parametrize("blurred", [0, 2, 4])
def test_a_region_that_no_pixel_shows_covers_nothing(
    detectors, face: Detection, astronaut: np.ndarray, short_side: int, blurred: int
) -> None:
    from scipy.ndimage import gaussian_filter

    _, regions = redacted(astronaut, detectors)
    pixels = gaussian_filter(astronaut, (blurred, blurred, 0)) if blurred else astronaut
    row = row_of(pixels, regions, ReleaseConfig(short_side=short_side, jpeg_quality=75))
    (found,) = search(row, again(face, row))
    assert not found.redacted


def test_a_region_that_a_person_asked_for_was_obliterated(face: Detection, astronaut: np.ndarray) -> None:
    row = row_of(astronaut, [])
    (left,) = search(row, again(face, row))
    wanted = WantedRegion(id=7, kind="face", x=left.x, y=left.y, w=left.w, h=left.h)
    redacted = redact_row(row, [wanted], ReleaseConfig())
    (found,) = search(redacted, again(face, redacted))
    assert found == replace(left, redacted=True)
    # A second box over a part of the first: its mosaic is what shows there.
    half = wanted.model_copy(update={"kind": "other", "w": left.w // 2})
    twice = redact_row(redacted, [half], ReleaseConfig())
    assert len(twice["regions"]) == 2
    (found,) = search(twice, again(face, twice))
    assert found.redacted


def test_a_plate_s_own_corners_count(astronaut: np.ndarray) -> None:
    quad = ((100.0, 220.0), (200.0, 260.0), (190.0, 285.0), (90.0, 245.0))
    plate = Detection("plate", 0.9, (90.0, 220.0, 200.0, 285.0), quad, "certain")
    clean, regions = redacted(astronaut, [CertainDetector(plate)])
    assert regions[0].kind == "plate"
    (found,) = search(row_of(clean, regions), CertainDetector(plate))
    assert found.redacted
    (found,) = search(row_of(astronaut, regions), CertainDetector(plate))
    assert not found.redacted


def test_regions_that_cannot_be_placed_cover_nothing(face: Detection, astronaut: np.ndarray) -> None:
    row = row_of(astronaut, [Region("face", 0.9, 0, 0, 0, 0, "mtcnn")])
    (found,) = search(row, again(face, row))
    assert not found.redacted
    (found,) = search({**row, "source_width": None}, CertainDetector(face))
    assert not found.redacted


PLATE = Detection("plate", 0.9, (20.0, 20.0, 80.0, 80.0), None, "certain")
"""A plate of 60 x 60 pixels without corners."""


def plain_row(*boxes: tuple[int, int, int, int]) -> Row:
    """A row of an image of 100 x 100 pixels with regions (x, y, w, h) that a person asked for."""
    regions = [dict(zip("xywh", box, strict=True)) | {"kind": "plate", "source": "manual"} for box in boxes]
    return {"id": 7, "source_width": 100, "source_height": 100, "width": 100, "height": 100, "regions": regions}


def test_a_later_region_hides_its_part_of_an_earlier_one() -> None:
    image = np.full((100, 100, 3), 100, np.uint8)
    image[20:80, 20:32] = 250
    whole, left = (20, 20, 60, 60), (20, 20, 12, 60)
    (found,) = search_release(plain_row(whole, left), image, [CertainDetector(PLATE)], (0,))
    assert found.redacted
    (found,) = search_release(plain_row(left, whole), image, [CertainDetector(PLATE)], (0,))
    assert not found.redacted


@pytest.mark.parametrize(("width", "redacted"), [(30, False), (42, False), (48, True)])
def test_a_region_must_cover_three_quarters(width: int, redacted: bool) -> None:
    image = np.full((100, 100, 3), 100, np.uint8)
    (found,) = search_release(plain_row((20, 20, width, 60)), image, [CertainDetector(PLATE)], (0,))
    assert found.redacted == redacted


def scene() -> tuple[Row, np.ndarray, Detection]:
    """A row and an image of 200 x 200 pixels with one mosaic, and a detection of 48 x 48 pixels that touches it."""
    source = np.random.default_rng(1).integers(100, 140, (200, 200, 3), np.uint8)
    beside = Detection("face", 0.9, (90.0, 40.0, 120.0, 70.0), None, "certain")
    image, regions = redacted(source, [CertainDetector(replace(beside, box=(40.0, 40.0, 70.0, 70.0)))])
    residual = {"kind": "face", "score": 0.9, "x": 81, "y": 31, "w": 48, "h": 48, "source": "certain", "orientation": 0}
    row = {**row_of(image, regions), "residual_detections": [residual]}
    return row, image, beside


def is_residual(row: Row, image: np.ndarray, *found: Detection) -> list[bool]:
    assert not any(each.redacted for each in search_release(row, image, [CertainDetector(*found)], (0,)))
    return [each.is_residual for each in search_release(row, image, [CertainDetector(*found)], (0,))]


def test_what_the_row_records_as_made_by_redaction_is_residual() -> None:
    row, image, beside = scene()
    assert is_residual(row, image, beside) == [True]
    assert is_residual({**row, "residual_detections": None}, image, beside) == [False]
    (known,) = row["residual_detections"]
    for wrong in ({"kind": "plate"}, {"x": 105}, {"w": None}, {"w": 20}):
        assert is_residual({**row, "residual_detections": [None, {**known, **wrong}]}, image, beside) == [False]
    # An IoU of 0.6.
    assert is_residual({**row, "residual_detections": [{**known, "x": 93}]}, image, beside) == [True]


def test_a_small_detection_or_one_apart_from_regions_is_never_residual() -> None:
    row, image, beside = scene()
    (known,) = row["residual_detections"]
    small = replace(beside, box=(76.0, 50.0, 84.0, 58.0))
    apart = replace(beside, box=(150.0, 150.0, 180.0, 180.0))
    boxes = [{"x": 74, "y": 48, "w": 12, "h": 12}, {"x": 141, "y": 141, "w": 48, "h": 48}]
    recorded = {**row, "residual_detections": [{**known, **box} for box in boxes]}
    assert is_residual(recorded, image, small, apart) == [False, False]


def test_a_region_that_no_pixel_shows_explains_no_residual_detection() -> None:
    row, image, beside = scene()
    plain = np.random.default_rng(2).integers(100, 140, image.shape, np.uint8)
    assert is_residual(row, plain, beside) == [False]


def test_at_most_three_recorded_detections_count() -> None:
    row, image, beside = scene()
    (known,) = row["residual_detections"]
    elsewhere = {**known, "y": 150}
    assert is_residual({**row, "residual_detections": [elsewhere] * 2 + [known]}, image, beside) == [True]
    assert is_residual({**row, "residual_detections": [elsewhere] * 3 + [known]}, image, beside) == [False]


def test_what_the_row_records_as_unconfirmed_or_left_alone_is_explained() -> None:
    row, image, beside = scene()
    (known,) = row.pop("residual_detections")
    apart = replace(beside, box=(150.0, 150.0, 180.0, 180.0))
    box = {"x": 141, "y": 141, "w": 48, "h": 48}

    def explained(**columns: object) -> list[tuple[bool, str | None, bool]]:
        found = search_release({**row, **columns}, image, [CertainDetector(apart)], (0,))
        return [(each.is_unconfirmed, each.decided_by, each.is_explained) for each in found]

    assert explained() == explained(left_alone=[None], unconfirmed_detections=None) == [(False, None, False)]
    assert explained(unconfirmed_detections=[{**known, **box}]) == [(True, None, True)]
    assert explained(unconfirmed_detections=[{**known, **box, "kind": "plate"}]) == [(False, None, False)]
    assert explained(unconfirmed_detections=[{**known, **box, "source": "another"}]) == [(False, None, False)]
    assert explained(left_alone=[{**box, "decided_by": "Ada"}]) == [(False, "Ada", True)]
    assert explained(left_alone=[{**box, "x": 60, "decided_by": "Ada"}]) == [(False, None, False)]
    (unconfirmed,) = search_release(
        {**row, "unconfirmed_detections": [{**known, **box}]}, image, [CertainDetector(apart)], (0,)
    )
    red, yellow = (decode_jpeg(picture(image, replace(unconfirmed, is_unconfirmed=shown))) for shown in (False, True))
    green = [int(each[165, 139:144, 1].max()) for each in (red, yellow)]
    assert green[1] > green[0] + 50, "the frame is yellow instead of red"


def test_what_lies_outside_of_the_image_is_no_finding(astronaut: np.ndarray) -> None:
    outside = Detection("face", 0.9, (-300.0, -300.0, -200.0, -200.0), None, "certain")
    assert search(row_of(astronaut, []), CertainDetector(outside)) == []


def test_a_picture_shows_the_region_and_hides_all_around_it(astronaut: np.ndarray) -> None:
    found = RemainingDetection(7, "face", "mtcnn", 0.99, 180, 60, 100, 120, False)
    with Image.open(io.BytesIO(picture(astronaut, found))) as image:
        shown = np.asarray(image.convert("RGB")).astype(float)
    difference = np.abs(shown - astronaut).mean(axis=2)
    inside = np.zeros(difference.shape, bool)
    inside[64:176, 184:276] = True
    margin = np.zeros(difference.shape, bool)
    margin[0:240, 120:340] = True
    assert difference[inside].mean() < 5
    assert difference[~margin].mean() > 15
    detail = np.abs(np.diff(shown, axis=1)).mean(axis=2)
    assert detail[:, :-1][~margin[:, :-2]].mean() < 0.2 * detail[64:176, 184:275].mean()


class NamedDetector(CertainDetector):
    """A detector that finds the same faces in every image, with a name."""

    def __init__(self, name: str, *boxes: tuple[float, float, float, float]) -> None:
        super().__init__(*(Detection("face", 0.9, box, None, name) for box in boxes))
        self.name = name


def test_what_two_detectors_find_in_one_place_is_one_region_and_what_one_misses_is_named() -> None:
    image = np.full((200, 300, 3), 100, np.uint8)
    row = {**plain_row(), "width": 300, "height": 200}
    near, far, only = (20.0, 20.0, 60.0, 70.0), (200.0, 100.0, 230.0, 140.0), (100.0, 100.0, 140.0, 140.0)
    first, second = NamedDetector("first", near, only), NamedDetector("second", far, (24.0, 16.0, 66.0, 74.0))
    found = [each for detector in (first, second) for each in search_release(row, image, [detector], (0,))]
    both, alone, other = merge_found(found, [first, second])
    assert both.found_by == (Sighting("first", 0.9), Sighting("second", 0.9))
    assert (both.detector, both.missed_by) == ("first", ())
    assert [(each.found_by, each.missed_by) for each in (alone, other)] == [
        ((Sighting("first", 0.9),), ("second",)),
        ((Sighting("second", 0.9),), ("first",)),
    ]
    boxes = {(each.detector, each.x < 80): each for each in found}
    one, two = boxes["first", True], boxes["second", True]
    assert (both.x, both.y) == (min(one.x, two.x), min(one.y, two.y))
    assert (both.x + both.w, both.y + both.h) == (max(one.x + one.w, two.x + two.w), max(one.y + one.h, two.y + two.h))


def test_a_detector_that_did_not_search_misses_nothing_and_kinds_are_apart() -> None:
    face = RemainingDetection(7, "face", "first", 0.9, 20, 20, 40, 40, redacted=False)
    plate = replace(face, kind="plate", detector="second")
    assert [each.missed_by for each in merge_found([face, plate], [NamedDetector("first")])] == [(), ()]


def test_a_small_box_inside_of_a_large_one_is_a_region_that_one_detector_found() -> None:
    small = RemainingDetection(7, "face", "first", 0.9, 20, 20, 20, 20, redacted=False)
    large = replace(small, detector="second", x=0, y=0, w=100, h=100)
    assert len(merge_found([small, large], [])) == 2


@pytest.mark.parametrize("how", ["redacted", "is_residual"])
def test_what_was_redacted_or_is_residual_is_compared_with_nothing(how: str) -> None:
    left = RemainingDetection(7, "face", "first", 0.9, 20, 20, 40, 40, redacted=False)
    explained = replace(left, detector="second", **{how: True})
    found = merge_found([explained, left], [NamedDetector("first"), NamedDetector("second")])
    assert [(each.is_explained, each.found_by) for each in found] == [(False, (Sighting("first", 0.9),)), (True, ())]


def test_a_cutout_shows_what_is_around_a_face_and_no_face(detectors, astronaut: np.ndarray) -> None:
    (found,) = search(row_of(astronaut, []), *detectors)
    near = replace(found, x=found.x + found.w + 10, w=20, h=20)
    first, second = cutouts(astronaut, [found, near])
    shown = decode_jpeg(first)
    assert shown.shape[0] < 512
    assert shown.shape[1] < 512
    assert [detector.detect(shown) for detector in detectors] == [[]]
    assert [detector.detect(decode_jpeg(second)) for detector in detectors] == [[]]
    left, top = max(found.x - max(found.w, found.h), 0), max(found.y - max(found.w, found.h), 0)
    part = astronaut[top : top + shown.shape[0], left : left + shown.shape[1]].astype(float)
    difference = np.abs(shown - part).mean(axis=2)
    assert (
        difference[found.y - top + 8 : found.y - top + found.h - 8, found.x - left + 8 :][:, : found.w - 16].mean() > 12
    )
    assert difference[-40:, -40:].mean() < 5
