"""Stateful predictor with the interface of `segment_anything`: set an image, then predict masks for prompts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segmint.compat.sam import Sam
from segmint.compat.utils.transforms import ResizeLongestSide
from segmint.infra.arrays import Floats32
from segmint.model.sam import load as base
from segmint.pipeline.masks.results import Image, pixels_of


class SamPredictor:
    """Predictor of masks for prompts on the current image.

    Attributes:
        model: the SAM.
        transform: scales images and coordinates to the encoder's frame.
        is_image_set: True after `set_image` or `set_torch_image`.
        features: the image embedding, (1, 256, 64, 64), or None if no image is set.
        original_size: (height, width) of the image in pixels.
        input_size: (height, width) after resizing to the encoder's frame.
    """

    is_image_set: bool
    features: Tensor | None
    original_size: tuple[int, int] | None
    input_size: tuple[int, int] | None

    def __init__(self, sam_model: base.Sam) -> None:
        self.model = Sam.of(sam_model)
        self.transform = ResizeLongestSide(self.model.image_size)
        self.reset_image()

    @property
    def device(self) -> torch.device:
        """Device of the model's weights."""
        return self.model.device

    def set_image(self, image: Image, image_format: str = "RGB") -> None:
        """Encode an image, (height, width, 3) uint8 or anything that `segmint.Predictor` accepts.

        `image_format` is the channel order of an array, RGB or BGR; it is ignored for paths and Pillow images. Raises
        ValueError for any other format.
        """
        if image_format not in ("RGB", "BGR"):
            raise ValueError(f"image_format is {image_format!r}: expected 'RGB' or 'BGR'")
        pixels = pixels_of(image)
        if image_format == "BGR" and hasattr(image, "shape"):
            pixels = pixels[..., ::-1]
        resized = torch.from_numpy(self.transform.apply_image(pixels)).permute(2, 0, 1)[None]
        self.set_torch_image(resized, pixels.shape[:2])

    def set_torch_image(self, transformed_image: Tensor, original_image_size: Sequence[int]) -> None:
        """Encode an image (1, 3, H, W) with values 0 to 255, already resized so that its longer side is 1024.

        `original_image_size` is the (height, width) before resizing. Raises ValueError for any other shape.
        """
        shape = tuple(transformed_image.shape)
        if len(shape) != 4 or shape[:2] != (1, 3) or max(shape[2:]) != self.model.image_size:
            raise ValueError(
                f"the image has the shape {shape}: expected (1, 3, H, W) with a longer side of {self.model.image_size}"
            )
        self.reset_image()
        embedding = self.model.predictor().embed_resized(transformed_image[0].permute(1, 2, 0))
        self.original_size = (int(original_image_size[0]), int(original_image_size[1]))
        self.input_size = embedding.input_size
        self.features = embedding.features.clone()
        self.is_image_set = True

    def predict(
        self,
        point_coords: NDArray[Any] | None = None,
        point_labels: NDArray[Any] | None = None,
        box: NDArray[Any] | None = None,
        mask_input: NDArray[Any] | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[NDArray[Any], Floats32, Floats32]:
        """Predict C masks for one prompt: three with `multimask_output`, otherwise one.

        `point_coords` (N, 2) as (x, y) and `box` (4,) as (x0, y0, x1, y1) are in pixels of the image. `point_labels`
        (N,) are 1 for foreground, 0 for background. `mask_input` (1, 256, 256) are logits of an earlier prediction, or
        a binary mask as in `segmint.Predictor.predict`.
        Returns masks (C, height, width) bool (float32 logits with `return_logits`), predicted IoUs (C,), and
        low-resolution logits (C, 256, 256). Raises RuntimeError if no image is set, and ValueError if the prompts are
        invalid or missing.
        """
        size = self._sizes()[1]
        points = labels = boxes = masks = None
        if point_coords is not None:
            if point_labels is None:
                raise ValueError("point_coords without point_labels: expected (N,), 1 or 0 for each point")
            points = self._tensor(self.transform.apply_coords(point_coords, size))[None]
            labels = self._tensor(point_labels)[None]
        if box is not None:
            boxes = self._tensor(self.transform.apply_boxes(box, size))
        if mask_input is not None:
            masks = torch.as_tensor(np.asarray(mask_input), device=self.device)[None]  # keep the type of a binary mask
        found = self.predict_torch(points, labels, boxes, masks, multimask_output, return_logits)
        drawn, ious, logits = (part[0].cpu().numpy() for part in found)
        return drawn, ious, logits

    def predict_torch(
        self,
        point_coords: Tensor | None,
        point_labels: Tensor | None,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Predict C masks for each of B prompts, whose coordinates `transform` has scaled to the encoder's frame.

        Takes `point_coords` (B, N, 2) with `point_labels` (B, N), `boxes` (B, 4), and `mask_input` (B, 1, 256, 256).
        Returns masks (B, C, height, width), predicted IoUs (B, C), and low-resolution logits (B, C, 256, 256). Raises
        the same errors as `predict`.
        """
        input_size, original_size = self._sizes()
        low_res, ious = self.model.decode(
            self.get_image_embedding(), input_size, point_coords, point_labels, boxes, mask_input, multimask_output
        )
        return self.model.full_size(low_res, input_size, original_size, return_logits), ious, low_res

    def get_image_embedding(self) -> Tensor:
        """Return the embedding of the current image, (1, 256, 64, 64). Raises RuntimeError if no image is set."""
        self._sizes()
        assert self.features is not None
        return self.features

    def reset_image(self) -> None:
        """Discard the current image and its embedding."""
        self.is_image_set = False
        self.features = None
        self.original_size = None
        self.input_size = None

    def _sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the (height, width) of the encoder's input and of the original image."""
        if not self.is_image_set or self.input_size is None or self.original_size is None:
            raise RuntimeError("no image is set. Call set_image first.")
        return self.input_size, self.original_size

    def _tensor(self, value: NDArray[Any]) -> Tensor:
        return torch.as_tensor(np.asarray(value), dtype=torch.float32, device=self.device)
