"""Reading and writing of a photograph's masks as SA-1B JSON, including their origin. Does not import torch."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from segmint.model.automatic.records import MaskRecord
from segmint.model.automatic.rle import Rle, area
from segmint.operators.annotations.image import checked_rle
from segmint.operators.segment.segment import check_count, mask_row
from segmint.operators.shards.files import annotations_json

if TYPE_CHECKING:
    from segmint.pipeline.masks.predict import PromptedMask

_MADE_FROM = "made_from"
CORRECTED = "corrected"
"""Key of a JSON file whose masks a person made or corrected."""


@dataclass(frozen=True)
class MasksOrigin:
    """SHA-256 of the inputs of a masks file: photograph, and settings with the weights."""

    photograph: str
    settings: str


def sa1b_document(
    image_id: int,
    file_name: str,
    size: tuple[int, int],
    masks: "Sequence[PromptedMask]",
    origin: MasksOrigin | None = None,
) -> bytes:
    """Return the SA-1B JSON of an image of `size` (height, width). An `origin` is in an additional key.

    Raises `RejectedError`, like a build, if the number of masks exceeds the number of annotation ids.
    """
    check_count(len(masks))
    rows = [mask_row(mask.record) | {"point_coords": [[float(x), float(y)] for x, y in mask.points]} for mask in masks]
    document = json.loads(annotations_json(image_id, file_name, size, rows))
    for annotation, mask in zip(document["annotations"], masks, strict=True):
        annotation.update(mask.given)
    if origin is not None:
        document[_MADE_FROM] = {"photograph_sha256": origin.photograph, "settings_sha256": origin.settings}
    return json.dumps(document, separators=(",", ":")).encode("ascii") + b"\n"


@dataclass(frozen=True)
class MasksFile:
    """Contents of an existing JSON file. `origin` is None if `segmint masks` didn't write the file."""

    origin: MasksOrigin | None
    annotations: Sequence[Any] = ()
    photograph: str = ""  # file name of the photograph
    sha256: str = ""
    corrected: bool = False  # by a person, so that no run may replace the masks

    def records(self) -> list[MaskRecord]:
        """Return the masks for drawing, as records with only a segmentation and an area.

        Raises `ValueError`, `LookupError`, `TypeError`, or `AttributeError` if another program damaged a mask.
        """
        checked = [checked_rle(each["segmentation"]) for each in self.annotations]
        masks = [Rle((rle["size"][0], rle["size"][1]), rle["counts"].decode("ascii")) for rle in checked]
        return [MaskRecord(mask, area(mask)) for mask in masks]


def read_document(data: bytes) -> MasksFile:
    """Parse a JSON file. For a file that `sa1b_document` didn't write, `origin` is None."""
    corrected = False
    try:
        document = json.loads(data)
        # Without the key, a mask without a predicted IoU shows that a person corrected the file.
        masks = [each for each in document["annotations"] if isinstance(each, dict)]
        corrected = CORRECTED in document or any(each.get("predicted_iou", 0) is None for each in masks)
        made_from = document[_MADE_FROM]
        origin = MasksOrigin(made_from["photograph_sha256"], made_from["settings_sha256"])
        sha256 = hashlib.sha256(data).hexdigest()
        return MasksFile(origin, list(document["annotations"]), document["image"]["file_name"], sha256, corrected)
    except (ValueError, RecursionError, KeyError, TypeError):
        return MasksFile(None, corrected=corrected)
