"""De-identification of real photographs, checked with faces and plates labeled by hand and with a second detector."""

import dataclasses
import io
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch
from facenet_pytorch import MTCNN
from PIL import Image
from pydantic import ValidationError

from segmint.catalogs.findings import Reason, RejectedError
from segmint.infra.assets import resolve
from segmint.infra.errors import UsageError
from segmint.model.detectors.detection import Detection, Detector, Kind
from segmint.model.detectors.plate_network import PlateNetworkOnDevice
from segmint.model.detectors.plates import LARGE, PlateDetector
from segmint.operators.prepare.deidentify import (
    BrokenDetectorError,
    DeidentifyConfig,
    FacesConfig,
    PlatesConfig,
    Region,
    build_detectors,
    outline,
)
from segmint.operators.prepare.onnx_file import read_weights
from segmint.operators.rows import REGION
from tests.support.labels import (
    ASTRONAUT,
    MULTIFACE,
    PLATE_CORNERS,
    SOLVAY,
    Box,
    area,
    found_again,
    haar_faces,
)
from tests.support.onnx_detectors import fragile, listed
from tests.support.redacted import redacted
from tests.support.torchscript import FailingDetector, FragileDetector, OnlyScores, saved, spot

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def detectors(weights: None) -> tuple[Detector, ...]:
    return build_detectors(DeidentifyConfig())


CHANGED = 4.0
"""How many times the area of a label may change, the band included."""


@pytest.fixture(scope="module")
def cascade(weights: None) -> MTCNN:
    return MTCNN(keep_all=True)


def read(path: Path | io.BytesIO) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def mtcnn_faces(cascade: MTCNN, image: np.ndarray) -> list[Box]:
    boxes, _ = cascade.detect(image)
    return [] if boxes is None else [tuple(box) for box in np.asarray(boxes, float).tolist()]


def changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return (before != after).any(axis=2)


def covered(labels: tuple[Box, ...], regions: list[Region]) -> int:
    """Count the labels that lie entirely inside one region."""
    return sum(
        any(r.x <= x0 and r.y <= y0 and r.x + r.w >= x1 and r.y + r.h >= y1 and r.kind == "face" for r in regions)
        for x0, y0, x1, y1 in labels
    )


def check_faces(
    image: np.ndarray,
    labels: tuple[Box, ...],
    scales: tuple[float, ...],
    detectors: tuple[Detector, ...],
    cascade: MTCNN,
) -> list[Region]:
    """Check what holds for every photograph of faces, also resized by each of `scales` and compressed.

    At that size both MTCNN and the Haar cascade find the faces before de-identification, and neither does after.
    """
    for scale in scales:
        before = resized_jpeg(image, scale)
        assert len(found_again(labels, mtcnn_faces(cascade, before), scale)) == len(labels)
        assert len(found_again(labels, haar_faces(before), scale)) > 0.8 * len(labels)
    clean, regions = redacted(image, detectors)
    assert covered(labels, regions) == len(labels)
    pixels = changed(image, clean)
    for x0, y0, x1, y1 in labels:
        assert pixels[int(y0) : int(y1), int(x0) : int(x1)].mean() > 0.97
    assert pixels.sum() <= CHANGED * sum(map(area, labels))
    assert found_again(labels, mtcnn_faces(cascade, clean)) == []
    for scale in scales:
        after = resized_jpeg(clean, scale)
        assert found_again(labels, mtcnn_faces(cascade, after), scale) == []
        assert found_again(labels, haar_faces(after), scale) == []
    return regions


def resized_jpeg(image: np.ndarray, scale: float) -> np.ndarray:
    smaller = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    buffer = io.BytesIO()
    Image.fromarray(smaller).save(buffer, "JPEG", quality=90)
    return read(buffer)


def test_the_six_faces_cannot_be_found_again(photos: Path, detectors: tuple[Detector, ...], cascade: MTCNN) -> None:
    regions = check_faces(read(photos / "multiface.jpg"), MULTIFACE, (1.0, 0.6), detectors, cascade)
    assert len(regions) == 6
    assert {(r.kind, r.source) for r in regions} == {("face", "mtcnn")}


@pytest.mark.long
def test_the_29_faces_of_solvay_cannot_be_found_again(
    photos: Path, detectors: tuple[Detector, ...], cascade: MTCNN
) -> None:
    check_faces(read(photos / "solvay_1927.jpg"), SOLVAY, (1500 / 2171,), detectors, cascade)


