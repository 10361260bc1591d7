"""Sizes of a model's input, embedding, and low-resolution masks, and the placement of images in the input."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from segmint.infra.arrays import Size

Placement = Literal["padded", "stretched"]
"""Placement of an image in the square input. It also determines how masks are mapped back to the frame.

- `padded` (SAM): The longer side is resized to the input's side, and the rest is padding on the right or at the bottom.
  Masks are interpolated to the input, the padding is removed, and the result is interpolated to the frame.
- `stretched` (SAM 2): Both sides are resized to the input's side. Masks are interpolated to the frame in one step.

All interpolations of masks are bilinear with `align_corners=False`.
"""


@dataclass(frozen=True)
class Geometry:
    """Geometry of a model. The shapes in segmint's docstrings are for `SAM1`.

    Attributes:
        image_size: side of the image encoder's square input in pixels (1024). It must be a multiple of `patch_size`.
        patch_size: side in pixels of the square that each position of the image embedding represents (16).
        placement: see `Placement`.

    Raises ValueError if `image_size` isn't a multiple of `patch_size`.
    """

    image_size: int = 1024
    patch_size: int = 16
    placement: Placement = "padded"

    def __post_init__(self) -> None:
        if self.image_size < 1 or self.image_size % self.patch_size:
            raise ValueError(f"image_size is {self.image_size}: expected a multiple of patch_size, {self.patch_size}")

    @property
    def embedding_size(self) -> int:
        """Side of the image embedding in positions (64)."""
        return self.image_size // self.patch_size

    @property
    def low_res_size(self) -> int:
        """Side of low-resolution masks (256). The decoder doubles the resolution of the embedding twice."""
        return 4 * self.embedding_size

    def mask_axis(self, filled: int, pixels: int) -> tuple[int, int, int, int]:
        """Return the arguments of `interpolation` that map low-resolution masks to the frame along one axis.

        `filled` and `pixels` are the image's side along this axis, in the input and in the frame.
        """
        if self.placement == "stretched":
            # There is only one step, because interpolating to the same size doesn't change anything.
            return self.low_res_size, pixels, pixels, pixels
        return self.low_res_size, self.image_size, filled, pixels

    def mask_axes(self, filled: Size, pixels: Size) -> Iterator[tuple[int, int, int, int]]:
        """Return `mask_axis` of the rows and of the columns."""
        return map(self.mask_axis, filled, pixels)

    def expect_padded(self, user: str) -> None:
        """Raise ValueError unless the placement is `padded`. The message names the `user`."""
        if self.placement != "padded":
            raise ValueError(f"{user} supports models with padded input, but this model's input is {self.placement}")


SAM1 = Geometry()
"""Geometry of SAM and MobileSAM."""

SAM2 = Geometry(placement="stretched")
"""Geometry of SAM 2."""
