"""The last look: what it redacts, what it leaves and records, and that an audit then finds nothing else."""

import functools
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segmint.catalogs.findings import Reason
from segmint.model.detectors.detection import Detection, Detector, Kind
from segmint.operators.child import Children, SuspectError
from segmint.operators.images import decode_jpeg
from segmint.operators.prepare.deidentify import DeidentifyConfig, PlatesConfig, build_detectors, deidentify
from segmint.operators.prepare.ingest import IngestConfig
from segmint.operators.prepare.prepare import PrepareConfig, RefusedError, prepare_image
from segmint.operators.prepare.release import ReleaseConfig, ReleasedImage, release
from segmint.operators.prepare.released_search import (
    ROUNDS,
    LastLook,
    last_look,
    search_released,
    unconfirmed_entries,
)
from tests.support.slow_prepare import prepares_slowly

pytestmark = pytest.mark.usefixtures("one_thread")

FACES = DeidentifyConfig(plates=PlatesConfig(detector="none"))
CONFIG = PrepareConfig(IngestConfig(), FACES, ReleaseConfig(), crops=None)


@pytest.fixture(scope="module")
def detectors(weights: None) -> tuple[Detector, ...]:
    return build_detectors(FACES)


def test_the_row_records_all_that_remains(photos: Path, detectors: tuple[Detector, ...]) -> None:
    """Redaction makes false faces in this photograph, which the source doesn't confirm."""
    prepared = prepare_image((photos / "multiface.jpg").read_bytes(), CONFIG, detectors)
    assert len(prepared.regions) == 6
    assert prepared.residual_detections == ()
    recorded = [asdict(each) for each in prepared.unconfirmed_detections]
    row = {**vars(prepared), "regions": list(map(asdict, prepared.regions))}
    found = search_released(row, decode_jpeg(prepared.release), detectors[0], (0, 90, 180, 270))
    remaining = [each for each in found if not each.is_redacted]
    assert remaining, "else this shows nothing"
    assert all(any(each.entry.is_same(known) for known in recorded) for each in remaining)


def test_what_an_earlier_search_found_is_recorded_once() -> None:
    """The first search is in pixels of an image of twice the released size."""
    there, again = face((40.0, 40.0, 80.0, 80.0)), face((20.0, 20.0, 40.0, 40.0))
    (seen,) = unconfirmed_entries(LastLook((), ()), [there], (200, 200), (100, 100))
    assert (seen.x, seen.y, seen.w, seen.h) == (14, 14, 32, 32)
    look = LastLook((), (), (seen,))
    assert unconfirmed_entries(look, [there], (200, 200), (100, 100)) == (seen,)
    other = face((140.0, 140.0, 180.0, 180.0))
    assert len(unconfirmed_entries(look, [there, other], (200, 200), (100, 100))) == 2
    assert unconfirmed_entries(look, [again], (100, 100), (100, 100)) == (seen,)


@pytest.mark.parametrize("turns", [1, 3])
def test_a_face_on_its_side_is_gone_from_what_is_released(
    detectors: tuple[Detector, ...], astronaut: np.ndarray, turns: int
) -> None:
    """With three quarter turns, an upright search finds it, too, but a second look doesn't confirm that detection."""
    turned = np.ascontiguousarray(np.rot90(astronaut, turns))
    stream = io.BytesIO()
    Image.fromarray(turned).save(stream, "PNG")
    prepared = prepare_image(stream.getvalue(), CONFIG, detectors)
    (region,) = prepared.regions
    assert all(each.kind == "plate" for each in prepared.unconfirmed_detections)
    upright = np.ascontiguousarray(np.rot90(decode_jpeg(prepared.release), -turns))
    assert detectors[0].detect(upright) == []
    # The label of the face, mapped to the turned image.
    x0, y0, x1, y1 = 172, 62, 276, 190
    if turns == 1:
        left, top, right, bottom = y0, 512 - x1, y1, 512 - x0
    else:
        left, top, right, bottom = 512 - y1, x0, 512 - y0, x1
    assert region.x <= left < right <= region.x + region.w
    assert region.y <= top < bottom <= region.y + region.h


class ListedDetector:
    """Finds what it is told, one list per search, then the last list again; keeps `Detection`s of its score."""

    kind: Kind = "face"
    name = "listed"
    score = 0.7

    def __init__(self, *found: Sequence[Detection]) -> None:
        self._left = SimpleNamespace(lists=list(found))  # shared by lenient copies

    def detect(self, image: np.ndarray) -> list[Detection]:
        lists = self._left.lists
        found = lists.pop(0) if len(lists) > 1 else lists[0]
        return [each for each in found if each.score >= self.score]


def face(box: tuple[float, float, float, float], score: float = 0.8) -> Detection:
    return Detection("face", score, box, None, "listed")


BESIDE = face((90.0, 40.0, 120.0, 70.0))
"""A face beside the redacted one of `scene`; its ellipse touches that one's region."""


@pytest.fixture
def scene() -> tuple[dict[str, Any], ReleasedImage, np.ndarray]:
    """The row, the released image, and the source of an image of 200 x 200 pixels with a redacted face."""
    source = np.random.default_rng(1).integers(100, 140, (200, 200, 3), np.uint8)
    clean, regions = deidentify(source, [face((40.0, 40.0, 70.0, 70.0))])
    sides = dict.fromkeys(("source_width", "source_height", "width", "height"), 200)
    row = {**sides, "regions": [asdict(each) for each in regions]}
    return row, release(clean, ReleaseConfig()), source