def test_the_astronaut_cannot_be_found_again(
    astronaut: np.ndarray, detectors: tuple[Detector, ...], cascade: MTCNN
) -> None:
    check_faces(astronaut, ASTRONAUT, (1.0,), detectors, cascade)


@pytest.mark.parametrize("name", sorted(PLATE_CORNERS))
@pytest.mark.parametrize("scale", [1.0, pytest.param(1.5, marks=pytest.mark.long), 2.0])
def test_plates_are_covered_at_any_size(photos: Path, detectors: tuple[Detector, ...], name: str, scale: float) -> None:
    image = cv2.resize(read(photos / name), None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    clean, (region,) = redacted(image, detectors)
    assert (region.kind, region.source) == ("plate", "clp")
    label = np.array(PLATE_CORNERS[name]) * scale
    plate = np.zeros(image.shape[:2], np.uint8)
    cv2.fillConvexPoly(plate, label.astype(np.int32), 1)
    inside = np.zeros_like(plate)
    inside[region.y : region.y + region.h, region.x : region.x + region.w] = 1
    assert (inside[plate == 1] == 1).all()
    pixels = changed(image, clean)
    assert pixels[plate == 1].mean() > 0.97
    width, height = np.ptp(label, axis=0)
    assert pixels.sum() <= CHANGED * width * height
    assert detectors[1].detect(clean) == []


@pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=pytest.mark.long) for name in ("dog.jpg", "groceries.jpg")), "truck.jpg"]
)
def test_photographs_without_faces_and_plates_keep_every_pixel(
    photos: Path, detectors: tuple[Detector, ...], name: str
) -> None:
    image = read(photos / name)
    clean, regions = redacted(image, detectors)
    assert regions == []
    assert (clean == image).all()


def test_the_coffee_cup_keeps_every_pixel(coffee: np.ndarray, detectors: tuple[Detector, ...]) -> None:
    clean, regions = redacted(coffee, detectors)
    assert regions == []
    assert (clean == coffee).all()


def test_regions_cover_every_changed_pixel_and_the_image_given_stays(
    photos: Path, detectors: tuple[Detector, ...]
) -> None:
    image = read(photos / "multiface.jpg")[100:]  # cuts one face's region at the border
    before = image.copy()
    clean, regions = redacted(image, detectors)
    assert (image == before).all()
    outside = np.ones(image.shape[:2], bool)
    for r in regions:
        assert min(r.x, r.y) >= 0
        assert r.x + r.w <= image.shape[1]
        assert r.y + r.h <= image.shape[0]
        outside[r.y : r.y + r.h, r.x : r.x + r.w] = False
    assert not changed(image, clean)[outside].any()
    table = pa.array([dataclasses.asdict(r) for r in regions], type=REGION)
    assert [Region(**row) for row in table.to_pylist()] == regions


@pytest.mark.usefixtures("weights")
def test_the_same_bytes_for_any_number_of_threads(photos: Path) -> None:
    image = read(photos / "multiface.jpg")
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(redacted(image, build_detectors(DeidentifyConfig(), threads=count)))
    finally:
        torch.set_num_threads(threads)
    assert results[0][1] == results[1][1]
    assert (results[0][0] == results[1][0]).all()


@pytest.mark.parametrize(("before", "after"), [((512, 512), (512, 512)), ((300, 200), (701, 467)), ((3, 2), (7, 9))])
def test_a_region_in_the_source_covers_what_was_redacted_smaller(
    before: tuple[int, int], after: tuple[int, int]
) -> None:
    for x, y, w, h in ((0, 0, *before), (1, 0, 1, 2), (before[0] - 1, before[1] - 2, 1, 2)):
        found = Region("face", 0.9, x, y, w, h, "mtcnn").scaled(before, after)
        for start, length, at, size, small, large in (
            (x, w, found.x, found.w, before[0], after[0]),
            (y, h, found.y, found.h, before[1], after[1]),
        ):
            assert 0 <= at <= start * large / small < at + 1
            assert at + size - 1 < (start + length) * large / small <= at + size <= large


