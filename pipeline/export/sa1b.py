"""Export to SA-1B's layout, which SAM 2's training code reads: a JPEG and a JSON file per image in one folder."""

from pathlib import Path

from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.dataset.reader import Sample
from segmint.catalogs.dataset.versions.record import VersionName
from segmint.catalogs.layout import image_name, image_stem
from segmint.operators.schemas import MASKS_PER_IMAGE_LIMIT
from segmint.operators.shards.files import annotations_json
from segmint.pipeline.export.index import ImageIndex

FILE_LIST = "file_list.txt"
"""File with the names of images that have masks, without endings. SAM 2's samplers fail for images without masks."""


class Sa1bWriter:
    """Writer of one JSON file per image, with the same content as in the dataset's tar, and of a list of images."""

    def __init__(self, scratch: Path, manifest: DatasetManifest, version: VersionName) -> None:
        self._list = scratch / FILE_LIST
        self._list.write_text("", encoding="ascii")
        self._index = ImageIndex(scratch, manifest, version)

    def add(self, sample: Sample) -> dict[str, bytes]:
        """Add an image. Return its JSON file by relative path."""
        name = f"images/{image_stem(sample.id)}.json"
        self._index.add(sample, json=name)
        if any(mask.area for mask in sample.masks):
            with self._list.open("a", encoding="ascii") as file:
                file.write(f"{image_stem(sample.id)}\n")
        size = sample.row["height"], sample.row["width"]
        rows = [
            {**vars(mask), "segmentation": mask.rle, "index": mask.id % MASKS_PER_IMAGE_LIMIT} for mask in sample.masks
        ]
        return {name: annotations_json(sample.id, image_name(sample.id), size, rows)}

    def finish(self) -> dict[str, Path]:
        """Return the export's files by relative path. The last file completes the export."""
        return {FILE_LIST: self._list, **self._index.finish()}
