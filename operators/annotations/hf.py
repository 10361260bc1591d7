"""Reader of masks in a dataset that `segmint export --format hf` wrote."""

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.operators.annotations.image import AnnotatedImage, label_text

_ROWS = 8  # number of images held in memory
_COLUMNS = ["id", "image_id", "width", "height", "objects"]


def is_data_file(name: str) -> bool:
    """Return whether a file contains rows, judging by its path within the export's folder."""
    return name.startswith("data/") and name.endswith(".parquet")


def read_export(
    folder: Location, add_to_hash: Callable[[bytes], Any], by_image_id: bool = False
) -> Iterator[AnnotatedImage]:
    """Yield the images of an export in order, named by `image_id` if `by_image_id` is set, otherwise as in tars.

    `add_to_hash` is called with each file's name and hash. Raises `UsageError` if a file isn't part of an export.
    """
    for name in sorted(found.name for found in folder.walk() if is_data_file(found.name)):
        file = folder / name
        add_to_hash(f"{name} {file.sha256()}\n".encode())
        try:
            with file.open() as stream:
                for batch in pq.ParquetFile(stream).iter_batches(_ROWS, columns=_COLUMNS):
                    yield from (_image(row, by_image_id) for row in batch.to_pylist())
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            why = " ".join(str(error).split())[:200]
            raise UsageError(
                f"{file} can't be read ({type(error).__name__}: {why}): expected a file of `segmint export --format hf`"
            ) from error


def _image(row: dict[str, Any], by_image_id: bool) -> AnnotatedImage:
    name = str(row["image_id"]) if by_image_id else f"sa_{row['id']}.jpg"
    image = AnnotatedImage(name, None, (row["height"], row["width"]))
    for value in row["objects"]:
        label, source = (label_text(value.get(name)) for name in ("label", "label_source"))
        image.add_runs(value, value, label=label, label_source=source)
    image.leave_out_contradictions()
    return image
