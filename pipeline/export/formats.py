"""Export formats, their main files, and the levels of masks to export."""

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
    SA_1B = "sa-1b"
    LABEL_MAPS = "label-maps"
    PNG_MASKS = "png-masks"


class Level(StrEnum):
    """Masks to export as pixels."""

    ALL = "all"
    WHOLE = "whole"  # without masks that lie in a larger mask


MAIN_FILES = {
    Format.COCO: "instances.json",
    Format.LVIS: "lvis.json",
    Format.CVAT: "annotations/instances_default.json",
    Format.LABEL_STUDIO: "tasks.json",
    Format.FIFTYONE: "samples.json",
    Format.YOLO: "data.yaml",
    Format.HF: "README.md",
    Format.GEOJSON: "index.json",
    Format.SA_1B: "index.json",
    Format.LABEL_MAPS: "index.json",
    Format.PNG_MASKS: "index.json",
}
"""Main file of each format. It is written last and completes an export."""
