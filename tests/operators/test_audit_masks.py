"""What no damage to a file brings about: two decoders that disagree about the same run lengths."""

import numpy as np
import pytest

from catalogs.findings import Code, Place
from model.automatic import rle
from operators import audit_masks


def test_a_mask_that_two_decoders_see_otherwise_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.zeros((20, 30), dtype=bool)
    pixels[4:9, 10:16] = True
    row = {
        "segmentation": {"size": [20, 30], "counts": rle.encode(pixels).counts},
        "area": 30,
        "bbox": [10.0, 4.0, 5.0, 4.0],
        "crop_box": [0.0, 0.0, 30.0, 20.0],
        "point_coords": [[12.5, 6.5]],
        "predicted_iou": 0.95,
        "stability_score": 0.97,
        "annotation_id": 7,
    }
    place = Place("masks/sa_000001.parquet", 1)
    assert list(audit_masks.audit_masks((20, 30), [row], None, place, decode=True)) == []

    monkeypatch.setattr(audit_masks.rle, "decode", lambda _: ~pixels)
    (finding,) = audit_masks.audit_masks((20, 30), [row], None, place, decode=True)
    assert finding.code == Code.MASK_PIXELS
