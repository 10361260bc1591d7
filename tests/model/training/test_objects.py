"""The detector of objects: boxes, keyed samples, weights of backbones, the exported file in the detectors' loader."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v3_large, resnet50
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

from segmint.model.detectors.detection import iou
from segmint.model.detectors.torchscript import TorchScriptDetector
from segmint.model.training.objects import (
    BackboneWeightsError,
    ObjectImage,
    ObjectsRecipe,
    build_objects_detector,
    build_objects_optimizer,
    export_objects_detector,
    objects_step,
)

SMALL = ObjectsRecipe(backbone="mobilenet_v3_large", short_side=96, long_side=96, learning_rate=5e-4)


def planted(seed: int, number: int = 0) -> ObjectImage:
    """A red rectangle on noise."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(80, 120, (128, 128, 3)).astype(np.uint8)
    width, height = rng.integers(40, 70, 2)
    x, y = rng.integers(0, 128 - width), rng.integers(0, 128 - height)
    pixels[y : y + height, x : x + width] = (220, 60, 40)
    return ObjectImage(pixels, torch.tensor([[x, y, x + width, y + height]], dtype=torch.float32), number)


def small_detector() -> nn.Module:
    """Few samples of anchors, which take most of the time."""
    torch.manual_seed(0)
    detector = build_objects_detector(SMALL)
    detector.roi_heads.fg_bg_sampler.batch_size_per_image = 16
    return detector


def test_two_workers_add_up_to_one_and_leave_torchs_generator_alone() -> None:
    detector, image = small_detector(), planted(1, 2**62)
    images = [image, ObjectImage(image.pixels, torch.zeros(0, 4), 5)]  # the other one has no objects
    torch.manual_seed(7)
    whole = objects_step(detector, images, seed=3, step=4, total_images=2)
    expected = [weight.grad.clone() for weight in detector.parameters()]
    detector.zero_grad()
    parts = [objects_step(detector, part, seed=3, step=4, total_images=2) for part in (images[1:], images[:1])]
    assert {name: sum(part[name] for part in parts) for name in whole} == pytest.approx(whole, rel=1e-5)
    for weight, gradient in zip(detector.parameters(), expected, strict=True):
        assert (weight.grad - gradient).abs().max() <= 1e-4 * gradient.abs().max().clamp(min=1e-6)
    assert not detector.training
    drawn = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(1), drawn)


