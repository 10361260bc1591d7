"""How an audit's detectors are named, loaded and refused; MTCNN on tiles sees a face that it misses on the whole."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from segmint.infra.assets import resolve
from segmint.infra.errors import UsageError
from segmint.operators.audit.privacy import DetectorSpec, distinct_names, try_detector_files
from segmint.operators.prepare.deidentify import DeidentifyConfig, PlatesConfig, build_detectors
from tests.support.onnx_detectors import listed
from tests.support.torchscript import MagentaDetector, OnlyScores, saved, spot


@pytest.mark.usefixtures("processes")
def test_a_file_is_named_pinned_and_loaded(tmp_path: Path) -> None:
    path = saved(MagentaDetector(least=4), tmp_path / "ego.jit")
    given = DetectorSpec.of(f"plate={path}").pinned(resolve)
    assert (given.kind, given.name, given.detector) == ("plate", "ego.jit", str(path))
    assert given.sha256 is not None
    (found,) = given.load("ego.jit", "cpu", resolve).detect(spot(np.zeros((90, 120, 3), np.uint8), 30, 40, 12))
    assert (found.kind, found.source, found.box) == ("plate", "ego.jit", (30, 40, 42, 52))
    saved(MagentaDetector(least=5), path)
    with pytest.raises(UsageError, match=r"differs between the machines"):
        given.load("ego.jit", "cpu", resolve)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("face", "expected face=PATH or plate=PATH"),
        ("face=", "expected face=PATH or plate=PATH"),
        ("face=none", "expected face=PATH or plate=PATH"),
        ("hand=x.pt", "expected face=PATH or plate=PATH"),
        ("face=clp", "'face=clp': expected face=PATH or plate=PATH"),
        ("plate=weights.bin", r"'plate=weights\.bin': .* TorchScript or ONNX file \(\.jit, .*, \.onnx\)"),
    ],
)
def test_anything_else_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DetectorSpec.of(text)


@pytest.mark.usefixtures("processes")
def test_a_file_that_is_not_there_or_not_of_the_contract_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--detector face=.*absent\.pt: no such file\. .* write mtcnn"):
        DetectorSpec.of(f"face={tmp_path / 'absent.pt'}").pinned(resolve)
    (tmp_path / "text.pt").write_text("not a module")
    with pytest.raises(UsageError, match=r"can't be loaded as TorchScript on cpu: (.|\n)*PytorchStreamReader"):
        DetectorSpec.of(f"face={tmp_path / 'text.pt'}").load("x", "cpu", resolve)
    other = saved(OnlyScores(), tmp_path / "other.pt")
    with pytest.raises(
        UsageError, match=r"it failed on a blank image\. Expected a TorchScript module that takes one BGR"
    ):
        DetectorSpec.of(f"face={other}").load("x", "cpu", resolve)


@pytest.mark.usefixtures("processes")
def test_an_onnx_file_is_pinned_and_loaded(tmp_path: Path) -> None:
    path = listed(tmp_path / "plates.onnx")
    given = DetectorSpec.of(f"plate={path}").pinned(resolve)
    (found,) = given.load("plates.onnx", "cpu", resolve).detect(spot(np.zeros((96, 160, 3), np.uint8), 96, 32, 16))
    assert (found.kind, found.source, found.box) == ("plate", "plates.onnx", (96, 32, 112, 48))  # at twice the size
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UsageError, match=r"plates\.onnx can't be loaded as ONNX on cpu: expected an ONNX file"):
        DetectorSpec.of(f"plate={path}").load("x", "cpu", resolve)


@pytest.mark.usefixtures("processes")
def test_a_builds_files_are_tried_on_a_blank_image(tmp_path: Path) -> None:
    """The first one works, and the second one fails."""
    faces, plates = listed(tmp_path / "faces.onnx"), saved(OnlyScores(), tmp_path / "plates.pt")
    config = {"faces": {"detector": str(faces)}, "plates": {"detector": str(plates)}}
    with pytest.raises(UsageError, match=r"^deidentify\.plates\.detector: .*failed on a blank image\. Expected a T"):
        try_detector_files(DeidentifyConfig.model_validate(config), resolve)
    faces.write_bytes(b"")
    with pytest.raises(UsageError, match=r"^deidentify\.faces\.detector: .*faces\.onnx can't be loaded as ONNX on cpu"):
        try_detector_files(DeidentifyConfig.model_validate(config), resolve)


def test_names_tell_detectors_apart() -> None:
    given = tuple(map(DetectorSpec.of, ("face=mtcnn", "face=/a/ego.pt", "plate=/b/ego.pt")))
    assert distinct_names(given, frozenset({("face", "mtcnn")})) == ("mtcnn on tiles", "ego.pt", "ego.pt")
    with pytest.raises(UsageError, match=r"face=/a/ego\.pt and --detector face=/b/ego\.pt: both are called ego\.pt"):
        distinct_names((*given[1:2], DetectorSpec.of("face=/b/ego.pt")), frozenset())


@pytest.mark.usefixtures("weights")
def test_mtcnn_on_tiles_finds_a_face_that_it_misses_on_the_whole(astronaut: np.ndarray) -> None:
    shrunk = cv2.resize(astronaut, (56, 56), interpolation=cv2.INTER_AREA)
    image = np.full((400, 500, 3), 127, np.uint8)
    image[60:116, 350:406] = shrunk
    (whole,) = build_detectors(DeidentifyConfig(plates=PlatesConfig(detector="none")))
    assert whole.detect(image) == []
    (found,) = DetectorSpec.of("face=mtcnn").load("mtcnn on tiles", "cpu", resolve).detect(image)
    assert found.source == "mtcnn on tiles"
    x0, y0, x1, y1 = found.box
    assert 369 < (x0 + x1) / 2 < 379
    assert 68 < (y0 + y1) / 2 < 78