@pytest.mark.usefixtures("weights")
def test_small_plates_are_enlarged_where_the_whole_image_would_be_too_large(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plates 12 pixels high, in an image of 7 megapixels that is searched no larger than it is."""
    image = cv2.resize(read(photos / "plate_car_1.png"), None, fx=0.64, fy=0.64, interpolation=cv2.INTER_AREA)
    canvas = np.full((2100, 3400, 3), 90, np.uint8)
    corners = [(x, y) for x in (0, 1500, 3060) for y in (0, 1000, 1880)]
    for x, y in corners:
        canvas[y : y + image.shape[0], x : x + image.shape[1]] = image
    labels = [(x + 196, y + 121, x + 248, y + 135) for x, y in corners]
    (plates,) = build_detectors(DeidentifyConfig(faces=FacesConfig(detector="none")))
    assert len(found_again(labels, [each.box for each in plates.detect(canvas)])) == 9
    whole, _ = LARGE
    monkeypatch.setattr("segmint.model.detectors.plates.LARGE", (whole, ()))
    assert len(found_again(labels, [each.box for each in plates.detect(canvas)])) < 9, "else this shows nothing"


@pytest.mark.usefixtures("weights")
def test_plates_searched_in_batches_by_torch_are_those_that_onnxruntime_finds(photos: Path) -> None:
    image = np.tile(read(photos / "plate_car_1.png")[100:], (1, 4, 1))  # more than one tile
    config = DeidentifyConfig(faces=FacesConfig(detector="none"))
    (reference,) = build_detectors(config)
    plates = PlateDetector(PlateNetworkOnDevice(read_weights(resolve("clp")), "cpu"), batch_pixels=10**7)
    expected, found = reference.detect(image), plates.detect(image)
    assert len(expected) >= 4
    assert [each.kind for each in found] == [each.kind for each in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.quad is not None
        assert np.allclose(ours.quad, theirs.quad, atol=0.1)
        assert abs(ours.score - theirs.score) < 1e-3


def test_a_plate_is_redacted_by_its_corners_if_they_match_its_box() -> None:
    box = (20.0, 20.0, 60.0, 40.0)
    tilted = Detection("plate", 0.9, box, ((20, 20), (60, 28), (60, 40), (20, 32)), "test")
    stray = dataclasses.replace(tilted, quad=((70, 70), (80, 70), (80, 80), (70, 80)))
    by_box = outline(dataclasses.replace(tilted, quad=None), (100, 100))
    by_stray, by_corners = outline(stray, (100, 100)), outline(tilted, (100, 100))
    assert by_box is not None
    assert by_stray is not None
    assert by_corners is not None
    assert (by_stray.mask == by_box.mask).all()
    assert by_corners.mask.sum() < 0.9 * by_box.mask.sum()


def test_none_builds_no_detector(astronaut: np.ndarray) -> None:
    config = DeidentifyConfig.model_validate({"faces": {"detector": "none"}, "plates": {"detector": "none"}})
    assert build_detectors(config) == ()
    clean, regions = redacted(astronaut, ())
    assert regions == []
    assert (clean == astronaut).all()


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"faces": {"detector": "haar"}}, "mtcnn"),
        ({"plates": {"detector": "mtcnn"}}, "clp"),
        ({"faces": {"score": 1.5}}, "score"),
        ({"faces": {"blur": True}}, "blur"),
        ({"people": {}}, "people"),
    ],
)
def test_an_invalid_configuration_says_what_is_wrong(values: dict[str, object], word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        DeidentifyConfig.model_validate(values)


class WholeImageDetector(torch.nn.Module):
    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        size = torch.tensor([image.shape[1], image.shape[2]])
        box = torch.tensor([[0.0, 0.0, float(image.shape[2]), float(image.shape[1])]])
        return box, torch.zeros(1), torch.tensor([0.95]), size


@pytest.mark.parametrize(
    ("faces", "plates", "device", "packages"),
    [
        ("mtcnn", "clp", "cpu", {"facenet-pytorch", "torchvision", "onnxruntime"}),
        ("mtcnn", "none", "cuda", {"facenet-pytorch", "torchvision"}),
        ("/faces.pt", "clp", "cpu", {"onnxruntime"}),
        ("/faces.pt", "clp", "cuda", {"protobuf"}),
        ("none", "/plates.pt", "cpu", set()),
        ("/faces.onnx", "none", "cpu", {"onnxruntime"}),
    ],
)
def test_only_bundled_detectors_need_their_packages(
    faces: str, plates: str, device: Literal["cpu", "cuda"], packages: set[str]
) -> None:
    config = DeidentifyConfig(device=device, faces=FacesConfig(detector=faces), plates=PlatesConfig(detector=plates))
    assert config.packages == packages
    config.require_packages()


def test_a_torchscript_file_replaces_a_detector(tmp_path: Path) -> None:
    path = tmp_path / "plates.ts"
    torch.jit.script(WholeImageDetector()).save(path)
    config = DeidentifyConfig.model_validate({"faces": {"detector": "none"}, "plates": {"detector": str(path)}})
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    _, regions = redacted(image, build_detectors(config))
    assert regions == [Region("plate", 0.95, 0, 0, 50, 40, "plates.ts")]


def test_onnx_files_run_on_cpus() -> None:
    files = {"faces": {"detector": "/faces.onnx"}, "plates": {"detector": "none"}}
    with pytest.raises(ValidationError, match=r"ONNX detectors run on CPUs: set deidentify\.device to cpu, or use"):
        DeidentifyConfig.model_validate({"device": "cuda", **files})
    assert DeidentifyConfig.model_validate(files).detector_files == {"faces": "/faces.onnx"}
    with pytest.raises(ValidationError, match=r"a TorchScript or ONNX file \(\.jit, .*, \.onnx\), got '/faces\.bin'"):
        FacesConfig(detector="/faces.bin")


def test_an_onnx_file_that_fails_on_an_image_refuses_only_this_image(tmp_path: Path) -> None:
    path = fragile(tmp_path / "faces.onnx")
    config = DeidentifyConfig.model_validate({"faces": {"detector": str(path)}, "plates": {"detector": "none"}})
    detectors = build_detectors(config, threads=1)
    gray = np.full((90, 150, 3), 90, np.uint8)
    assert redacted(gray, detectors)[1] == []
    with pytest.raises(RejectedError, match=r"faces\.onnx fails on this image, and not on others: ") as verdict:
        redacted(spot(gray, 96, 32, 32), detectors)
    assert verdict.value.reason == Reason.DETECTOR_FAILED
    working = build_detectors(config, resolve=lambda _: listed(tmp_path / "working.onnx"), threads=1)
    (region,) = redacted(spot(gray, 96, 32, 32), working)[1]
    assert (region.kind, region.source, region.score) == ("face", "working.onnx", 0.9)


def test_an_image_that_a_detector_alone_fails_on_is_refused(tmp_path: Path) -> None:
    path = saved(FragileDetector(), tmp_path / "faces.ts")
    config = DeidentifyConfig.model_validate({"faces": {"detector": str(path)}, "plates": {"detector": "none"}})
    detectors = build_detectors(config)
    gray = np.full((40, 50, 3), 90, np.uint8)
    assert redacted(gray, detectors)[1] == []
    with pytest.raises(RejectedError) as verdict:
        redacted(spot(gray, 0, 0, 1), detectors)
    assert verdict.value.reason == Reason.DETECTOR_FAILED
    assert "the face detector faces.ts fails on this image, and not on others: " in verdict.value.detail
    assert verdict.value.detail.endswith("a shape that was not foreseen")


@pytest.mark.parametrize("module", [FailingDetector, OnlyScores])
def test_a_detector_that_fails_on_control_images_refuses_nobody(tmp_path: Path, module: type[torch.nn.Module]) -> None:
    path = saved(module(), tmp_path / "plates.ts")
    config = DeidentifyConfig.model_validate({"faces": {"detector": "none"}, "plates": {"detector": str(path)}})
    with pytest.raises(
        BrokenDetectorError, match=r"the plate detector plates\.ts fails on a control image of 192 x 256"
    ):
        redacted(np.zeros((40, 50, 3), np.uint8), build_detectors(config))


class ShortDetector:
    """Has no memory left for an image that is not gray."""

    kind: Kind = "face"
    name = "short"
    score = 0.5

    def detect(self, image: np.ndarray) -> list[Detection]:
        if np.ptp(image, axis=2).any():
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return []


def test_exhausted_memory_is_no_verdict(astronaut: np.ndarray) -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        redacted(astronaut, [ShortDetector()])


def test_a_missing_or_broken_torchscript_file_names_its_key(tmp_path: Path) -> None:
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"nothing")
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    for path in (tmp_path / "absent.pt", broken, tmp_path / "broken.onnx"):
        config = DeidentifyConfig.model_validate({"faces": {"detector": str(path)}})
        with pytest.raises(UsageError, match=r"deidentify\.faces\.detector"):
            build_detectors(config)
