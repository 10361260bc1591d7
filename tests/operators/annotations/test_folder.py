"""Folders of SA-1B's JSON and label maps: one image a file, and a file that cannot be read costs no other."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from segmint.operators.annotations.folder import read_folder, read_json
from segmint.operators.annotations.image import AnnotatedImage
from tests.support.locations import location_of

LABELS = np.zeros((30, 40), np.uint8)
LABELS[5:25, 10:20] = 3
LABELS[5:25, 20:30] = 200


def written(**changes: Any) -> dict[str, Any]:
    rle = coco.encode(np.asfortranarray((LABELS == 3).astype(np.uint8)))
    annotation = {"id": 20_000, "segmentation": {"size": [30, 40], "counts": rle["counts"].decode()}}
    about = {"image_id": 2, "width": 40, "height": 30, "file_name": "sa_2.jpg"}
    return {"image": about, "annotations": [annotation], **changes}


def test_every_file_of_masks_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.json").write_text(json.dumps(written()))
    Image.fromarray(LABELS).save(tmp_path / "sa_1.png")
    np.save(tmp_path / "sa_4.npy", LABELS.astype(np.int64))
    Image.fromarray(LABELS).save(tmp_path / "sa_2.jpg")  # a picture
    (tmp_path / "sa_3.json").write_text("{}")
    (tmp_path / "__MACOSX").mkdir()
    for hidden in ("__MACOSX/sa_1.png", "._sa_1.png"):
        (tmp_path / hidden).write_bytes(b"\x00\x05\x16\x07")
    hashed: list[bytes] = []
    two, one, three, four = read_folder(location_of(tmp_path), hashed.append, {"sa_4.npy": (40, 30)}.get)
    assert [line.split(b" ")[0] for line in hashed] == [b"b/two.json", b"sa_1.png", b"sa_3.json", b"sa_4.npy"]
    assert (two.name, [mask.id for mask in two.masks], two.size) == ("sa_2.jpg", [20_000], (30, 40))
    assert (one.name, one.size) == ("sa_1.png", (30, 40))
    # Its numbers are neither ids nor labels.
    assert [(mask.id, mask.label, mask.area) for mask in one.masks] == [(None, None, 200), (None, None, 200)]
    np.testing.assert_array_equal(one.masks[1].pixels(), LABELS == 200)
    assert three.unreadable[0].startswith("the file is not SA-1B's JSON for an image, with `image` and `annotations`")
    assert four.unreadable == ["the label map: it is 40 x 30 pixels, but its image is 30 x 40"]


def test_numbers_of_label_maps_may_be_ignored_and_soft_edges_cost_the_map(tmp_path: Path) -> None:
    Image.fromarray(LABELS).save(tmp_path / "sa_1.png")
    Image.fromarray(LABELS).resize((20, 15), Image.Resampling.BILINEAR).save(tmp_path / "sa_2.png")
    one, two = read_folder(location_of(tmp_path), len, ignore=[200])
    assert [mask.area for mask in one.masks] == [200]
    assert two.masks == []
    assert two.unreadable[0].startswith("the label map: its edges are soft")


def test_its_hash_is_of_the_files_that_are_read(tmp_path: Path) -> None:
    def digest() -> str:
        hashed = hashlib.sha256()
        assert len(list(read_folder(location_of(tmp_path), hashed.update))) == 1
        return hashed.hexdigest()

    (tmp_path / "sa_1.json").write_text(json.dumps(written()))
    first = digest()
    (tmp_path / "readme.txt").write_text("not of masks")
    assert digest() == first
    (tmp_path / "sa_1.json").write_text(json.dumps(written(annotations=[])))
    second = digest()
    (tmp_path / "sa_1.json").rename(tmp_path / "sa_2.json")
    assert len({first, second, digest()}) == 3


def read(**changes: Any) -> AnnotatedImage:
    return read_json(json.dumps(written(**changes)).encode(), "sa_9.json")


@pytest.mark.parametrize(
    ("annotation", "problem"),
    [
        (
            {"id": 7, "segmentation": {"size": [30, 41], "counts": [1230]}},
            "mask 7: 41 x 30 pixels, but its image is 40",
        ),
        ({"id": 7, "segmentation": {"size": [30, 40], "counts": "zz"}}, "mask 7: these RLE counts are damaged"),
        ({"id": 7, "segmentation": [[1, 2, 3, 4, 5, 6]]}, "mask 7: it has no run lengths"),
        ({"id": "x"}, "mask without an id: it has no run lengths"),
        (3, "mask without an id: it has no run lengths"),
    ],
)
def test_a_mask_that_cannot_be_read_costs_no_other(annotation: Any, problem: str) -> None:
    image = read(annotations=[annotation, *written()["annotations"]])
    assert [mask.id for mask in image.masks] == [20_000]
    (found,) = image.unreadable
    assert found.startswith(problem)
    assert image.unreadable_ids == ([7] if "mask 7" in problem else [])


def test_a_name_that_is_not_written_is_that_of_the_file() -> None:
    assert read(image={}).name == "sa_9.json"
    assert read(image={}).size is None
    assert read(annotations=3).unreadable[0].startswith("the file is not SA-1B's JSON")
