"""The JSON of one photograph."""

import json
import math

import numpy as np
import pytest

from segmint.model.automatic.rle import MaskRecord, encode
from segmint.pipeline.masks.outputs import MasksOrigin, read_document, sa1b_document
from segmint.pipeline.masks.predict import PromptedMask

ORIGIN = MasksOrigin("a" * 64, "b" * 64)


def found(mask: np.ndarray) -> PromptedMask:
    height, width = mask.shape
    whole, nowhere = (0, 0, width, height), (math.nan, math.nan)
    return PromptedMask(MaskRecord(encode(mask), int(mask.sum()), (0, 0, 1, 1), 0.1, 0.0, whole, nowhere), ())


def test_an_empty_mask_is_valid_json():
    document = sa1b_document(1, "c", (4, 5), [found(np.zeros((4, 5), bool))], ORIGIN)
    assert json.loads(document)["annotations"][0]["point_coords"] == []


@pytest.mark.parametrize("count", [0, 2])
def test_what_is_written_is_sa1bs_json_and_says_what_it_was_made_from(count):
    masks = [found(np.eye(4, 5, k, dtype=bool)) for k in range(count)]
    data = sa1b_document(7, "c.jpg", (4, 5), masks, ORIGIN)
    document = json.loads(data)
    assert list(document) == ["image", "annotations", "made_from"]
    assert document["image"] == {"image_id": 7, "width": 5, "height": 4, "file_name": "c.jpg"}
    assert document["made_from"] == {"photograph_sha256": "a" * 64, "settings_sha256": "b" * 64}
    written = read_document(data)
    assert (written.origin, written.photograph) == (ORIGIN, "c.jpg")
    assert [record.segmentation for record in written.records()] == [each.record.segmentation for each in masks]
    assert [record.area for record in written.records()] == [each.record.area for each in masks]


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"image": {}, "annotations": []}', b'{"made_from": {}}', b"\xff"])
def test_other_files_have_no_origin(data):
    assert read_document(data).origin is None
