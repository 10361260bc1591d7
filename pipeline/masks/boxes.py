"""Boxes of a COCO file or YOLO labels, from which `segmint masks --boxes` makes masks. Does not import torch."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segmint.catalogs.layout import canonical_json
from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import base_name
from segmint.infra.wording import counted, some
from segmint.operators.annotations.boxes import yolo_boxes
from segmint.operators.annotations.coco import parse_coco, read_coco_boxes


@dataclass(frozen=True)
class PhotographBoxes:
    """Boxes of a file or folder, read before a run.

    - `file`: the file or folder.
    - `images`: the name of each image, and its boxes as a value of `PROMPTS`. YOLO's names have no endings.
    - `with_endings`: whether names have endings.
    - `unreadable`: a line for each box and image that can't be read, and is left out.
    - `crowds`: number of boxes around groups of objects, which are left out.
    """

    file: str
    images: tuple[tuple[str, Mapping[str, Any]], ...]
    with_endings: bool
    unreadable: tuple[str, ...] = ()
    crowds: int = 0

    @property
    def sha256(self) -> str:
        """SHA-256 of the names and boxes."""
        return hashlib.sha256(canonical_json(self.images)).hexdigest()

    @property
    def mean(self) -> int:
        """Mean number of boxes of an image, at least 1."""
        total = sum(len(entry["prompts"]) for _, entry in self.images)
        return max(1, round(total / max(1, len(self.images))))

    def by_place(self, places: Sequence[str]) -> tuple[dict[str, Mapping[str, Any]], list[str]]:
        """Return the boxes of photographs by their place, and a line for all images and one for all crowds left out.

        An image is a photograph if the photograph's place ends with the image's name, or the other way around. Raises
        `UsageError` if no image is a photograph, if one could be several, or if two are the same.
        """
        known: dict[str, list[str]] = {}
        for place in places:
            known.setdefault(base_name(self._path(place)), []).append(place)
        found: dict[str, Mapping[str, Any]] = {}
        absent = []
        for name, entry in self.images:
            path = "/" + name.replace("\\", "/").removeprefix("./").lstrip("/")
            fitting = [place for place in known.get(base_name(path), ()) if _is_end(path, self._path(place))]
            if not fitting:
                absent.append(name)
                continue
            if len(fitting) > 1 or fitting[0] in found:
                raise UsageError(
                    f"{self.file}: the image {name!r} fits {fitting[0]} and another photograph, or another image also "
                    "fits it: expected names that end differently"
                )
            found[fitting[0]] = entry
        if not found:
            raise UsageError(f"{self.file} has no image with the name of one of the {len(places):,} photographs")
        left_out = [f"{self.file}: no photograph has the name of {some(absent)}"] if absent else []
        return found, left_out + ([f"{self.file}: {counted(self.crowds, 'crowd')}"] if self.crowds else [])

    def _path(self, place: str) -> str:
        if self.with_endings:
            return "/" + place
        stem, dot, ending = place.rpartition(".")
        return "/" + (stem if dot and "/" not in ending else place)


def _is_end(one: str, other: str) -> bool:
    return one.endswith(other) or other.endswith(one)


def read_boxes(storage: Storage, boxes: str, names: str | None) -> PhotographBoxes:
    """Read a COCO file or, if `names` is the YAML file with the names of its classes, a folder of YOLO labels.

    Raises `UsageError` if one of them doesn't exist or isn't of this kind.
    """
    place = Location(storage, boxes)
    try:
        if names is None:
            found = read_coco_boxes(parse_coco(place.read(), str(place)))
        else:
            found = yolo_boxes(place, Location(storage, names))
        images = tuple((name, found.read(number)) for number, name in enumerate(found.names))
    except (NotFoundError, IsADirectoryError) as error:
        raise UsageError(f"{error}: expected a COCO file, or a folder of YOLO labels with --names") from error
    return PhotographBoxes(boxes, images, names is None, tuple(found.unreadable), found.crowds)
