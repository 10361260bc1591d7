"""Sizes of a model's input, embedding, and low-resolution masks, and the placement of images in the input."""

from dataclasses import dataclass
from typing import Literal

Placement = Literal["padded", "stretched"]
"""Placement of an image in the square input, which also determines how masks are mapped back to the frame.

- `padded` (SAM): The longer side is resized to the input's side, and the rest is padding on the right or at the bottom.
  Masks are interpolated to the input, the padding is removed, and then they are interpolated to the frame.
- `stretched` (SAM 2): Both sides are resized to the input's side. Masks are interpolated to the frame in one step.

Every interpolation of masks is bilinear with `align_corners=False`.
"""


@dataclass(frozen=True)
class Geometry:
    """Geometry of a model. Docstrings in segmint give shapes for `SAM1`.

    Attributes:
        image_size: side of the image encoder's square input in pixels (1024), a multiple of `patch_size`.
        patch_size: side in pixels of the square that each position of the image embedding represents (16).
        placement: see `Placement`.

    Raises ValueError if `image_size` is not a multiple of `patch_size`.
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
        """Side of low-resolution masks (256): the decoder doubles the embedding's resolution twice."""
        return 4 * self.embedding_size

    def mask_axis(self, filled: int, pixels: int) -> tuple[int, int, int, int]:
        """Return the steps from low-resolution masks to the frame along one axis, as arguments of `interpolation`.

        `filled` and `pixels` are the image's sides along the axis, in the input and in the frame.
        """
        if self.placement == "stretched":
            # Interpolation to the same size doesn't change anything, so only one step remains.
            return self.low_res_size, pixels, pixels, pixels
        return self.low_res_size, self.image_size, filled, pixels

    def expect_padded(self, user: str) -> None:
        """Raise ValueError, which names the `user`, unless the placement is `padded`."""
        if self.placement != "padded":
            raise ValueError(f"{user} supports models with padded input, but this model's input is {self.placement}")


SAM1 = Geometry()
"""Geometry of SAM and MobileSAM."""

SAM2 = Geometry(placement="stretched")
"""Geometry of SAM 2."""
