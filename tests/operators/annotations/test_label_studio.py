"""Label Studio's tasks: labels, sizes, and that nothing large is decoded for a mask of another size."""

from typing import Any

import numpy as np
import pytest
from label_studio_sdk.converter import brush

from segmint.operators.annotations.label_studio import read_tasks

DISK = np.zeros((30, 40), bool)
DISK[5:25, 10:30] = True


def region(label: Any = "cup", **more: Any) -> dict[str, Any]:
    rle = brush.mask2rle(DISK.astype(np.uint8) * 255)
    value = {"format": "rle", "rle": rle, "brushlabels": [label]}
    return {"id": "10000", "type": "brushlabels", "original_height": 30, "original_width": 40, "value": value, **more}


def task(*regions: dict[str, Any]) -> dict[str, Any]:
    return {"data": {"image": "/data/upload/x-sa_1.jpg"}, "annotations": [{"result": list(regions)}]}


def test_masks_have_their_labels_and_ids() -> None:
    ((image, others),) = read_tasks([task(region(), region(None, id="aB"))], brush)
    assert (image.name, image.size, others) == ("/data/upload/x-sa_1.jpg", None, 0)
    one, two = image.masks
    np.testing.assert_array_equal(one.pixels(), DISK)
    assert [(mask.id, mask.label) for mask in (one, two)] == [(10_000, "cup"), (None, None)]


def test_a_mask_of_another_size_is_not_decoded() -> None:
    class Never:
        def decode_rle(self, runs: list[int]) -> list[int]:
            raise AssertionError("decoded")

    ((image, _),) = read_tasks([task(region())], Never(), lambda name: (40, 30))
    assert (image.masks, image.unreadable_ids) == ([], [10_000])
    assert image.unreadable == ["mask 10000: it is 40 x 30 pixels, its image 30 x 40"]
    ((image, _),) = read_tasks([task(region(original_width=40_000, original_height=30_000))], Never())
    assert image.unreadable == ["mask 10000: its size is 40000 x 30000 pixels"]


def test_what_is_no_mask_costs_no_other() -> None:
    said = [{"id": "a", "type": kind, "value": {kind: ["good"]}} for kind in ("choices", "textarea")]
    nameless = {**task(region()), "data": {}}
    tasks: list[Any] = [task(*said, {}, region()), nameless, task(region())]
    tasks[0]["annotations"][0]["result"].insert(0, 3)
    answers = list(read_tasks(tasks, brush))
    assert [(len(image.masks), image.unreadable) for image, _ in answers] == [
        (1, []),
        (0, ["it has no `image`"]),
        (1, []),
    ]
    assert answers[1].image.name == "task number 2"
    with pytest.raises(TypeError, match="task number 2 is no object"):
        list(read_tasks([task(region()), 5], brush))
