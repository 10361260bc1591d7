"""What the Segment Anything paper (arXiv 2304.02643) reports of SA-1B.

Only numbers that the paper states are here; it shows more as curves without numbers.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class PaperMasksPerImage:
    """Masks per image: the mean, and the least and the most of regions and income levels."""

    mean: int
    by_group: tuple[int, int]


@dataclass(frozen=True)
class PaperCleanup:
    """Shares of masks that clean-up changed, about (Appendix B)."""

    islands_share: float
    holes_share: float


@dataclass(frozen=True)
class PaperGroup:
    """A region or an income level (table 1).

    Its countries, images and masks in SA-1B, rounded as the paper has them, and its shares of the images of SA-1B, COCO
    and Open Images.
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
class PaperThresholds:
    """What a mask must reach (Appendix B)."""

    predicted_iou: float
    stability_score: float
    min_area_px: int
    max_area_share: float


@dataclass(frozen=True)
class PaperQuality:
    """Masks before and after correction by professionals (section 5): shares of pairs over two IoUs."""

    images: int
    over_90_iou: float
    over_75_iou: float
    between_annotators: tuple[float, float]


@dataclass(frozen=True)
class PaperRatings:
    """People's ratings of single masks from 1 to 10 (section 7.1, appendix E).

    `means` are the least and the most of seven datasets' means, of masks that SAM made for one point; `deviation` is
    the mean standard deviation of the ratings of five raters, `seconds` the mean time of a rating.
    """

    means: tuple[int, int]
    deviation: float
    seconds: int


@dataclass(frozen=True)
class PaperDataset:
    """How many images and masks a dataset has (the legend of figure 6)."""

    name: str
    images: int
    masks: int


@dataclass(frozen=True)
class Paper:
    """The paper's figures; shares are 0 to 1."""

    name: str
    images: int
    masks: int
    masks_per_image: PaperMasksPerImage
    cleanup: PaperCleanup
    geography: PaperGeography
    thresholds: PaperThresholds
    released_short_side: int
    quality: PaperQuality
    ratings: PaperRatings
    datasets: tuple[PaperDataset, ...]


PAPER = Paper(
    name="SA-1B",
    images=11_185_362,
    masks=1_100_000_000,  # of the data engine; 99.1 % were made automatically, and SA-1B holds only those
    masks_per_image=PaperMasksPerImage(mean=100, by_group=(94, 108)),
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
    thresholds=PaperThresholds(predicted_iou=0.88, stability_score=0.95, min_area_px=100, max_area_share=0.95),
    released_short_side=1500,
    quality=PaperQuality(images=500, over_90_iou=0.94, over_75_iou=0.97, between_annotators=(0.85, 0.91)),
    ratings=PaperRatings(means=(7, 9), deviation=0.83, seconds=90),
    datasets=(
        PaperDataset("SA-1B", 11_000_000, 1_100_000_000),
        PaperDataset("Open Images", 1_000_000, 2_700_000),
        PaperDataset("LVIS v1", 120_000, 1_500_000),
        PaperDataset("COCO", 123_000, 900_000),
        PaperDataset("ADE20K", 28_000, 700_000),
    ),
)
"""The paper's figures."""


@dataclass(frozen=True)
class MasksBin:
    """A bin of masks per image, both ends included; without `high` it has no upper end."""

    label: str
    low: int
    high: int | None

    def holds(self, masks: int) -> bool:
        """Whether an image with so many masks belongs in this bin."""
        return masks >= self.low and (self.high is None or masks <= self.high)


MASKS_PER_IMAGE = (
    MasksBin("<=10", 0, 10),
    MasksBin("11-50", 11, 50),
    MasksBin("51-100", 51, 100),
    MasksBin("101-200", 101, 200),
    MasksBin(">200", 201, None),
)
"""The paper's bins of masks per image (figure 6), first to last."""
