"""GeoJSON: polygons with holes, a file an image, for QuPath, shapely, GDAL and what reads their features."""

import json
from pathlib import Path
from typing import Any

from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.dataset.reader import MaskAnnotation, Sample
from segmint.catalogs.dataset.versions.record import VersionName
from segmint.catalogs.layout import image_name, image_stem
from segmint.pipeline.export.coco import CATEGORY
from segmint.pipeline.export.edge_rings import edge_polygons
from segmint.pipeline.export.formats import MAIN_FILES, Format
from segmint.pipeline.export.json_items import JsonItems
from segmint.pipeline.export.provenance import credits_of, describe_dataset


class GeoJsonWriter:
    """Writes a collection of features an image, and a list of the images."""

    def __init__(self, scratch: Path, manifest: DatasetManifest, version: VersionName) -> None:
        self._scratch = scratch
        self._about = describe_dataset(manifest, version)
        self._images = JsonItems(scratch / "images.part")

    def add(self, sample: Sample) -> dict[str, bytes]:
        """Add an image; return the file of its masks, by path below the export's folder."""
        row = sample.row
        image = {"id": sample.id, "file_name": image_name(sample.id), "width": row["width"], "height": row["height"]}
        image |= credits_of(row)
        collection = {
            "type": "FeatureCollection",
            "image": image,
            "features": [feature_of(mask) for mask in sample.masks],
        }
        name = f"masks/{image_stem(sample.id)}.geojson"
        self._images.extend([{**image, "masks": len(sample.masks), "geojson": name}])
        text = json.dumps(collection, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return {name: f"{text}\n".encode()}

    def finish(self) -> dict[str, Path]:
        """Return the files of the export, by path below its folder; the last one completes it."""
        name = MAIN_FILES[Format.GEOJSON]
        path = self._scratch / name
        with path.open("w", encoding="utf-8") as file:
            file.write(f'{{"dataset": {json.dumps(self._about, ensure_ascii=False)},\n"images": ')
            self._images.copy_into(file)
            file.write("}\n")
        return {name: path}


def feature_of(mask: MaskAnnotation) -> dict[str, Any]:
    """Return a mask as a feature whose polygons follow the edges of its pixels; x is right, y is down.

    A mask of one part is a `Polygon`, of several a `MultiPolygon`; an empty one has no geometry.
    """
    polygons = [[[*ring, ring[0]] for ring in rings] for rings in edge_polygons(mask.mask)]
    geometry: dict[str, Any] | None = {"type": "MultiPolygon", "coordinates": polygons}
    if len(polygons) == 1:
        geometry = {"type": "Polygon", "coordinates": polygons[0]}
    return {
        "type": "Feature",
        "geometry": geometry if polygons else None,
        "properties": {
            "objectType": "annotation",
            "classification": {"name": CATEGORY["name"]},
            "id": mask.id,
            "area": mask.area,
            "predicted_iou": mask.predicted_iou,
            "stability_score": mask.stability_score,
        },
    }
