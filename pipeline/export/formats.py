"""The formats that a dataset can be exported to."""

from enum import StrEnum


class Format(StrEnum):
    """What an export is for."""

    COCO = "coco"
    CVAT = "cvat"
    LABEL_STUDIO = "label-studio"


MAIN_FILES = {
    Format.COCO: "instances.json",
    Format.CVAT: "annotations/instances_default.json",
    Format.LABEL_STUDIO: "tasks.json",
}
"""The file of each format that makes an export whole: it is put last."""
