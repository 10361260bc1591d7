"""Real ONNX networks of both signatures find pixels by their color; broken ones are named."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from segmint.model.detectors.detection import OnnxDetector, yunet_boxes
from segmint.operators.prepare.onnx_file import detector_network, load_detector_file
from tests.support.onnx_detectors import listed, random_yunet, yunet
from tests.support.torchscript import spot

Make = Callable[[Path], Path]
GRAY = np.full((90, 150, 3), 90, np.uint8)
MARKED = spot(GRAY, 96, 32, 32)


def loaded(path: Path, score: float | None = None) -> OnnxDetector:
    detector = load_detector_file(path, "face", score, "cpu", threads=1)
    assert isinstance(detector, OnnxDetector)
    return detector


@pytest.mark.parametrize(
    ("make", "score"),
    [
        (yunet, 1.0),
        (lambda path: yunet(path, (160, 160)), 1.0),
        (listed, 0.9),
        (lambda path: listed(path, (160, 160), kind="uint8"), 0.9),
        (lambda path: listed(path, rank=3, columns=15), 0.9),
    ],
    ids=["YuNet", "YuNet of one size", "one tensor", "one tensor of one size", "one tensor in a batch"],
)
def test_what_a_network_sees_is_found_where_it_is(tmp_path: Path, make: Make, score: float) -> None:
    detector = loaded(make(tmp_path / "faces.onnx"))
    (found,) = detector.detect(MARKED)
    assert found.box == pytest.approx((96, 32, 128, 64), abs=1e-3)
    assert (found.kind, found.source, found.quad) == ("face", "faces.onnx", None)
    assert found.score == score
    assert detector.detect(GRAY) == []
    assert detector.detect(spot(GRAY, 96, 32, 32)[..., [1, 0, 2]]) == [], "else channels are mixed up"


def test_yunets_boxes_are_those_of_opencv(tmp_path: Path) -> None:
    path = random_yunet(tmp_path / "random.onnx", seed=3)
    noise = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    image = np.asarray(cv2.resize(noise, (160, 96), interpolation=cv2.INTER_CUBIC))
    answers = detector_network(path, 1).run(image.transpose(2, 0, 1)[None].astype(np.float32))
    boxes, scores = yunet_boxes(answers, (96, 160))
    likely = scores >= 0.6
    _, theirs = cv2.FaceDetectorYN.create(str(path), "", (160, 96), 0.6, 1.0).detect(image)
    assert len(theirs) == likely.sum() > 20
    ours = np.concatenate([boxes[likely, :2], boxes[likely, 2:] - boxes[likely, :2], scores[likely, None]], axis=1)
    theirs = theirs[:, [0, 1, 2, 3, 14]]
    assert np.abs(ours[np.argsort(ours[:, 0])] - theirs[np.argsort(theirs[:, 0])]).max() < 1e-3


@pytest.mark.parametrize(
    ("size", "searched"),
    [(None, [(704, 1024), (352, 512), (192, 256)]), ((320, 640), [(320, 640)] * 17)],
)
def test_smaller_copies_are_searched_until_one_has_320_pixels(
    tmp_path: Path, size: tuple[int, int] | None, searched: list[tuple[int, int]]
) -> None:
    network = detector_network(yunet(tmp_path / "faces.onnx", size), 1)
    sizes: list[tuple[int, ...]] = []

    def run(pixels: np.ndarray) -> list[np.ndarray]:
        sizes.append(pixels.shape[2:])
        return list(network.run(pixels))

    detector = OnnxDetector(replace(network, run=run), "face")
    sizes.clear()
    detector.detect(np.zeros((700, 1000, 3), np.uint8))
    assert sizes == searched


def test_boxes_outside_the_image_are_dropped_and_cut_ones_kept(tmp_path: Path) -> None:
    outside = loaded(listed(tmp_path / "outside.onnx", box=(-500, 0, -400, 32)))
    assert outside.detect(MARKED) == []
    padding = loaded(yunet(tmp_path / "padding.onnx"))
    assert padding.detect(spot(GRAY, 128, 64, 32)) != [], "a cell that reaches over the border, mostly inside"
    far = loaded(listed(tmp_path / "far.onnx", box=(22, 0, 32, 32)))
    assert far.detect(spot(GRAY, 128, 32, 32)) == [], "only in the padding"
    (cut,) = loaded(listed(tmp_path / "cut.onnx", box=(-150, 0, 32, 32))).detect(MARKED)
    assert cut.box == (-54, 32, 128, 64)


def test_a_score_that_is_set_is_the_least_that_counts(tmp_path: Path) -> None:
    path = listed(tmp_path / "plates.onnx", score=0.75)
    assert loaded(path).score == 0.5
    assert loaded(yunet(tmp_path / "faces.onnx")).score == 0.6
    assert len(loaded(path, 0.75).detect(MARKED)) == 1
    assert loaded(path, 0.76).detect(MARKED) == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: listed(path, score=float("nan")), "expected scores from 0 to 1, got nan"),
        (lambda path: listed(path, score=1.5), r"expected scores from 0 to 1, got 1\.5"),
        (lambda path: listed(path, box=(0, 0, -10, 32)), "expected finite boxes x0, y0, x1, y1"),
        (lambda path: yunet(path, side=1000), "expected finite boxes x0, y0, x1, y1"),
    ],
)
def test_values_that_no_working_network_gives_are_errors(tmp_path: Path, make: Make, message: str) -> None:
    detector = loaded(make(tmp_path / "faces.onnx"))
    assert detector.detect(GRAY) == []
    with pytest.raises(ValueError, match=rf"^faces\.onnx: {message}"):
        detector.detect(MARKED)
