"""GDAL, by rasterio, and shapely read an export: read_geojson.py EXPORT EXPECTED."""

import json
import sys
from pathlib import Path

import numpy as np
import rasterio
import shapely
from expected import MaskCounter, load_expected, load_labels
from rasterio.features import rasterize
from rasterio.transform import Affine


def main(export: str, expected: str) -> None:
    """Let shapely check every polygon, and GDAL fill it."""
    wanted = load_expected(expected)
    tally, labels = MaskCounter(), load_labels(expected)
    index = json.loads((Path(export) / "index.json").read_text(encoding="utf-8"))
    print(f"GDAL {rasterio.__gdal_version__}, shapely {shapely.__version__}: {len(index['images'])} images")
    holes = 0
    for image in index["images"]:
        ids, masks = wanted[image["id"]]
        features = json.loads((Path(export) / image["geojson"]).read_text(encoding="utf-8"))["features"]
        tally.require([each["properties"]["id"] for each in features] == ids, f"image {image['id']}: its masks' ids")
        for feature, mask in zip(features, masks, strict=True):
            id, geometry = feature["properties"]["id"], feature["geometry"]
            name = feature["properties"]["classification"]["name"]
            tally.require(name == labels[id], f"mask {id}: its label")
            shape = shapely.from_geojson(json.dumps(geometry))
            tally.require(shape.is_valid, f"mask {id}: {shapely.is_valid_reason(shape)}")
            tally.require(shape.area == mask.sum(), f"mask {id}: an area of {shape.area}")
            parts = shape.geoms if shape.geom_type == "MultiPolygon" else [shape]
            holes += sum(len(part.interiors) for part in parts)
            filled = rasterize([geometry], out_shape=mask.shape, transform=Affine.identity(), dtype=np.uint8)
            tally.compare(f"mask {id}", filled > 0, mask)
    print(f"{holes} holes")
    tally.require([image["id"] for image in index["images"]] == list(wanted), "the images")
    tally.end("geojson", sum(len(ids) for ids, _ in wanted.values()))


main(*sys.argv[1:])