def test_boxes_that_are_none_are_errors() -> None:
    detector, image = small_detector(), planted(0)
    for boxes, message in (
        (torch.tensor([[3.0, 4.0, 3.0, 9.0]]), r"a box of image 0 is \[3.0, 4.0, 3.0, 9.0\]: expected x0 < x1"),
        (torch.tensor([[0.0, 0.0, 129.0, 9.0]]), "inside its 128 x 128 pixels"),
        (torch.zeros(4), r"have the shape \(4,\): expected \(N, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            objects_step(detector, [ObjectImage(image.pixels, boxes, 0)], seed=0, step=0, total_images=1)
    with pytest.raises(ValueError, match="backbone is 'vgg': expected one of resnet50, mobilenet_v3_large"):
        ObjectsRecipe(backbone="vgg")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "make"),
    [("mobilenet_v3_large", mobilenet_v3_large), pytest.param("resnet50", resnet50, marks=pytest.mark.long)],
)
def test_a_backbone_has_the_files_weights_and_frozen_norms(name: str, make: object, tmp_path: Path) -> None:
    recipe = ObjectsRecipe(backbone=name)  # type: ignore[arg-type]
    classifier = make(weights=None)  # type: ignore[operator]
    torch.save(classifier.state_dict(), tmp_path / "backbone.pth")
    detector = build_objects_detector(recipe, tmp_path / "backbone.pth")
    taken = {name.removeprefix("backbone.body."): value for name, value in detector.state_dict().items()}
    loaded = {name.removeprefix("features."): value for name, value in classifier.state_dict().items()}
    assert all(torch.equal(taken[key], value) for key, value in loaded.items() if key in taken)
    assert sum(key in taken for key in loaded) > 200
    assert not any(isinstance(part, nn.BatchNorm2d) for part in detector.modules())
    torch.save({"layer": torch.zeros(2)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(
        BackboneWeightsError, match=f"other.pth: .* missing or unknown, .*: expected torchvision's weights of {name}"
    ):
        build_objects_detector(recipe, tmp_path / "other.pth")
    with pytest.raises(BackboneWeightsError, match=r"text\.pth is not a PyTorch checkpoint of plain tensors"):
        build_objects_detector(recipe, tmp_path / "text.pth")
    with pytest.raises(OSError):
        build_objects_detector(recipe, tmp_path / "missing.pth")


def test_the_exported_file_answers_as_the_detector_does(tmp_path: Path) -> None:
    """In the image's own pixels, whatever size the detector sees; the file takes blue, green, red."""
    detector = small_detector()
    export_objects_detector(detector, tmp_path / "objects.pt")
    pixels = planted(0).pixels[:, :100]
    with torch.inference_mode():
        expected = detector([torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1) / 255])[0]
        bgr = torch.from_numpy(np.ascontiguousarray(pixels[..., ::-1])).permute(2, 0, 1)
        boxes, labels, scores, size = torch.jit.load(tmp_path / "objects.pt")(bgr)
    assert len(boxes) > 10
    torch.testing.assert_close(boxes, expected["boxes"])
    torch.testing.assert_close(scores, expected["scores"])
    assert set(labels.tolist()) == {1}
    assert size.tolist() == [128, 100]
    found = TorchScriptDetector(tmp_path / "objects.pt", "object", score=0.0).detect(pixels)
    assert found[0].score == pytest.approx(scores.max().item(), abs=1e-4)


def top_iou(detector: nn.Module, folder: Path) -> float:
    """The mean IoU of the box with the highest score, of its file, with what is planted in images never trained on."""
    export_objects_detector(detector, folder / "objects.pt")
    loaded = TorchScriptDetector(folder / "objects.pt", "object", score=0.05)
    ious = []
    for seed in range(1000, 1010):
        image = shrunk(planted(seed))
        found = max(loaded.detect(image.pixels), key=lambda each: each.score, default=None)
        truth = tuple(image.boxes[0].tolist())
        ious.append(0.0 if found is None else iou(found.box, truth))  # type: ignore[arg-type]
    return float(np.mean(ious))


def shrunk(image: ObjectImage) -> ObjectImage:
    """An image at half its size."""
    return ObjectImage(np.ascontiguousarray(image.pixels[::2, ::2]), image.boxes / 2, image.number)


@pytest.mark.long
@pytest.mark.parametrize("shuffled", [False, True])
def test_a_detector_learns_to_find_what_is_planted(tmp_path: Path, one_thread: None, shuffled: bool) -> None:
    """Of the boxes of other images it learns only where boxes are likely: in the middle."""
    recipe = ObjectsRecipe(backbone="mobilenet_v3_large", short_side=128, long_side=128, learning_rate=3e-4)
    torch.manual_seed(0)
    detector = build_objects_detector(recipe)
    detector.roi_heads.box_head = TwoMLPHead(256 * 7 * 7, 128)  # a tenth of the weights
    detector.roi_heads.box_predictor = FastRCNNPredictor(128, 2)
    detector.roi_heads.fg_bg_sampler.batch_size_per_image = 64
    # torchvision has no other way to change these limits of a detector.
    detector.rpn._pre_nms_top_n = detector.rpn._post_nms_top_n = {"training": 100, "testing": 100}  # noqa: SLF001
    optimizer = build_objects_optimizer(detector, recipe)
    for step in range(100):
        images = [shrunk(planted(2 * step + number, number)) for number in range(2)]
        if shuffled:
            boxes = [shrunk(planted(5000 + 2 * step + number)).boxes for number in range(2)]
            images = [ObjectImage(each.pixels, boxes[each.number], each.number) for each in images]
        objects_step(detector, images, seed=0, step=step, total_images=2)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * (1 if step < 75 else 0.1)
        optimizer.step()
        optimizer.zero_grad()
    found = top_iou(detector, tmp_path)
    print(f"mean IoU of the best box {found:.3f}{', of shuffled boxes' * shuffled}")
    assert found < 0.4 if shuffled else found > 0.5
