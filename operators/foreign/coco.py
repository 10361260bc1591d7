"""Lists the images of a COCO file, with their annotations, and reports entries that contradict each other."""

import re
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from segmint.catalogs.dataset.foreign import ForeignFile, ListedImage
from segmint.catalogs.findings import Code, FindingCollector, FindingLocation
from segmint.infra.storage.location import Location
from segmint.infra.uris import base_name
from segmint.operators.annotations.coco import CocoKey, coco_entries, coco_image, coco_key
from segmint.operators.annotations.image import AnnotatedImage, id_number, label_text, objects

_SPLIT = re.compile("(?<![a-z])(train|val|test)")
_NAMES_COMPARED = 100
_LONGEST = 60  # characters of a value in a finding


@dataclass(frozen=True)
class PictureFolder:
    """Files below a folder: their sizes in bytes by name."""

    folder: Location
    sizes: Mapping[str, int]

    def file(self, name: str) -> ForeignFile | None:
        """Return the file with this name relative to the folder, or None if there is none, as for names with `..`."""
        size = self.sizes.get(name)
        return None if size is None else ForeignFile(name, (self.folder / name).uri, size)

    def start_of(self, names: list[str], split: str) -> str:
        """Return what to put before the names in a COCO file to get those of the most files in this folder.

        Several folders may have files with these names. Then that of the file's split is used, if it has most of them.
        """
        wanted: dict[str, list[str]] = {}
        for name in names[:_NAMES_COMPARED]:
            wanted.setdefault(base_name(name), []).append(name)
        starts = Counter(
            file.removesuffix(name)
            for file in self.sizes
            for name in wanted.get(base_name(file), ())
            if f"/{file}".endswith(f"/{name}")
        )
        usual = [start for start, names in starts.items() if 2 * names >= max(starts.values())]
        return max(usual, key=lambda start: (split in start, starts[start], -len(start), start), default="")


def split_of(file: str) -> str:
    """Return the split in the name of an annotation file or of its folder, or else the file's name without an ending.

    `instances_train2017.json` and `train/_annotations.coco.json` are `train`.
    """
    folder, _, name = file.rpartition("/")
    for part in (name, base_name(folder)):
        if found := _SPLIT.search(part.lower()):
            return found[1]
    return name.rpartition(".")[0]


def list_coco(
    document: Mapping[str, Any], file: str, pictures: PictureFolder, findings: FindingCollector
) -> Iterator[ListedImage]:
    """Yield the images of a document from `parse_coco`. `file` is its name.

    Annotations without a unique image are reported and left out.
    """
    place = FindingLocation(file)
    images: dict[CocoKey, tuple[AnnotatedImage, Mapping[str, Any]]] = {}
    names: set[str] = set()
    unnamed: set[CocoKey | None] = set()

    def report(code: Code, where: str, expected: str, found: str, mask: int | None = None) -> None:
        findings.add(place.finding(code, expected, found, where, mask=mask))

    for number, entry, id in coco_entries(document, "images", "id"):
        image = coco_image(entry)
        where = f"image number {number}"
        if image is None or id is None:
            report(Code.BAD_JSON, where, "an id and a file_name", _short(document["images"][number - 1]))
            unnamed.add(id)
        elif id in images or image.name in names:
            found = f"another image with the id {id} or the name {image.name}"
            report(Code.ROW_IDENTITY, where, "a unique id and file_name", found)
        else:
            images[id] = image, entry
            names.add(image.name)
    annotations = _annotations(document, images.keys() | unnamed, report)
    licenses = _licenses(document.get("licenses"))
    if not licenses and images:
        report(Code.LICENSE_NOT_ALLOWED, "", "licenses of its images", "none")
    split = split_of(file)
    start = pictures.start_of([image.name for image, _ in images.values()], split)
    for id, (image, entry) in images.items():
        license = licenses.get(coco_key(entry.get("license")))
        if licenses and license is None:
            expected = "the id of one of the file's licenses"
            report(Code.LICENSE_NOT_ALLOWED, image.name, expected, _short(entry.get("license")))
        if image.size is None:
            found = f"{_short(entry.get('width'))} x {_short(entry.get('height'))}"
            report(Code.BAD_JSON, image.name, "a width and height in pixels", found)
        name = start + image.name.removeprefix("./")
        yield ListedImage(
            name,
            pictures.file(name),
            file,
            pictures.folder.uri,
            split,
            size=image.size,
            annotations=tuple(annotations.get(id, ())),
            license=license,
            source_url=label_text(entry.get("flickr_url", entry.get("coco_url", entry.get("source_url")))),
        )


def _annotations(
    document: Mapping[str, Any], images: Container[Any], report: Callable[[Code, str, str, str, int | None], None]
) -> dict[CocoKey, list[Mapping[str, Any]]]:
    """Return the annotations of each image. Report those without an image, and wrong ids and categories."""
    categories = {coco_key(each.get("id")) for each in objects(document.get("categories"))}
    found: dict[CocoKey, list[Mapping[str, Any]]] = {}
    ids: set[int] = set()
    for number, entry, id in coco_entries(document, "annotations", "image_id"):
        own = id_number(entry.get("id"))
        where = f"annotation number {number}" if own is None else f"mask {own}"
        if id is None or id not in images:
            expected = "the image_id of an image in the file"
            report(Code.ROW_IDENTITY, where, expected, _short(entry.get("image_id")), own)
            continue
        if own is not None:
            if own in ids:
                report(Code.ROW_IDENTITY, where, "a unique id", "that of another mask", own)
            ids.add(own)
        if categories and "category_id" in entry and coco_key(entry["category_id"]) not in categories:
            report(Code.BAD_LABEL, where, "the id of a category", _short(entry["category_id"]), own)
        found.setdefault(id, []).append(entry)
    return found


def _licenses(listed: Any) -> dict[Any, str]:
    """Map the ids of a file's licenses to their names, or else to their URLs. Licenses without either are left out."""
    found = {}
    for entry in objects(listed):
        name, id = label_text(entry.get("name")) or label_text(entry.get("url")), coco_key(entry.get("id"))
        if name and id is not None:
            found[id] = name
    return found


def _short(value: Any) -> str:
    return f"{value!r:.{_LONGEST}}"
