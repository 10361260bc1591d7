"""Detectors delivered as TorchScript, with the interface of EgoBlur's first generation.

EgoBlur: Raina et al. 2023, arXiv 2308.13093.
"""

import math
from pathlib import Path

import numpy as np
import torch

from segmint.model.detectors.detection import FILE_SCORE, Detection, Kind, Pixels, by_score, merge


class TorchScriptDetector:
    """A TorchScript module: one BGR image (3, H, W) uint8 in; boxes, labels, scores and sizes out.

    Boxes are (N, 4) x0, y0, x1, y1 in pixels of that image, scores (N,); labels and sizes are not read. Overlapping
    boxes are merged here, because such modules are exported without their final NMS.
    """

    def __init__(self, path: Path, kind: Kind, score: float = FILE_SCORE, device: str = "cpu") -> None:
        """Load the module from `path` onto `device`; raises RuntimeError or ValueError if it is not one."""
        self.kind: Kind = kind
        self.name = path.name
        self.score = score
        self._device = torch.device(device)
        self._module = torch.jit.load(path, map_location=self._device).eval()  # type: ignore[no-untyped-call]

    def detect(self, image: Pixels) -> list[Detection]:
        """Find objects in `image`, (H, W, 3) uint8 RGB; boxes in its pixels, best score first.

        Raises ValueError when the module's output does not have the expected form.
        """
        bgr = torch.from_numpy(np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1)))
        # The optimizing executor may compute the first calls differently from later ones.
        with torch.inference_mode(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            answer = self._module(bgr.to(self._device))
        boxes, scores = self._boxes_and_scores(answer)
        found = [
            Detection(self.kind, round(score, 4), (x0, y0, x1, y1), None, self.name)
            for (x0, y0, x1, y1), score in zip(boxes, scores, strict=True)
            if score >= self.score and all(map(math.isfinite, (x0, y0, x1, y1)))
        ]
        return merge(by_score(found))

    def _boxes_and_scores(self, answer: object) -> tuple[list[list[float]], list[float]]:
        expected = f"{self.name}: expected (boxes (N, 4), labels, scores (N,), sizes) from the TorchScript module"
        if not isinstance(answer, tuple | list) or len(answer) != 4:
            raise ValueError(f"{expected}, got {type(answer).__name__}")
        boxes, _, scores, _ = answer
        if not isinstance(boxes, torch.Tensor) or not isinstance(scores, torch.Tensor):
            raise ValueError(f"{expected}, got {type(boxes).__name__} and {type(scores).__name__}")
        if boxes.ndim != 2 or boxes.shape[1] != 4 or scores.shape != boxes.shape[:1]:
            raise ValueError(f"{expected}, got boxes {tuple(boxes.shape)} and scores {tuple(scores.shape)}")
        return boxes.double().cpu().tolist(), scores.double().cpu().tolist()
