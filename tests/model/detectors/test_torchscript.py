"""A real TorchScript module of the contract's signature: it finds pixels by their color."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segmint.model.detectors.torchscript import TorchScriptDetector
from tests.support import torchscript as shared


class RedSpot(nn.Module):
    """Boxes the red pixels of one BGR image (3, H, W), twice, with scores `high` and 0.3."""

    def __init__(self, high: float) -> None:
        super().__init__()
        self.high = high

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        red = (image[2] > 200) & (image[0] < 50)
        ys, xs = torch.where(red)
        size = torch.tensor([image.shape[1], image.shape[2]])
        if ys.numel() == 0:
            return torch.zeros((0, 4)), torch.zeros(0, dtype=torch.int64), torch.zeros(0), size
        box = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).to(torch.float32)
        boxes = torch.stack([box, box + 1, box + 200])
        return boxes, torch.zeros(3, dtype=torch.int64), torch.tensor([self.high, self.high - 0.01, 0.3]), size


class OnlyBoxes(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image[0, :4].to(torch.float32)


def saved(module: nn.Module, path: Path) -> Path:
    torch.jit.script(module).save(path)
    return path


def test_boxes_of_a_bgr_module_merged_and_over_the_score(tmp_path: Path) -> None:
    detector = TorchScriptDetector(saved(RedSpot(0.95), tmp_path / "ego_face.jit"), "face")
    image = np.zeros((60, 80, 3), np.uint8)
    image[10:20, 30:50] = (255, 0, 0)  # red in RGB
    image[40:50, 30:50] = (0, 0, 255)  # blue, which is red if the channels are mixed up
    (found,) = detector.detect(image)
    assert found.box == (30, 10, 50, 20)
    assert (found.kind, found.source, found.score) == ("face", "ego_face.jit", 0.95)
    assert detector.detect(np.zeros((60, 80, 3), np.uint8)) == []


def test_a_lower_score_lets_more_through(tmp_path: Path) -> None:
    path = saved(RedSpot(0.8), tmp_path / "plates.ts")
    image = np.full((20, 30, 3), (255, 0, 0), np.uint8)
    assert TorchScriptDetector(path, "plate").detect(image) == []
    assert [d.score for d in TorchScriptDetector(path, "plate", score=0.2).detect(image)] == [0.8, 0.3]


def test_a_traced_network_with_the_outputs_of_egoblur_searches_images_of_any_size(tmp_path: Path) -> None:
    path = shared.traced(shared.SmallEgoBlur(shared.CYAN), tmp_path / "ego_blur_lp.jit")
    detector = TorchScriptDetector(path, "plate")
    assert detector.score == 0.9
    for height, width in ((120, 200), (333, 250)):
        image = np.zeros((height, width, 3), np.uint8)
        boxes, labels, scores, size = torch.jit.load(path)(torch.from_numpy(image.transpose(2, 0, 1).copy()))
        assert (boxes.shape[0], labels.dtype, scores.max() < 0.01) == (len(scores), torch.int64, True)
        assert size.tolist() == [height, width]
        assert detector.detect(image) == []
        (found,) = detector.detect(shared.spot(image, 100, 40, 24, shared.CYAN))
        assert (found.kind, found.source, found.box) == ("plate", "ego_blur_lp.jit", (100, 40, 124, 64))
        assert detector.detect(shared.spot(image, 100, 40, 24)) == [], "magenta isn't cyan"


def test_boxes_of_objects_are_not_merged(tmp_path: Path) -> None:
    image = np.zeros((60, 80, 3), np.uint8)
    image[10:20, 30:50] = (255, 0, 0)
    found = TorchScriptDetector(saved(RedSpot(0.6), tmp_path / "objects.pt"), "object").detect(image)
    assert [each.box for each in found] == [(30, 10, 50, 20), (31, 11, 51, 21)]
    assert found[0].kind == "object"


def test_a_module_of_another_signature_is_named(tmp_path: Path) -> None:
    detector = TorchScriptDetector(saved(OnlyBoxes(), tmp_path / "odd.pt"), "face")
    with pytest.raises(ValueError, match=r"odd\.pt: expected \(boxes"):
        detector.detect(np.zeros((20, 20, 3), np.uint8))


def test_a_module_of_the_second_generation_searches_1200_pixels_and_has_two_classes(tmp_path: Path) -> None:
    path = shared.saved(shared.SecondGeneration(), tmp_path / "ego2.jit")
    image = shared.spot(np.zeros((300, 200, 3), np.uint8), 40, 80, 30)
    faces, plates = TorchScriptDetector(path, "face"), TorchScriptDetector(path, "plate")
    assert (faces.score, plates.score) == (0.67416, 0.74475)
    (face,) = faces.detect(image)
    assert (face.score, face.kind) == (0.7, "face")
    assert face.box == pytest.approx((40, 80, 70, 110), abs=0.5)
    (plate,) = plates.detect(image)
    assert (plate.score, plate.box[0]) == (0.8, face.box[2])
    assert TorchScriptDetector(path, "face", score=0.71).detect(image) == []


def test_a_file_that_is_no_torchscript(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(b"not a module")
    with pytest.raises((RuntimeError, ValueError)):
        TorchScriptDetector(path, "face")


def test_a_file_that_calls_no_operator_of_torchvision_does_not_import_it(tmp_path: Path) -> None:
    """That takes longer than all the rest of it."""
    path = shared.saved(RedSpot(0.9), tmp_path / "red.pt")
    code = (
        "import sys; from pathlib import Path; "
        "from segmint.model.detectors.torchscript import TorchScriptDetector; "
        "TorchScriptDetector(Path(sys.argv[1]), 'face'); sys.exit('torchvision' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
