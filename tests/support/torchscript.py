"""A real TorchScript detector of the contract's signature, which finds magenta spots."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

MAGENTA, CYAN = (255, 0, 255), (0, 255, 255)


class MagentaDetector(nn.Module):
    """Boxes the magenta pixels of one BGR image (3, H, W), all in one, if the box is `least` pixels wide or more."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least = least

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        size = torch.tensor([image.shape[1], image.shape[2]])
        ys, xs = torch.where((image[0] > 180) & (image[1] < 90) & (image[2] > 180))
        if ys.numel() == 0 or int(xs.max() - xs.min()) + 1 < self.least:
            return torch.zeros((0, 4)), torch.zeros(0, dtype=torch.int64), torch.zeros(0), size
        box = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).to(torch.float32)
        return box[None], torch.zeros(1, dtype=torch.int64), torch.tensor([0.95]), size


class FailingDetector(nn.Module):
    """Finds nothing in a square image, and fails on any other."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if image.shape[1] != image.shape[2]:
            raise RuntimeError("only squares")
        return torch.zeros((0, 4)), torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.zeros(2)


class FragileDetector(nn.Module):
    """Finds nothing, and fails on an image that begins with a magenta pixel."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if bool(image[0, 0, 0] > 180) and bool(image[1, 0, 0] < 90) and bool(image[2, 0, 0] > 180):
            raise RuntimeError("a shape that was not foreseen")
        return torch.zeros((0, 4)), torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.zeros(2)


class HangingDetector(nn.Module):
    """Finds nothing, and never ends on an image that begins with a magenta pixel."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        count = 0
        while bool(image[0, 0, 0] > 180) and bool(image[1, 0, 0] < 90) and bool(image[2, 0, 0] > 180):
            count += 1
        return torch.zeros((0, 4)), torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.zeros(2)


class GreedyDetector(nn.Module):
    """Finds nothing, asks for a terabyte for an image that begins with a magenta pixel, and fails on a high one."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if bool(image[0, 0, 0] > 180) and bool(image[1, 0, 0] < 90) and bool(image[2, 0, 0] > 180):
            return torch.zeros((1 << 40, 4)), torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.zeros(2)
        if image.shape[1] > image.shape[2]:
            raise RuntimeError("no high images")
        return torch.zeros((0, 4)), torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.zeros(2)


class DoubleDetector(nn.Module):
    """Finds the whole image twice, and keeps one by torchvision's NMS."""

    def __init__(self) -> None:
        super().__init__()
        import torchvision  # noqa: F401  TorchScript looks for its operators

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        box = torch.tensor([0, 0, image.shape[2], image.shape[1]], dtype=torch.float32)
        boxes, scores = torch.stack([box, box]), torch.tensor([0.96, 0.95])
        kept = torch.ops.torchvision.nms(boxes, scores, 0.5)
        return boxes[kept], torch.zeros(len(kept), dtype=torch.int64), scores[kept], torch.zeros(2)


class SmallEgoBlur(nn.Module):
    """EgoBlur's first generation in small: a convolution finds squares of 24 pixels of a color with two channels.

    As the published modules, it takes one BGR image, (3, H, W) uint8, converts it inside, and calls torchvision's NMS.
    It returns boxes, labels, scores, and the image's size. Most of the 50 boxes have low scores, and some overlap.
    """

    def __init__(self, color: tuple[int, int, int]) -> None:
        super().__init__()
        import torchvision  # noqa: F401  the trace looks for its operators

        self.cells = nn.Conv2d(3, 1, kernel_size=24, stride=4)
        signs = torch.tensor([1.0 if channel else -1.0 for channel in color[::-1]])
        with torch.no_grad():
            self.cells.weight.copy_((signs * 40 / 24**2)[None, :, None, None].expand(1, 3, 24, 24))
            self.cells.bias.fill_(-40 * 1.7)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        scores_of = torch.sigmoid(self.cells(image.to(torch.float32)[None] / 255))[0, 0]
        scores, places = scores_of.flatten().topk(50)
        across = scores_of.shape[1]
        corners = torch.stack([places % across, places // across], 1).to(torch.float32) * 4
        boxes = torch.cat([corners, corners + 24], 1)
        kept = torch.ops.torchvision.nms(boxes, scores, 0.9)
        labels = torch.zeros_like(kept)
        return boxes[kept], labels, scores[kept], torch._shape_as_tensor(image)[1:]  # noqa: SLF001 - as exports have it


@torch.jit.script
class InstanceBoxes:
    """As detectron2 exports it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@torch.jit.script
class Instances:
    """As detectron2 exports it: a field that is not there is None with an underscore, and raises without."""

    def __init__(self, image_size: tuple[int, int], boxes: InstanceBoxes, scores: Tensor, classes: Tensor) -> None:
        self.image_size = image_size
        self._pred_boxes = torch.jit.annotate(InstanceBoxes | None, boxes)
        self._scores = torch.jit.annotate(Tensor | None, scores)
        self._pred_classes = torch.jit.annotate(Tensor | None, classes)


class SecondGeneration(nn.Module):
    """The interface of EgoBlur's second generation: a face around the magenta pixels, and a plate beside it.

    Fails if the longer side of the image is not 1200 pixels.
    """

    @torch.jit.export
    def inference(self, batched_inputs: list[dict[str, Tensor]], do_postprocess: bool = True) -> list[Instances]:
        image = batched_inputs[0]["image"]
        if do_postprocess or max(image.shape[1], image.shape[2]) != 1200:
            raise RuntimeError("only 1200 pixels, and no post-processing")
        ys, xs = torch.where((image[0] > 180) & (image[1] < 90) & (image[2] > 180))
        x0, y0, x1, y1 = float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1)
        boxes = torch.tensor([[x0, y0, x1, y1], [x0, y0, x1, y1], [x1, y0, x1 + 90, y1]])
        scores, classes = torch.tensor([0.7, 0.69, 0.8]), torch.tensor([0, 0, 1])
        return [Instances((image.shape[1], image.shape[2]), InstanceBoxes(boxes), scores, classes)]


class OnlyScores(nn.Module):
    """Has another signature."""

    def forward(self, image: Tensor) -> Tensor:
        return image[0].to(torch.float32)


class HalfAndHalf(nn.Module):
    """Labels crops with the first of two labels, with a score of 0.5."""

    def forward(self, crops: Tensor, masks: Tensor) -> Tensor:
        return torch.full((crops.shape[0], 2), 0.5)


def saved(module: nn.Module, path: Path) -> Path:
    """The module as a TorchScript file."""
    torch.jit.script(module).save(path)
    return path


def traced(module: nn.Module, path: Path) -> Path:
    """The module as a TorchScript file by a trace of one image, as EgoBlur's files are made."""
    torch.jit.trace(module.eval(), torch.zeros((3, 96, 160), dtype=torch.uint8)).save(path)
    return path


def spot(pixels: np.ndarray, x: int, y: int, side: int, color: tuple[int, int, int] = MAGENTA) -> np.ndarray:
    """A copy of an image with a square of one color."""
    marked = pixels.copy()
    marked[y : y + side, x : x + side] = color
    return marked
