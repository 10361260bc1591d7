"""Export formats and their main files."""

from enum import StrEnum


class Format(StrEnum):
    """Tool or format to export to."""

    COCO = "coco"
    LVIS = "lvis"
    CVAT = "cvat"
    LABEL_STUDIO = "label-studio"
    FIFTYONE = "fiftyone"
    YOLO = "yolo"
    HF = "hf"
    GEOJSON = "geojson"


MAIN_FILES = {
    Format.COCO: "instances.json",
    Format.LVIS: "lvis.json",
    Format.CVAT: "annotations/instances_default.json",
    Format.LABEL_STUDIO: "tasks.json",
    Format.FIFTYONE: "samples.json",
    Format.YOLO: "data.yaml",
    Format.HF: "README.md",
    Format.GEOJSON: "index.json",
}
"""Main file of each format. It is written last and completes an export."""
