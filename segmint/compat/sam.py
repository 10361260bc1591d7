"""SAM with the interface of `segment_anything`, which notebooks call with a batch of images and prompts."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segmint.infra.device import BF16_NEEDS_GPU
from segmint.model.sam import load as base
from segmint.model.sam.predictor import Embedding, Predictor
from segmint.model.sam.preprocess import PIXEL_MEAN, PIXEL_STD

_AT_ONCE = 8  # prompts per upscaling batch; each needs 4 MiB


class Sam(base.Sam):
    """SAM with the reference's attributes. Its submodules keep segmint's signatures."""

    mask_threshold = 0.0
    image_format = "RGB"

    _prepared: Predictor | None = None
    _state: tuple[Any, ...] = ()

    @classmethod
    def of(cls, sam: base.Sam) -> "Sam":
        """Return `sam` as an instance of this class that shares its weights. Raises TypeError if it is not a SAM."""
        if isinstance(sam, cls):
            return sam
        if not isinstance(sam, base.Sam):
            raise TypeError(
                f"the model is a {type(sam).__name__}: expected one of segmint.compat.sam_model_registry, or the "
                "result of segmint.load_sam"
            )
        made = cls(sam.image_encoder, sam.prompt_encoder, sam.mask_decoder)
        made.image_encoder.img_size = sam.image_size  # type: ignore[assignment]
        return made.train(sam.training)

    @property
    def pixel_mean(self) -> Tensor:
        """Per-channel RGB mean for normalizing images, (3, 1, 1)."""
        return torch.tensor(PIXEL_MEAN, device=self.device).view(-1, 1, 1)

    @property
    def pixel_std(self) -> Tensor:
        """Per-channel RGB standard deviation for normalizing images, (3, 1, 1)."""
        return torch.tensor(PIXEL_STD, device=self.device).view(-1, 1, 1)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the predictor, which contains this model."""
        return {key: value for key, value in self.__dict__.items() if key not in ("_prepared", "_state")}

    def predictor(self) -> Predictor:
        """Return segmint's predictor for this model, and rebuild it if weights have changed or moved since.

        Raises ValueError if the weights are bfloat16 on a CPU.
        """
        if self.device.type == "cpu" and self.dtype == torch.bfloat16:
            raise ValueError(BF16_NEEDS_GPU)
        weights = (*self.parameters(), *self.buffers())
        state = tuple((each.data_ptr(), None if each.is_inference() else each._version) for each in weights)
        if self._prepared is None or state != self._state:
            self._prepared, self._state = Predictor(self), state
        return self._prepared

    def forward(self, batched_input: Sequence[dict[str, Any]], multimask_output: bool) -> list[dict[str, Tensor]]:
        """Predict masks for several images, each with its own prompts.

        Each image is a dictionary. It contains `image` (3, H, W), resized by `ResizeLongestSide`, `original_size`, the
        (height, width) before resizing, and prompts in the resized frame: `point_coords` (B, N, 2) with `point_labels`
        (B, N), `boxes` (B, 4), and `mask_inputs` (B, 1, 256, 256). Returns `masks` (B, C, height, width) bool,
        `iou_predictions` (B, C), and `low_res_logits` (B, C, 256, 256) per image. Raises ValueError like
        `Predictor.predict`.
        """
        predictor = self.predictor()
        answers = []
        for record in batched_input:
            size = (int(record["original_size"][0]), int(record["original_size"][1]))
            features = predictor.embed_resized(record["image"].permute(1, 2, 0)).features
            input_size = (int(record["image"].shape[-2]), int(record["image"].shape[-1]))
            logits, ious = self.decode(
                features,
                input_size,
                record.get("point_coords"),
                record.get("point_labels"),
                record.get("boxes"),
                record.get("mask_inputs"),
                multimask_output,
            )
            masks = self.full_size(logits, input_size, size, logits=False)
            answers.append({"masks": masks, "iou_predictions": ious, "low_res_logits": logits})
        return answers

    def decode(
        self,
        features: Tensor,
        input_size: tuple[int, int],
        points: Tensor | None,
        labels: Tensor | None,
        boxes: Tensor | None,
        masks: Tensor | None,
        multimask: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return low-resolution logits (B, C, 256, 256) and predicted IoUs (B, C) for prompts in the resized frame.

        Without `boxes`, points with labels 2 and 3 are the top left and the bottom right corner of a prompt's box.
        """
        boxes = None if boxes is None else boxes.reshape(-1, 4)
        if points is not None and labels is not None and boxes is None and (labels > 1).any():
            points, labels, boxes = _without_corners(points, labels)
        given = points if points is not None else boxes
        if masks is not None and given is not None and len(masks) == 1:
            masks = masks.expand(len(given), -1, -1, -1)
        found = self.predictor().predict(
            Embedding(features, input_size, input_size),
            points,
            labels if points is not None else None,
            boxes,
            masks,
            multimask,
        )
        # Clone, because inference-mode tensors can't take part in training.
        return found.low_res_logits.clone(), found.predicted_iou.clone()

    def full_size(
        self, low_res: Tensor, input_size: tuple[int, int], original_size: tuple[int, int], logits: bool
    ) -> Tensor:
        """Return masks (B, C, height, width) in the original image's frame, as bool or, with `logits`, float32."""
        if not len(low_res):
            return low_res.new_zeros((*low_res.shape[:2], *original_size), dtype=None if logits else torch.bool)
        predictor, frame = self.predictor(), Embedding(low_res, input_size, original_size)
        parts = []
        for start in range(0, len(low_res), _AT_ONCE):
            part = predictor.upscale(low_res[start : start + _AT_ONCE], frame)
            parts.append(part if logits else part > self.mask_threshold)
        return torch.cat(parts)

    def preprocess(self, x: Tensor) -> Tensor:
        """Normalize images (..., 3, H, W) of 0 to 255, and pad them right and below to the encoder's square input."""
        x = (x - self.pixel_mean) / self.pixel_std
        height, width = x.shape[-2:]
        return F.pad(x, (0, self.image_size - width, 0, self.image_size - height))

    def postprocess_masks(self, masks: Tensor, input_size: Sequence[int], original_size: Sequence[int]) -> Tensor:
        """Upscale low-resolution logits (B, C, 256, 256) to the original image's frame, keeping their gradients."""
        square = F.interpolate(masks, (self.image_size, self.image_size), mode="bilinear", align_corners=False)
        inside = square[..., : input_size[0], : input_size[1]]
        return F.interpolate(inside, tuple(map(int, original_size)), mode="bilinear", align_corners=False)


def _without_corners(points: Tensor, labels: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Return the points (B, N, 2) and labels (B, N) without box corners, and the boxes (B, 4) of the corners."""
    corners = labels > 1
    if any(((labels == label).sum(1) != 1).any() for label in (2, 3)) or (corners.sum(1) != 2).any():
        raise ValueError("labels contain numbers over 1: expected one 2 and one 3 per prompt, the corners of its box")
    boxes = torch.cat([points[labels == 2], points[labels == 3]], dim=1)
    if corners.all():
        return None, None, boxes
    left = labels.shape[1] - 2
    return points[~corners].reshape(-1, left, 2), labels[~corners].reshape(-1, left), boxes
