"""What no damage to a file brings about: two decoders that disagree about the same run lengths."""

from typing import Any

import numpy as np
import pytest

from segmint.catalogs.findings import Code, FindingLocation
from segmint.model.automatic import rle
from segmint.operators.audit import masks as audit_masks


def row_of(pixels: np.ndarray) -> dict[str, Any]:
    return {
        "segmentation": {"size": [20, 30], "counts": rle.encode(pixels).counts},
        "area": 30,
        "bbox": [10.0, 4.0, 5.0, 4.0],
        "crop_box": [0.0, 0.0, 30.0, 20.0],
        "point_coords": [[12.5, 6.5]],
        "predicted_iou": 0.95,
        "stability_score": 0.97,
        "annotation_id": 7,
    }


def test_images_with_hundreds_of_masks_are_measured() -> None:
    pixels = np.zeros((20, 30), dtype=bool)
    pixels[4:9, 10:16] = True
    rows = [row_of(pixels) for _ in range(300)]
    rows[299]["area"] = 31
    place = FindingLocation("masks/sa_000001.parquet", 1)
    (finding,) = audit_masks.audit_masks((20, 30), rows, None, place, decode=False)
    assert finding.code == Code.MASK_AREA


def test_a_mask_that_two_decoders_see_otherwise_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.zeros((20, 30), dtype=bool)
    pixels[4:9, 10:16] = True
    row = row_of(pixels)
    place = FindingLocation("masks/sa_000001.parquet", 1)
    assert list(audit_masks.audit_masks((20, 30), [row], None, place, decode=True)) == []

    monkeypatch.setattr(audit_masks.rle, "decode", lambda _: ~pixels)
    (finding,) = audit_masks.audit_masks((20, 30), [row], None, place, decode=True)
    assert finding.code == Code.MASK_PIXELS
