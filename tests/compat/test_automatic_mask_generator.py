"""The three forms of masks, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco
from segment_anything import SamAutomaticMaskGenerator as ReferenceGenerator
from segment_anything.utils.amg import build_point_grid, coco_encode_rle, rle_to_mask

from benchmarks.masks.reference import reference_sam
from segmint.compat import SamAutomaticMaskGenerator, sam_model_registry
from segmint.compat.automatic_mask_generator import FORMS
from segmint.model.automatic.rle import encode
from segmint.model.automatic.settings import MaskSettings
from segmint.model.sam.load import build_sam, load_sam
from tests.support.embedded_once import embed_once

GRID = np.array([[0.48, 0.15], [0.1, 0.9]])  # a cup, and beside it
NO_GRID = {"points_per_side": None}


@pytest.mark.parametrize("first", [False, True])
def test_the_forms_of_a_mask_are_those_of_the_reference(coffee: np.ndarray, first: bool) -> None:
    mask = coffee[:70, :90, 0] > 100
    mask[0, 0] = first
    rle = encode(mask)
    binary, runs, counts = (FORMS[name](rle) for name in ("binary_mask", "uncompressed_rle", "coco_rle"))
    assert binary.dtype == bool
    assert np.array_equal(binary, mask)
    assert np.array_equal(rle_to_mask(runs), mask)
    assert counts == coco_encode_rle(runs)
    assert np.array_equal(coco.decode(counts), mask)


def test_settings_are_the_official_profiles_with_the_references_defaults() -> None:
    sam = build_sam("mobile_sam")
    assert SamAutomaticMaskGenerator(sam).settings == MaskSettings.official()
    cropped = SamAutomaticMaskGenerator(sam, 16, crop_n_layers=1, output_mode="coco_rle").settings
    assert cropped == MaskSettings.official(
        points_per_side=16,
        crop_n_layers=1,
        crop_n_points_downscale_factor=1,  # the reference's, not segmint's
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (NO_GRID, "expected either points_per_side or point_grids"),
        ({"point_grids": [np.zeros((1, 2))]}, "expected either points_per_side or point_grids"),
        ({**NO_GRID, "point_grids": [GRID], "crop_n_layers": 1}, "has 1 grids: expected 2, one per layer"),
        ({**NO_GRID, "point_grids": [GRID + 1]}, r"of shape \(2, 2\): expected \(P, 2\), as x and y from 0 to 1"),
        ({**NO_GRID, "point_grids": [GRID[0]]}, r"of shape \(2,\): expected \(P, 2\)"),
        ({"output_mode": "png"}, "output_mode is 'png': expected one of binary_mask, uncompressed_rle, coco_rle"),
        ({"points_per_side": 0}, "masks.points_per_side is 0"),
    ],
)
def test_what_is_not_there_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamAutomaticMaskGenerator(build_sam("mobile_sam"), **keys)


@pytest.mark.usefixtures("embedded_once")
def test_an_attribute_that_is_set_later_holds(coffee: np.ndarray, mobile_sam_path: Path) -> None:
    generator = SamAutomaticMaskGenerator(sam_model_registry["vit_t"](mobile_sam_path), points_per_side=3)
    assert generator.generate(coffee)
    generator.pred_iou_thresh = 1.5
    assert generator.settings == MaskSettings.official(
        points_per_side=3, pred_iou_thresh=1.5, crop_n_points_downscale_factor=1
    )
    assert generator.generate(coffee) == []


@pytest.mark.long
@pytest.mark.usefixtures("embedded_once")
def test_any_points_prompt_the_image_and_its_crops(coffee: np.ndarray, mobile_sam_path: Path) -> None:
    sam = sam_model_registry["vit_t"](mobile_sam_path)
    encoder = embed_once(sam.predictor())
    keys = {"points_per_side": None, "stability_score_thresh": 0.8}
    model: Any = reference_sam(load_sam(mobile_sam_path))
    model.image_encoder.encoder = encoder
    reference = ReferenceGenerator(model, point_grids=[GRID], **keys)
    expected = reference.generate(coffee)
    found = SamAutomaticMaskGenerator(sam, point_grids=[GRID], **keys).generate(coffee)
    assert len(found) == len(expected) >= 2
    for mine, other in zip(found, expected, strict=True):
        assert mine["point_coords"] == other["point_coords"]
        assert (mine["segmentation"] != other["segmentation"]).mean() < 1e-4
    even = SamAutomaticMaskGenerator(sam, 2, stability_score_thresh=0.8, crop_n_layers=1)
    boxes = [each["bbox"] for each in even.generate(coffee)]
    even.points_per_side, even.point_grids = None, [build_point_grid(2)] * 2
    assert [each["bbox"] for each in even.generate(coffee)] == boxes


def test_something_else_than_a_model_is_refused() -> None:
    with pytest.raises(TypeError, match=r"the model is a str: expected one of segmint\.compat\.sam_model_registry"):
        SamAutomaticMaskGenerator("vit_b")  # type: ignore[arg-type]
