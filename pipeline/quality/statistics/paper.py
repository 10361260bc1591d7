"""Numbers that the Segment Anything paper (arXiv 2304.02643) states for SA-1B, without values read off its curves."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PaperMasksPerImage:
    """Masks per image: the minimum and maximum over regions and income levels."""

    by_group: tuple[int, int]


@dataclass(frozen=True)
class PaperCleanup:
    """Approximate shares of masks that cleanup changed (Appendix B)."""

    islands_share: float
    holes_share: float


@dataclass(frozen=True)
class PaperGroup:
    """Region or income level, as a row of table 1.

    The row contains the group's numbers of countries, of images in SA-1B, and of masks in SA-1B, rounded as in the
    paper. It also contains the group's shares of the images in SA-1B, COCO, and Open Images.
    """

    name: str
    countries: int
    images: int
    masks: int
    share: float
    coco_share: float
    open_images_share: float


@dataclass(frozen=True)
class PaperGeography:
    """Images by region and by income level (table 1)."""

    regions: tuple[PaperGroup, ...]
    income: tuple[PaperGroup, ...]


@dataclass(frozen=True)
class PaperQuality:
    """Shares of masks whose IoU with their professionally corrected version exceeds two thresholds (section 5)."""

    over_90_iou: float
    over_75_iou: float
    between_annotators: tuple[float, float]


@dataclass(frozen=True)
class PaperRatings:
    """Human ratings of single masks from 1 to 10 (section 7.1, appendix E).

    `means` contains the lowest and the highest of seven datasets' means, for masks that SAM predicted from one point.
    `deviation` is the mean standard deviation of five raters' ratings.
    """

    means: tuple[int, int]
    deviation: float


@dataclass(frozen=True)
class PaperDataset:
    """Number of images and number of masks in a dataset (legend of figure 6)."""

    name: str
    images: int
    masks: int


@dataclass(frozen=True)
class Paper:
    """Figures of the paper. Shares are from 0 to 1."""

    name: str
    masks_per_image: PaperMasksPerImage
    cleanup: PaperCleanup
    geography: PaperGeography
    quality: PaperQuality
    ratings: PaperRatings
    datasets: tuple[PaperDataset, ...]


PAPER = Paper(
    name="SA-1B",
    masks_per_image=PaperMasksPerImage(by_group=(94, 108)),
    cleanup=PaperCleanup(islands_share=0.04, holes_share=0.04),
    geography=PaperGeography(
        regions=(
            PaperGroup("Africa", 54, 300_000, 28_000_000, 0.028, 0.030, 0.017),
            PaperGroup("Asia & Oceania", 70, 3_900_000, 423_000_000, 0.362, 0.114, 0.143),
            PaperGroup("Europe", 47, 5_400_000, 540_000_000, 0.498, 0.342, 0.362),
            PaperGroup("Latin America & Caribbean", 42, 380_000, 36_000_000, 0.035, 0.031, 0.050),
            PaperGroup("North America", 4, 830_000, 80_000_000, 0.077, 0.483, 0.428),
        ),
        income=(
            PaperGroup("high", 81, 5_800_000, 598_000_000, 0.540, 0.891, 0.875),
            PaperGroup("middle", 108, 4_900_000, 499_000_000, 0.450, 0.105, 0.120),
            PaperGroup("low", 28, 100_000, 9_400_000, 0.009, 0.004, 0.005),
        ),
    ),
    quality=PaperQuality(over_90_iou=0.94, over_75_iou=0.97, between_annotators=(0.85, 0.91)),
    ratings=PaperRatings(means=(7, 9), deviation=0.83),
    datasets=(
        PaperDataset("SA-1B", 11_000_000, 1_100_000_000),
        PaperDataset("Open Images", 1_000_000, 2_700_000),
        PaperDataset("LVIS v1", 120_000, 1_500_000),
        PaperDataset("COCO", 123_000, 900_000),
        PaperDataset("ADE20K", 28_000, 700_000),
    ),
)
"""Figures of the Segment Anything paper."""


@dataclass(frozen=True)
class MasksBin:
    """Bin of masks per image, with inclusive bounds. If `high` is None, the bin has no upper bound."""

    label: str
    low: int
    high: int | None

    def holds(self, masks: int) -> bool:
        """Return whether an image with `masks` masks belongs in this bin."""
        return masks >= self.low and (self.high is None or masks <= self.high)


MASKS_PER_IMAGE = (
    MasksBin("<=10", 0, 10),
    MasksBin("11-50", 11, 50),
    MasksBin("51-100", 51, 100),
    MasksBin("101-200", 101, 200),
    MasksBin(">200", 201, None),
)
"""Bins of masks per image in the paper (figure 6), in ascending order."""