def look(scene: tuple[dict[str, Any], ReleasedImage, np.ndarray], *lists: Sequence[Detection]) -> Any:
    return last_look(*scene, [ListedDetector(*lists)], (0,))


def test_what_redaction_made_remains_and_is_recorded(scene: Any) -> None:
    result = look(scene, [BESIDE], [])
    assert result.to_redact == ()
    (left,) = result.residual
    assert (left.kind, left.score, left.source, left.orientation) == ("face", 0.8, "listed", 0)
    assert (left.x, left.y, left.w, left.h) == (81, 31, 48, 48)


def test_what_is_also_in_the_source_is_redacted(scene: Any) -> None:
    # The window of the source begins 48 pixels left of the detection and at the image's top.
    there = replace(BESIDE, box=(48.0, 40.0, 78.0, 70.0), score=0.2)
    assert look(scene, [BESIDE], [there]).to_redact == (BESIDE,)
    assert look(scene, [BESIDE], [replace(there, score=0.19)]).to_redact == ()
    elsewhere = replace(there, box=(68.0, 40.0, 98.0, 70.0))
    assert look(scene, [BESIDE], [elsewhere]).to_redact == ()


def test_what_is_small_or_alone_is_redacted(scene: Any) -> None:
    small = face((76.0, 50.0, 84.0, 58.0))
    alone = face((150.0, 150.0, 180.0, 180.0))
    assert look(scene, [small], []).to_redact == (small,)
    assert look(scene, [alone], []).to_redact == (alone,)


def test_a_region_that_no_pixel_shows_excuses_nothing(scene: Any) -> None:
    row, _, source = scene
    result = look((row, release(source, ReleaseConfig()), source), [BESIDE], [])
    assert result.to_redact == (BESIDE,)


def test_no_more_than_three_remain(scene: Any) -> None:
    found = [face((90.0 + i, 40.0, 120.0 + i, 70.0)) for i in range(4)]
    result = look(scene, found, [])
    assert (len(result.residual), result.to_redact) == (3, (found[3],))


def test_what_it_finds_is_in_pixels_of_the_larger_source(scene: Any) -> None:
    row, released, source = scene
    large = np.ascontiguousarray(source.repeat(2, axis=0).repeat(2, axis=1))
    result = last_look(row, released, large, [ListedDetector([face((150.0, 150.0, 180.0, 180.0))], [])], (0,))
    assert result.to_redact[0].box == (300.0, 300.0, 360.0, 360.0)


@pytest.fixture
def photograph(astronaut: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(astronaut).save(stream, "PNG")
    return stream.getvalue()


UPRIGHT = replace(CONFIG, deidentify=FACES.model_copy(update={"orientations": (0,)}))


def ever_new() -> Iterator[list[Detection]]:
    """One face more per search."""
    for index in range(10):
        yield [face((40.0 * index, 300.0, 40.0 * index + 20, 320.0))]


def test_after_three_rounds_the_image_is_rejected(photograph: bytes) -> None:
    found = list(ever_new())
    done = prepare_image(photograph, UPRIGHT, [ListedDetector(*found[: 1 + ROUNDS], [])])
    assert len(done.regions) == 1 + ROUNDS
    with pytest.raises(RefusedError) as verdict:
        prepare_image(photograph, UPRIGHT, [ListedDetector(*found[: 2 + ROUNDS], [])])
    assert (verdict.value.stage, verdict.value.reason) == ("deidentify", Reason.STILL_DETECTED)
    assert verdict.value.detail == "1 face found in the released image after it was redacted 3 more times"


def test_what_only_an_early_look_left_is_not_recorded(photograph: bytes) -> None:
    first = face((60.0, 60.0, 160.0, 160.0))
    large, small = face((180.0, 60.0, 280.0, 160.0)), face((400.0, 400.0, 420.0, 420.0))
    lists = [[first], [large, small], [], []]  # search, look, the window of the source, look
    prepared = prepare_image(photograph, UPRIGHT, [ListedDetector(*lists)])
    assert (len(prepared.regions), prepared.residual_detections) == (2, ())


def test_where_a_turned_face_is_found_the_image_before_redaction_is_searched_too(photograph: bytes) -> None:
    first, second = face((100.0, 100.0, 160.0, 160.0)), face((300.0, 300.0, 340.0, 340.0))
    half = face((50.0, 50.0, 80.0, 80.0))
    lists = [[], [], [half], [first], [first, second], []]  # search, look: whole, half, and full size, search, look
    config = replace(CONFIG, deidentify=FACES.model_copy(update={"orientations": (0, 180)}))
    prepared = prepare_image(photograph, config, [ListedDetector(*lists)])
    middles = {(each.x + each.w // 2, each.y + each.h // 2) for each in prepared.regions}
    assert middles == {(382, 382), (192, 192)}, "second, too, which the look did not find"


@pytest.mark.usefixtures("processes")
def test_each_step_has_its_own_time_limit(photograph: bytes) -> None:
    """The search and the look each take longer than `ingest.timeout_s` and less than three times that."""
    with Children(functools.partial(prepares_slowly, 1.2), timeout_s=1.0, more_s=20.0) as children:
        assert children.run(photograph).width == 512


@pytest.mark.long
@pytest.mark.usefixtures("processes")
def test_a_step_that_takes_longer_is_the_images_fault(photograph: bytes) -> None:
    """`test_child.py` has this for other work."""
    with (
        Children(functools.partial(prepares_slowly, 3.2), timeout_s=1.0, more_s=20.0) as children,
        pytest.raises(SuspectError, match=r"took longer than ingest\.timeout_s = 1 seconds allows") as late,
    ):
        children.run(photograph)
    assert late.value.reason is Reason.TIMED_OUT
