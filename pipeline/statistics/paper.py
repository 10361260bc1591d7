"""What the Segment Anything paper (arXiv 2304.02643) reports of SA-1B, in the shapes of docs/statistics.md.

Only numbers that the paper states are here; it has more as curves without numbers.
"""

from typing import Any

PAPER: dict[str, Any] = {
    "name": "SA-1B",
    "images": 11_185_362,
    "masks": 1_100_000_000,  # of the data engine; 99.1 % were made automatically, and SA-1B holds those alone
    "masks_per_image": {"mean": 100, "by_group": [94, 108]},  # the least and the most of regions and income levels
    "cleanup": {"islands_share": 0.04, "holes_share": 0.04},  # of masks that clean-up changed, about (Appendix B)
    "geography": {
        "regions": [
            {"name": "Africa", "share": 0.028},
            {"name": "Asia & Oceania", "share": 0.362},
            {"name": "Europe", "share": 0.498},
            {"name": "Latin America & Caribbean", "share": 0.035},
            {"name": "North America", "share": 0.077},
        ],
        "income": [
            {"name": "high", "share": 0.540},
            {"name": "middle", "share": 0.450},
            {"name": "low", "share": 0.009},
        ],
    },
    "thresholds": {
        "predicted_iou": 0.88,
        "stability_score": 0.95,
        "min_area_px": 100,
        "max_area_share": 0.95,
    },  # Appendix B
    "released_short_side": 1500,
    "quality": {
        "images": 500,
        "over_90_iou": 0.94,
        "over_75_iou": 0.97,
        "between_annotators": [0.85, 0.91],
    },  # masks before and after correction by professionals (section 5)
    "datasets": [
        {"name": "SA-1B", "images": 11_000_000, "masks": 1_100_000_000},
        {"name": "Open Images", "images": 1_000_000, "masks": 2_700_000},
        {"name": "LVIS v1", "images": 120_000, "masks": 1_500_000},
        {"name": "COCO", "images": 123_000, "masks": 900_000},
        {"name": "ADE20K", "images": 28_000, "masks": 700_000},
    ],
}
"""The paper's figures; shares are of 1."""
