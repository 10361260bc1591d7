"""Label Studio's tasks as JSON, with masks as brush strokes in its own run lengths, written as samples come."""

from pathlib import Path
from typing import Any

import numpy as np

from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.dataset.reader import MaskAnnotation, Sample
from segmint.catalogs.layout import image_name
from segmint.infra.errors import UsageError
from segmint.infra.uris import LOCAL, join, scheme
from segmint.pipeline.export.coco import CATEGORY
from segmint.pipeline.export.formats import MAIN_FILES, Format
from segmint.pipeline.export.json_items import JsonItems

LABEL_CONFIG = "label_config.xml"
IMAGE_KEY = "segmint_id"
"""The key of a task's data that holds the number of the image."""

LABELING = f"""\
<View>
  <Image name="image" value="$image" zoom="true"/>
  <BrushLabels name="brush" toName="image">
    <Label value="{CATEGORY["name"]}" background="#1f77b4"/>
  </BrushLabels>
</View>
"""
"""The labeling interface that the tasks are for."""

_OPAQUE = np.uint8(255)


def load_brush() -> Any:
    """The brush converter of Label Studio's SDK; raises `UsageError` where that is not installed."""
    try:
        from label_studio_sdk.converter import brush
    except ImportError as error:
        raise UsageError(
            f"Label Studio's run lengths need its SDK ({error}): pip install 'segmint[label-studio]'"
        ) from error
    return brush


def image_url(folder: str, image: int) -> str:
    """Where Label Studio finds the picture of an export in `folder`: a local file that it serves, or an object."""
    path = join("images", image_name(image))
    return f"/data/local-files/?d={path}" if scheme(folder) == LOCAL else join(folder, path)


def brush_region(brush: Any, mask: MaskAnnotation) -> dict[str, Any]:
    """A mask as a region of the labeling interface `LABELING`; its id is the annotation's."""
    height, width = mask.size
    return {
        "id": str(mask.id),
        "type": "brushlabels",
        "from_name": "brush",
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": mask.predicted_iou,
        "value": {
            "format": "rle",
            "rle": brush.mask2rle(mask.mask * _OPAQUE),  # 1 would be all but transparent
            "brushlabels": [CATEGORY["name"]],
        },
    }


class TasksWriter:
    """Gathers tasks in a file of a scratch folder, each with its masks as a prediction.

    As predictions, an image that nobody looked at can be told from one that was found right. `folder` is where the
    export is going. Raises `UsageError` where Label Studio's SDK is not installed.
    """

    def __init__(self, scratch: Path, manifest: DatasetManifest, folder: str) -> None:
        self._brush = load_brush()
        self._scratch = scratch
        self._model = f"segmint {manifest.code_version} {manifest.weights.name}"
        self._folder = folder
        self._tasks = JsonItems(scratch / "tasks.part")

    def add(self, sample: Sample) -> None:
        """Takes an image with its masks."""
        data: dict[str, Any] = {"image": image_url(self._folder, sample.id), IMAGE_KEY: sample.id}
        credit = {name: sample.row[name] for name in ("license", "attribution") if sample.row[name] is not None}
        regions = [brush_region(self._brush, mask) for mask in sample.masks]
        prediction = {"model_version": self._model, "result": regions}
        self._tasks.extend([{"id": sample.id, "data": data | credit, "predictions": [prediction]}])

    def finish(self) -> dict[str, Path]:
        """The files of the export, by their names below its folder; the last one makes it whole."""
        config, path = self._scratch / LABEL_CONFIG, self._scratch / MAIN_FILES[Format.LABEL_STUDIO]
        config.write_text(LABELING, encoding="utf-8")
        with path.open("w", encoding="utf-8") as file:
            self._tasks.copy_into(file)
            file.write("\n")
        return {LABEL_CONFIG: config, MAIN_FILES[Format.LABEL_STUDIO]: path}
