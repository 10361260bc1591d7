"""The full 32x32 grid against recorded results of the reference generator, on real photographs."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segmint.model.automatic.generator import MaskGenerator
from segmint.model.automatic.settings import MaskSettings
from segmint.model.sam.load import load_sam
from segmint.model.sam.predictor import Predictor
from tests.support.parity import compare

pytestmark = pytest.mark.long

# A score so near to its threshold that the last bits of the arithmetic decide.
BORDERLINE = 1e-4


def is_borderline(predicted_iou: float, stability: float, settings: MaskSettings) -> bool:
    return (
        min(abs(predicted_iou - settings.pred_iou_thresh), abs(stability - settings.stability_score_thresh))
        < BORDERLINE
    )


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["dog_layers0", "truck_layers0", "groceries_layers0", "dog_layers2"])
def test_every_mask_is_the_references(name: str, photos: Path, reference_results: Path, mobile_sam_path: Path) -> None:
    recorded: dict[str, Any] = json.loads((reference_results / f"{name}.json").read_text())
    photo = photos / f"{recorded['image']}.jpg"
    assert hashlib.sha256(photo.read_bytes()).hexdigest() == recorded["sha256"]
    with Image.open(photo) as opened:
        image = np.asarray(opened.convert("RGB"))
    settings = MaskSettings.official(
        crop_n_layers=recorded["crop_n_layers"], min_mask_region_area=recorded["min_mask_region_area"]
    )

    generated = MaskGenerator(Predictor(load_sam(mobile_sam_path)), settings).generate(image)

    theirs = recorded["annotations"]
    compared = compare(generated.records, theirs)
    ours = generated.records
    unmatched = [
        *(("missing", theirs[n]["predicted_iou"], theirs[n]["stability_score"]) for n in compared.missing),
        *(("extra", ours[n].predicted_iou, ours[n].stability_score) for n in compared.extra),
    ]
    print(
        f"{name}: {len(ours)} masks of {len(theirs)}, least IoU {compared.least_iou:.5f}, differences: "
        f"boxes {compared.box_difference:g} px, predicted IoU {compared.iou_difference:.1e}, stability "
        f"{compared.stability_difference:.1e}; unmatched {unmatched}; {generated.funnel}"
    )
    assert len(unmatched) <= len(theirs) // 100
    assert all(is_borderline(iou, stability, settings) for _, iou, stability in unmatched), unmatched
    assert compared.same_order
    assert compared.box_difference <= 1
    assert max(compared.iou_difference, compared.stability_difference) <= 1e-3
