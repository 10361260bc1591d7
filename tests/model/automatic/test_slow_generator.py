"""The generator with all its tricks against the plain recipe, which has none."""

import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from segmint.model.automatic.generator import MaskGenerator
from segmint.model.automatic.rle import MaskRecord
from segmint.model.automatic.settings import MaskSettings
from segmint.model.sam.load import load_sam
from segmint.model.sam.predictor import Predictor
from tests.conftest import read_rgb
from tests.support.parity import compare
from tests.support.photographs import motorcycle
from tests.support.slow_generator import generate_slowly

pytestmark = pytest.mark.usefixtures("embedded_once")


@pytest.fixture(scope="module")
def predictor(mobile_sam_path: Path) -> Predictor:
    return Predictor(load_sam(mobile_sam_path))


def photographs(name: str) -> tuple[np.ndarray, np.ndarray]:
    """One of those that scikit-image and scikit-learn ship, as released and its original."""
    if name == "motorcycle":
        return motorcycle()
    from sklearn.datasets import load_sample_image  # takes a second, in each process that collects these tests

    large = np.ascontiguousarray(load_sample_image(f"{name}.jpg"))
    # Scaled down by other factors along x and y, so that a mix-up of axes or frames shows.
    return cv2.resize(large, (420, 290), interpolation=cv2.INTER_AREA), large


@pytest.mark.parametrize(
    ("profile", "name", "points"),
    [pytest.param("official", "china", 4, marks=pytest.mark.long), ("sa1b", "motorcycle", 5)],
)
def test_every_record_is_the_plain_recipes(predictor: Predictor, profile: str, name: str, points: int) -> None:
    settings = MaskSettings.of(profile, points_per_side=points, crop_n_layers=1, min_mask_region_area=100)
    image, large = photographs(name)
    original = large if profile == "sa1b" else None

    slow = generate_slowly(predictor, settings, image, original)
    fast = MaskGenerator(predictor, settings).generate(image, original)

    print(f"{len(slow.records)} masks; {slow.funnel}")
    assert len(slow.records) >= 10
    assert slow.funnel.cleaned > 0
    assert slow.funnel.holes_filled != slow.funnel.islands_removed
    assert sum(record.crop_box != (0, 0, 420, 290) for record in slow.records) >= 3
    assert fast.funnel == slow.funnel
    for ours, plain in zip(fast.records, slow.records, strict=True):
        assert ours.segmentation == plain.segmentation
        assert (ours.area, ours.bbox, ours.crop_box) == (plain.area, plain.bbox, plain.crop_box)
        assert ours.point_coords == plain.point_coords
        assert ours.predicted_iou == pytest.approx(plain.predicted_iou, abs=1e-4)
        assert ours.stability_score == pytest.approx(plain.stability_score, abs=1e-4)


def annotation(record: MaskRecord) -> dict[str, Any]:
    """The record as the reference generator writes it."""
    return {
        "segmentation": {"size": list(record.segmentation.size), "counts": record.segmentation.counts},
        "bbox": list(record.bbox),
        "predicted_iou": record.predicted_iou,
        "stability_score": record.stability_score,
        "crop_box": list(record.crop_box),
        "point_coords": [list(record.point_coords)],
    }


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_papers_full_recipe_on_a_released_photograph(predictor: Predictor, photos: Path) -> None:
    """21 encodes and 3,072 prompts on 1500x2250 pixels, the size of SA-1B's photographs.

    None of the photographs has that size: the largest, of 2171x3000, is cut to its middle 2000 rows and scaled down.
    """
    largest = read_rgb(photos / "solvay_1927.jpg")
    top = (largest.shape[0] - 2000) // 2
    image = cv2.resize(largest[top : top + 2000], (2250, 1500), interpolation=cv2.INTER_AREA)
    settings = MaskSettings.sa1b()

    started = time.monotonic()
    fast = MaskGenerator(predictor, settings).generate(image)
    between = time.monotonic()
    slow = generate_slowly(predictor, settings, image)
    ended = time.monotonic()

    compared = compare(fast.records, [annotation(record) for record in slow.records])
    identical = sum(iou == 1.0 for _, _, iou in compared.pairs)
    print(
        f"fast {between - started:.0f} s, {len(fast.records)} masks; plain {ended - between:.0f} s, "
        f"{len(slow.records)} masks; {identical} identical, least IoU {compared.least_iou:.6f}, differences: "
        f"boxes {compared.box_difference:g} px, predicted IoU {compared.iou_difference:.1e}, "
        f"stability {compared.stability_difference:.1e}\nfast  {fast.funnel}\nplain {slow.funnel}"
    )
    for record in (*(fast.records[n] for n in compared.extra), *(slow.records[n] for n in compared.missing)):
        print(f"unmatched: {record.predicted_iou:.6f} {record.stability_score:.6f} {record.point_coords}")
    assert slow.funnel.predicted == 3 * 3072
    assert len(fast.records) == len(slow.records) >= 100
    assert len(compared.pairs) == len(slow.records)
    assert compared.same_order
    assert compared.least_iou >= 0.999
    assert compared.box_difference <= 1
    assert max(compared.iou_difference, compared.stability_difference) <= 1e-4
