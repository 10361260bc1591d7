"""Export to SA-1B's layout, which SAM 2's training code reads: a JPEG and a JSON file per image in one folder."""

from pathlib import Path

from segmint.catalogs.dataset.reader import Sample
from segmint.catalogs.layout import image_name, image_stem
from segmint.operators.schemas import MASKS_PER_IMAGE_LIMIT
from segmint.operators.shards.files import annotations_json
from segmint.pipeline.export.index import IndexedWriter

FILE_LIST = "file_list.txt"
"""File with the names of images that have masks, without endings. SAM 2's samplers fail for images without masks."""


class Sa1bWriter(IndexedWriter):
    """Writer of one JSON file per image, with the same content as in the dataset's tar, and of the list of images."""

    def add(self, sample: Sample) -> dict[str, bytes]:
        """Add an image. Return its JSON file by relative path."""
        name = f"images/{image_stem(sample.id)}.json"
        self.describe_image(sample, json=name)
        if any(mask.area for mask in sample.masks):
            with (self.scratch / FILE_LIST).open("a", encoding="ascii") as file:
                file.write(f"{image_stem(sample.id)}\n")
        size = sample.row["height"], sample.row["width"]
        rows = [
            {**vars(mask), "segmentation": mask.rle, "index": mask.id % MASKS_PER_IMAGE_LIMIT} for mask in sample.masks
        ]
        return {name: annotations_json(sample.id, image_name(sample.id), size, rows)}

    def finish(self) -> dict[str, Path]:
        """Return the export's files by relative path. The last file completes the export."""
        names = self.scratch / FILE_LIST
        names.touch()  # no image may have masks
        return {FILE_LIST: names, **super().finish()}
