"""Streaming export to Label Studio tasks as JSON, with masks as brush strokes in its run-length format."""

from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.dataset.reader import MaskAnnotation, Sample
from segmint.catalogs.dataset.versions import VersionName
from segmint.catalogs.layout import image_name
from segmint.infra.uris import LOCAL, join, scheme
from segmint.infra.wording import counted
from segmint.operators.annotations.label_studio import PART_KEY, encode_runs
from segmint.pipeline.export.categories import Categories
from segmint.pipeline.export.coco import JsonItems
from segmint.pipeline.export.formats import MAIN_FILES, Format

LABEL_CONFIG = "label_config.xml"
IMAGE_KEY = "segmint_id"
"""Key of a task's data that contains the image id."""

MASKS_PER_TASK = 100
"""Maximum number of masks per task. Label Studio's editor is too slow for more masks."""

_COLORS = (
    "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf",
)  # fmt: skip


def labeling(categories: Categories) -> str:
    """Return the labeling interface of the tasks."""
    labels = [
        f'    <Label value={quoteattr(name)} background="{_COLORS[number % len(_COLORS)]}"/>\n'
        for number, name in enumerate(categories.names)
    ]
    return f"""\
<View>
  <Image name="image" value="$image" zoom="true"/>
  <BrushLabels name="brush" toName="image">
{"".join(labels)}  </BrushLabels>
</View>
"""


def image_url(folder: str, image: int) -> str:
    """Return the URL of an image in the export's `folder`: a local file that Label Studio serves, or an object."""
    path = join("images", image_name(image))
    return f"/data/local-files/?d={path}" if scheme(folder) == LOCAL else join(folder, path)


def brush_region(mask: MaskAnnotation, categories: Categories) -> dict[str, Any]:
    """Convert a mask to a region of the labeling interface. The region's id is the annotation's id."""
    height, width = mask.size
    return {
        "id": str(mask.id),
        "type": "brushlabels",
        "from_name": "brush",
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        **({} if mask.predicted_iou is None else {"score": mask.predicted_iou}),
        "value": {
            "format": "rle",
            "rle": encode_runs(mask.mask),
            "brushlabels": [categories.name_of(mask)],
        },
    }


class TasksWriter:
    """Writer that collects tasks in a scratch file, each with its masks as a prediction.

    Nobody has checked these masks yet. As predictions, they remain distinct from approved masks. `folder` is the
    export's folder. If an image has more than `most` masks, it is split into several tasks.
    """

    def __init__(
        self,
        scratch: Path,
        manifest: DatasetManifest,
        version: VersionName,
        folder: str,
        categories: Categories,
        most: int | None,
    ) -> None:
        self._scratch = scratch
        self._categories = categories
        self._model = f"segmint {manifest.code_version} {manifest.weights.name}"
        self._meta = {"dataset_digest": f"sha256:{version.digest}", "dataset_version": version.number}
        self._folder = folder
        self._most = most
        self._split = self._parts = 0
        self._tasks = JsonItems(scratch / "tasks.part")

    def add(self, sample: Sample) -> None:
        """Add an image with its masks."""
        data: dict[str, Any] = {"image": image_url(self._folder, sample.id), IMAGE_KEY: sample.id}
        credit = {name: sample.row[name] for name in ("license", "attribution") if sample.row[name] is not None}
        regions = [brush_region(mask, self._categories) for mask in sample.masks]
        size = self._most or max(1, len(regions))
        parts = [regions[first : first + size] for first in range(0, len(regions), size)] or [[]]
        for number, part in enumerate(parts, 1):
            prediction = {"model_version": self._model, "result": part}
            # A split image has no unique id for each of its tasks, so let Label Studio assign the ids.
            whole = {"id": sample.id} if len(parts) == 1 else {}
            said = {} if len(parts) == 1 else {PART_KEY: f"{number}/{len(parts)}"}
            task = {**whole, "data": data | said | credit, "meta": self._meta, "predictions": [prediction]}
            self._tasks.extend([task])
        if len(parts) > 1:
            self._split += 1
            self._parts += len(parts)

    def notes(self) -> list[str]:
        """Return notes for the user about the export."""
        if not self._split:
            return []
        return [
            f"{counted(self._split, 'image')} with over {self._most} masks: split into {counted(self._parts, 'task')}. "
            "`segmint import` joins them after all tasks of an image are submitted."
        ]

    def finish(self) -> dict[str, Path]:
        """Return the export's files by relative path. The last file completes the export."""
        config, path = self._scratch / LABEL_CONFIG, self._scratch / MAIN_FILES[Format.LABEL_STUDIO]
        config.write_text(labeling(self._categories), encoding="utf-8")
        with path.open("w", encoding="utf-8") as file:
            self._tasks.copy_into(file)
            file.write("\n")
        return {LABEL_CONFIG: config, MAIN_FILES[Format.LABEL_STUDIO]: path}
