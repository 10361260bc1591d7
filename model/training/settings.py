"""Training settings that a run records: the losses of a prediction, and the sampling of a mask's prompts.

docs/decisions/0019-losses-and-sampling.md explains which values come from the SAM paper, and which ones we chose.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

FocalNormalization = Literal["pixels", "foreground"]
IouSupervision = Literal["lowest", "all"]
Resolution = Literal[256, 512, 1024]
BoxNoise = Literal["normal", "uniform"]

PAUSES = 2
"""Number of iterations that don't add a point: one among the clicks, and one at the end (SAM paper, Appendix A)."""


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Settings of the losses. Raises ValueError with the key if a value is invalid.

    Attributes:
        focal_weight: weight of the focal loss (SAM paper: focal to dice 20:1).
        dice_weight: weight of the dice loss.
        iou_weight: weight of the squared error of the predicted IoU (SAM paper: 1).
        focal_alpha: weight of foreground pixels in the focal loss. Background pixels have the weight 1 - alpha. With
            None, pixels aren't weighted.
        focal_gamma: exponent that discounts well-predicted pixels. It must be 0 or at least 1, because between 0 and 1,
            the gradient of a saturated pixel isn't finite.
        focal_normalization: divisor of a mask's summed focal loss: the number of all pixels ("pixels") or of the
            target's pixels ("foreground").
        iou_supervision: predicted IoUs that contribute to the loss: only the IoU of the mask with the lowest loss
            ("lowest"), or the IoUs of all three masks ("all").
        resolution: side of the square in which losses, IoU, and clicks are computed: 256, 512, or 1024. For a larger
            square than 256, the decoder's 256 x 256 logits are interpolated.
    """

    focal_weight: float = 20.0
    dice_weight: float = 1.0
    iou_weight: float = 1.0
    focal_alpha: float | None = 0.25
    focal_gamma: float = 2.0
    focal_normalization: FocalNormalization = "pixels"
    iou_supervision: IouSupervision = "lowest"
    resolution: Resolution = 256

    def __post_init__(self) -> None:
        for name in ("focal_weight", "dice_weight", "iou_weight"):
            value = getattr(self, name)
            expect(name, value, math.isfinite(value) and value >= 0, "a number of 0 or more")
        alpha, gamma = self.focal_alpha, self.focal_gamma
        expect("focal_gamma", gamma, gamma == 0 or (math.isfinite(gamma) and gamma >= 1), "0, or 1 or more")
        expect("focal_alpha", alpha, alpha is None or 0 <= alpha <= 1, "a number from 0 to 1, or None")
        for name, kind in (
            ("focal_normalization", FocalNormalization),
            ("iou_supervision", IouSupervision),
            ("resolution", Resolution),
        ):
            value, known = getattr(self, name), get_args(kind)
            expect(name, value, value in known, "one of " + ", ".join(map(repr, known)))


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """Settings for drawing a mask's prompts (SAM paper, Appendix A). Raises ValueError like `LossSettings`.

    Attributes:
        clicks: number of points to draw in the error region, one per iteration.
        box_share: fraction of masks whose first prompt is a box. For all others, it's a point.
        box_noise: size of the noise on a box's coordinates, as a fraction of the box's side.
        box_noise_limit: maximum distance by which noise moves a coordinate, in pixels of the 1024 x 1024 input.
        box_noise_kind: "normal" or "uniform". With "normal", `box_noise` is the standard deviation, and the limit cuts
            off larger noise. With "uniform", the noise is uniform up to `box_noise` of the side or up to the limit,
            whichever is smaller.
    """

    clicks: int = 8
    box_share: float = 0.5
    box_noise: float = 0.1
    box_noise_limit: float = 20.0
    box_noise_kind: BoxNoise = "normal"

    def __post_init__(self) -> None:
        expect("clicks", self.clicks, self.clicks >= 1, "1 or more")
        expect("box_share", self.box_share, 0 <= self.box_share <= 1, "a number from 0 to 1")
        for name in ("box_noise", "box_noise_limit"):
            value = getattr(self, name)
            expect(name, value, math.isfinite(value) and value >= 0, "a number of 0 or more")
        kind = self.box_noise_kind
        expect("box_noise_kind", kind, kind in get_args(BoxNoise), "normal or uniform")

    @property
    def iterations(self) -> int:
        """Number of predictions per mask and step: the first prompt, one per click, and two without a new point."""
        return 1 + self.clicks + PAUSES


def expect(name: str, value: object, holds: bool, expected: str) -> None:
    """Raise ValueError with the key and its value unless `holds` is true."""
    if not holds:
        raise ValueError(f"{name} is {value!r}: expected {expected}")
