"""TorchScript detectors with the interface of EgoBlur's first or second generation.

EgoBlur: Raina et al. 2023, arXiv 2308.13093; https://github.com/facebookresearch/EgoBlur.
"""

import math
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from segmint.infra.arrays import Box, Pixels
from segmint.model.detectors.detection import Detection, Kind, by_score, merge

SECOND_SIDE = 1200
"""Longer side in pixels of the resized image that a second-generation module searches."""

_FIRST_SCORES: dict[Kind, float] = {"face": 0.9, "plate": 0.9, "object": 0.5}
_SECOND_SCORES: dict[Kind, float] = {"face": 0.67416, "plate": 0.74475, "object": 0.5}  # EgoBlur's own, for RGB cameras
_SECOND_LABELS: dict[Kind, int] = {"face": 0, "plate": 1, "object": 0}


def _load(path: Path, device: torch.device) -> Any:
    """Load a module. Import torchvision only if the module uses its operators for NMS or RoIAlign.

    The import takes two seconds and 160 MB per process, and other modules don't need it.
    """
    try:
        return torch.jit.load(path, map_location=device)  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    import torchvision  # noqa: F401

    return torch.jit.load(path, map_location=device)  # type: ignore[no-untyped-call]


class TorchScriptDetector:
    """Detector that runs a TorchScript module. The module finds boxes in one BGR image, uint8.

    A first-generation module takes the image (3, H, W) and returns boxes, labels, scores, and sizes. Boxes are (N, 4)
    as x0, y0, x1, y1 in pixels of that image, and scores are (N,). Labels and sizes are ignored.

    A second-generation module has a method `inference`, which takes [{"image": the image (3, h, w)}] and returns a list
    of one object. The object's `image_size` is (h, w). Its `pred_boxes.tensor`, `scores`, and optional `pred_classes`
    have the same meaning as in detectron2's `Instances`. Before the search, the image is resized to a longer side of
    1200 pixels. If there are several classes, 0 is a face and 1 is a plate.

    These modules are exported without their final NMS, so this class merges overlapping boxes of faces and plates. It
    doesn't merge boxes of objects, because objects may contain other objects.
    """

    def __init__(self, path: Path, kind: Kind, score: float | None = None, device: str = "cpu") -> None:
        """Load the module from `path` onto `device`. Raises RuntimeError or ValueError if it can't be used.

        `score` is the minimum score. For the first generation, it defaults to 0.9 for faces and plates. For the second
        generation, it defaults to 0.67416 for faces and 0.74475 for plates. For objects, it always defaults to 0.5.
        """
        self.kind: Kind = kind
        self.name = path.name
        self._device = torch.device(device)
        self._module: Any = _load(path, self._device).eval()
        self._is_second = hasattr(self._module, "inference")
        default = (_SECOND_SCORES if self._is_second else _FIRST_SCORES)[kind]
        self.score = default if score is None else score

    def detect(self, image: Pixels) -> list[Detection]:
        """Find objects in `image`, (H, W, 3) uint8 RGB. Boxes are in pixels of the image, best score first.

        Raises ValueError if the module's output doesn't have the expected structure.
        """
        # With the optimizing executor, the first calls may compute different results than later calls.
        with torch.inference_mode(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            boxes, scores = self._second(image) if self._is_second else self._first(image)
        found = [
            Detection(self.kind, round(score, 4), box, None, self.name)
            for box, score in zip(boxes, scores, strict=True)
            if score >= self.score and all(map(math.isfinite, box))
        ]
        return by_score(found) if self.kind == "object" else merge(by_score(found))

    def _first(self, image: Pixels) -> tuple[list[Box], list[float]]:
        answer = self._module(self._bgr(image))
        expected = f"{self.name}: expected (boxes (N, 4), labels, scores (N,), sizes) from the TorchScript module"
        if not isinstance(answer, tuple | list) or len(answer) != 4:
            raise ValueError(f"{expected}, got {type(answer).__name__}")
        boxes, _, scores, _ = answer
        return _checked(boxes, scores, expected)

    def _second(self, image: Pixels) -> tuple[list[Box], list[float]]:
        height, width = image.shape[:2]
        shrunk = _fitted(image)
        answer = self._module.inference([{"image": self._bgr(shrunk)}], do_postprocess=False)
        expected = (
            f"{self.name}: expected one object with pred_boxes.tensor (N, 4), scores (N,) and perhaps pred_classes "
            "(N,) from the TorchScript module's inference"
        )
        if not isinstance(answer, tuple | list) or len(answer) != 1:
            raise ValueError(f"{expected}, got {type(answer).__name__}")
        # If a property would raise an error, the attribute of the same name with a leading underscore is None.
        boxes, scores, classes = (
            getattr(answer[0], f"_{name}", None) for name in ("pred_boxes", "scores", "pred_classes")
        )
        found, scores_of = _checked(getattr(boxes, "tensor", None), scores, expected)
        across, down = width / shrunk.shape[1], height / shrunk.shape[0]
        scaled = [(x0 * across, y0 * down, x1 * across, y1 * down) for x0, y0, x1, y1 in found]
        if not isinstance(classes, Tensor):
            return scaled, scores_of
        if classes.shape != (len(found),):
            raise ValueError(f"{expected}, got pred_classes {tuple(classes.shape)}")
        is_wanted = (classes == _SECOND_LABELS[self.kind]).tolist()
        return list(compress(scaled, is_wanted)), list(compress(scores_of, is_wanted))

    def _bgr(self, image: Pixels) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1))).to(self._device)


def _fitted(image: Pixels) -> Pixels:
    """Resize the image to the size that the second generation searches, with Pillow's bilinear filter."""
    height, width = image.shape[:2]
    scale = SECOND_SIDE / max(height, width)
    size = max(int(width * scale + 0.5), 1), max(int(height * scale + 0.5), 1)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR), np.uint8)


def _checked(boxes: object, scores: object, expected: str) -> tuple[list[Box], list[float]]:
    if not isinstance(boxes, Tensor) or not isinstance(scores, Tensor):
        raise ValueError(f"{expected}, got {type(boxes).__name__} and {type(scores).__name__}")
    if boxes.ndim != 2 or boxes.shape[1] != 4 or scores.shape != boxes.shape[:1]:
        raise ValueError(f"{expected}, got boxes {tuple(boxes.shape)} and scores {tuple(scores.shape)}")
    return [(x0, y0, x1, y1) for x0, y0, x1, y1 in boxes.double().cpu().tolist()], scores.double().cpu().tolist()
