"""GeoJSON files: shapely reads them, and every mask is inside, pixel by pixel."""

import json
from pathlib import Path

import numpy as np
import shapely

from segmint.catalogs.dataset.reader import Dataset, MaskAnnotation
from segmint.pipeline.export.categories import Categories
from segmint.pipeline.export.export import ExportOptions, export_dataset
from segmint.pipeline.export.formats import Format
from segmint.pipeline.export.per_image import feature_of
from tests.support.locations import location_of


def test_every_mask_of_real_photographs_is_equal(small_dataset: Path, tmp_path: Path) -> None:
    export_dataset(location_of(small_dataset), ExportOptions(Format.GEOJSON), location_of(tmp_path / "out"))
    index = json.loads((tmp_path / "out/index.json").read_text(encoding="utf-8"))
    assert index["dataset"]["dataset_digest"].startswith("sha256:")
    for image, sample in zip(index["images"], Dataset.open(location_of(small_dataset)), strict=True):
        assert (image["id"], image["masks"], image["license"]) == (sample.id, len(sample.masks), sample.row["license"])
        collection = json.loads((tmp_path / "out" / image["geojson"]).read_text(encoding="utf-8"))
        y, x = np.mgrid[: image["height"], : image["width"]]
        for feature, mask in zip(collection["features"], sample.masks, strict=True):
            shape = shapely.from_geojson(json.dumps(feature["geometry"]))
            assert shape.is_valid
            np.testing.assert_array_equal(shapely.contains_xy(shape, x + 0.5, y + 0.5), mask.mask)
            assert feature["properties"]["id"] == mask.id


def test_an_empty_mask_has_no_geometry() -> None:
    mask = MaskAnnotation(1, (2, 3), "6", 0, (0, 0, 0, 0), None, None, (0, 0, 3, 2), ())
    assert feature_of(mask, Categories())["geometry"] is None
