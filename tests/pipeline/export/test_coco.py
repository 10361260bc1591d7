"""COCO's instances: pycocotools loads them, and every mask is the dataset's, pixel by pixel."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from segmint.catalogs.dataset.digest import current_digest
from segmint.catalogs.dataset.reader import Dataset
from segmint.catalogs.dataset.versions import VersionName
from segmint.catalogs.licenses import license_url
from segmint.pipeline.export.categories import UNLABELED
from segmint.pipeline.export.coco import CocoWriter
from segmint.pipeline.export.export import ExportOptions, export_dataset
from segmint.pipeline.export.formats import MAIN_FILES, Format
from tests.support.committed import write_dataset
from tests.support.locations import location_of

VERSION = VersionName("ab" * 32, 3)


def export(uri: object, output: Path, format: Format = Format.COCO) -> Path:
    export_dataset(location_of(uri), ExportOptions(format), location_of(output))
    return output / MAIN_FILES[format]


def first_annotation(file: Path) -> dict[str, Any]:
    annotation: dict[str, Any] = json.loads(file.read_text())["annotations"][0]
    return annotation


@pytest.mark.parametrize("format", [Format.COCO, Format.CVAT])
def test_every_mask_of_real_photographs_is_equal(small_dataset: Path, tmp_path: Path, format: Format) -> None:
    loaded = COCO(export(small_dataset, tmp_path / "out", format))
    samples = list(Dataset.open(location_of(small_dataset)))
    assert loaded.getImgIds() == [sample.id for sample in samples]
    assert len(loaded.anns) == sum(len(sample.masks) for sample in samples) > 6
    for sample in samples:
        image = loaded.imgs[sample.id]
        assert (image["height"], image["width"]) == sample.image.shape[:2]
        assert image["file_name"] == f"sa_{sample.id}.jpg"
        annotations = loaded.loadAnns(loaded.getAnnIds(imgIds=sample.id))
        for annotation, mask in zip(annotations, sample.masks, strict=True):
            np.testing.assert_array_equal(loaded.annToMask(annotation).astype(bool), mask.mask)
            assert annotation["id"] == mask.id
            assert annotation["area"] == mask.mask.sum()
            ys, xs = np.nonzero(mask.mask)
            assert annotation["bbox"] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
            assert annotation["bbox"][2:] == [mask.bbox[2] + 1, mask.bbox[3] + 1]
            assert (annotation["category_id"], annotation["iscrowd"]) == (1, 0)
            assert annotation["predicted_iou"] == mask.predicted_iou


def test_counts_are_compressed_for_coco_and_numbers_for_cvat(tmp_path: Path) -> None:
    write_dataset(location_of(tmp_path / "small"), shards=1)
    compressed = first_annotation(export(tmp_path / "small", tmp_path / "coco"))
    plain = first_annotation(export(tmp_path / "small", tmp_path / "cvat", Format.CVAT))
    assert isinstance(compressed["segmentation"]["counts"], str)
    # A square of 20 rows from row 10, in columns 20 to 49 of 60 rows.
    assert plain["segmentation"] == {"size": [60, 80], "counts": [1210, *[20, 40] * 29, 20, 1830]}
    assert {**plain, "segmentation": None} == {**compressed, "segmentation": None}


def test_licenses_and_credits_go_with_the_images(tmp_path: Path) -> None:
    write_dataset(location_of(tmp_path / "small"), shards=1)
    document = json.loads(export(tmp_path / "small", tmp_path / "out").read_text(encoding="utf-8"))
    url = "https://creativecommons.org/licenses/by/4.0/"
    digest = current_digest(location_of(tmp_path / "small"))
    assert document["info"] == {
        "description": "small", "version": "0", "dataset_digest": f"sha256:{digest}", "dataset_version": None,
    }  # fmt: skip
    assert document["licenses"] == [{"id": 1, "name": "CC-BY-4.0", "url": url}]
    assert document["categories"] == [{"id": 1, "name": "object", "supercategory": "object"}]
    assert document["images"][1] == {
        "id": 2,
        "file_name": "sa_2.jpg",
        "width": 80,
        "height": 60,
        "license": 1,
        "catalog_image_id": "image-1",
        "attribution": "Zoë",
    }


def test_an_image_without_masks_is_there(tmp_path: Path) -> None:
    write_dataset(location_of(tmp_path / "small"), shards=1)
    dataset = Dataset.open(location_of(tmp_path / "small"))
    writer = CocoWriter(tmp_path, dataset.manifest, VERSION, "instances.json", True, UNLABELED, False)
    for sample in dataset:
        sample.masks.clear()
        writer.add(sample)
    loaded = COCO(writer.finish()["instances.json"])
    assert (loaded.getImgIds(), loaded.getAnnIds()) == ([1, 2], [])


def test_the_same_dataset_gives_the_same_bytes(small_dataset: Path, tmp_path: Path) -> None:
    assert export(small_dataset, tmp_path / "one").read_bytes() == export(small_dataset, tmp_path / "two").read_bytes()


def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    write_dataset(location_of(tmp_path / "small"), shards=1)
    dataset = Dataset.open(location_of(tmp_path / "small"))
    samples = list(dataset)
    license_url("CC0-1.0")  # loads the list of licenses once
    peaks, sizes = [], []
    for times in (200, 1000):
        writer = CocoWriter(tmp_path, dataset.manifest, VERSION, "instances.json", True, UNLABELED, False)
        tracemalloc.start()
        try:
            for _ in range(times):
                for sample in samples:
                    writer.add(sample)
            sizes.append(writer.finish()["instances.json"].stat().st_size)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert sizes[1] > 4 * sizes[0]
    assert peaks[1] < peaks[0] + sizes[1] / 10
