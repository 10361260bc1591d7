"""Privacy study: its sample, the share of images with a missed face or plate, and its upper confidence bound."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.dataset.reader import Dataset, Sample
from segmint.catalogs.dataset.regions import write_regions
from segmint.catalogs.dataset.versions import VersionName, name_now
from segmint.catalogs.layout import bytes_sha256, image_name
from segmint.infra.arrays import Box, Size
from segmint.infra.errors import UsageError
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.wording import counted
from segmint.model.detectors.detection import bounds
from segmint.operators.annotations.image import image_number
from segmint.operators.annotations.label_studio import answers_of
from segmint.pipeline.engine.study.files import CORRECTED, MANIFEST, StudyKind, json_file, read_manifest
from segmint.pipeline.export.export import OutputFolder, draw_images, read_images, refuse_existing, write_samples
from segmint.pipeline.export.label_studio import IMAGE_KEY, LABEL_CONFIG, image_url
from segmint.pipeline.quality.statistics.ratings import ANY, MISSED_KINDS, MissedCounts, PrivacyScore, missed_share

SCHEMA_VERSION = 1
"""Kinds of regions that people can mark, as in the files that `segmint redact` reads."""

TASKS = "tasks.json"
CVAT_LABELS = "cvat_labels.json"

_COLORS = ("#d62728", "#1f77b4", "#9467bd")
_LABELS = "\n".join(
    f'    <Label value="{kind}" background="{color}"/>' for kind, color in zip(MISSED_KINDS, _COLORS, strict=True)
)
LABELING = f"""\
<View>
  <Image name="image" value="$image" zoom="true"/>
  <RectangleLabels name="missed" toName="image">
{_LABELS}
  </RectangleLabels>
</View>
"""
"""Label Studio's labeling interface."""


@dataclass(frozen=True)
class PrivacySample:
    """Result of writing a sample."""

    output: str
    images: int
    population: int
    version: VersionName

    def lines(self) -> list[str]:
        return [
            f"{counted(self.images, 'image')}, drawn from {self.population:,}",
            f"for marking missed faces and plates, in {self.output}: images/, with {TASKS} and {LABEL_CONFIG} (Label "
            f"Studio) or {CVAT_LABELS} (CVAT)",
            f"next: segmint study score {self.output} --corrected FILE --regions missed.jsonl",
            self.version.line(),
        ]


def sample_privacy(location: Location, count: int, seed: int, output: Location) -> PrivacySample:
    """Draw `count` released images, or all if there are fewer, and write them to the folder `output`.

    All images are equally likely, whether or not they have masks. The same dataset, count, and seed give the same
    sample. `manifest.json` is written last. Raises `UsageError` if there is no dataset, if it has no released image, or
    if `output` already contains a study.
    """
    dataset = Dataset.open(location)
    file = output / MANIFEST
    refuse_existing(location, output, file)
    if dataset.manifest.config.get("release", {}).get("format") == "annotations":
        raise UsageError(f"{location} has only annotations, so there are no images to inspect")
    shards = range(dataset.manifest.shards)
    version = name_now(location)
    with ScratchFolder() as scratch:
        folder = OutputFolder(location, "study sample", output, version, Path(scratch))
        population = sum(commit.counts.get("images", 0) for commit in dataset.commits())
        drawn = draw_images(dataset, shards, count, seed)
        if not drawn:
            raise UsageError(f"{location} has no committed images to inspect")
        writer = _Writer(Path(scratch), dataset.manifest, version, output.uri, population, count, seed)
        samples = read_images(dataset, shards, drawn)
        written = write_samples(samples, [writer], folder, file, version)
    return PrivacySample(str(output), written.images, population, version)


class _Writer:
    """Writer that collects the drawn images, and then creates the tasks, the labels, and the study's manifest."""

    def __init__(
        self,
        scratch: Path,
        manifest: DatasetManifest,
        version: VersionName,
        folder: str,
        population: int,
        asked: int,
        seed: int,
    ) -> None:
        self._scratch = scratch
        self._folder = folder
        self._meta = {"dataset_digest": f"sha256:{version.digest}", "dataset_version": version.number}
        self._head = {
            "schema_version": SCHEMA_VERSION,
            "kind": StudyKind.PRIVACY,
            "dataset": {"name": manifest.name, "config_sha256": manifest.config_sha256, **asdict(version)},
            "seed": seed,
            "asked": asked,
            "population": population,
        }
        self._images: list[dict[str, Any]] = []
        self._tasks: list[dict[str, Any]] = []

    def add(self, sample: Sample) -> None:
        """Add an image."""
        if sample.jpeg is None:
            raise UsageError("this dataset has only annotations, so there are no images to inspect")
        size = {"width": sample.row["width"], "height": sample.row["height"]}
        pin = {"sha256": bytes_sha256(sample.jpeg)}
        self._images.append({"id": sample.id, "image_id": sample.row["image_id"], **size, **pin})
        data = {"image": image_url(self._folder, sample.id), IMAGE_KEY: sample.id}
        self._tasks.append({"id": sample.id, "data": data, "meta": self._meta})

    def finish(self) -> dict[str, Path]:
        """Create the files and return them by their paths in the study's folder. The manifest comes last."""
        labels = [{"name": kind, "type": "rectangle", "attributes": []} for kind in MISSED_KINDS]
        texts = {
            LABEL_CONFIG: LABELING,
            TASKS: json_file(self._tasks),
            CVAT_LABELS: json_file(labels),
            MANIFEST: json_file({**self._head, "images": self._images}),
        }
        for name, text in texts.items():
            (self._scratch / name).write_text(text, encoding="utf-8")
        return {name: self._scratch / name for name in texts}


_DIGITS = 3  # rounds away the errors of tools that convert pixels to percentages


def score_privacy(folder: Location, marked: Location | None = None, regions: Location | None = None) -> PrivacyScore:
    """Count the marks in a privacy study's images, given a COCO or Label Studio file.

    If anything was marked, `regions` is written for `segmint redact`. Raises `UsageError` if there is no such study, or
    if the file of marks is missing or in an unknown format.
    """
    manifest = read_manifest(folder)
    try:
        if (manifest["kind"], manifest["schema_version"]) != (StudyKind.PRIVACY, SCHEMA_VERSION):
            raise UsageError(
                f"{folder}: a study of kind {manifest['kind']!r}, schema_version {manifest['schema_version']!r}; "
                f"expected {StudyKind.PRIVACY.value!r}, {SCHEMA_VERSION}"
            )
        sizes: dict[int, Size] = {image["id"]: (image["height"], image["width"]) for image in manifest["images"]}
        dataset = manifest["dataset"]
        version = VersionName(dataset["digest"], dataset["number"])
        name, config = str(dataset["name"]), str(dataset["config_sha256"])
        population = int(manifest["population"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{folder}: {MANIFEST} is damaged ({error!r}). Draw the sample again") from error
    marks = read_marks(marked or folder / CORRECTED, sizes)
    rows = [{"id": image, **vars(each)} for image, found in sorted(marks.found.items()) for each in found]
    if regions is not None and rows:
        write_regions(regions, rows)
    return PrivacyScore(
        name=name,
        config_sha256=config,
        images=len(sizes),
        population=population,
        answered=len(marks.found),
        missed=tuple(_missed(marks, kind) for kind in (*MISSED_KINDS, ANY)),
        unreadable=tuple(marks.unreadable),
        foreign=marks.foreign,
        further=marks.further,
        version=version,
        regions=str(regions) if regions is not None and rows else None,
    )


class UnreadableMarkError(ValueError):
    """Error for an unreadable box, with the reason as its message."""


@dataclass(frozen=True)
class Mark:
    """Box around something that should have been redacted, in whole pixels within the released image."""

    kind: str
    x: int
    y: int
    w: int
    h: int


@dataclass
class Marks:
    """Boxes that people marked. Every reviewed image has a key in `found`, even if it has no marks.

    If an image was reviewed several times, the marks of all reviews count, because one sighting is enough. `unreadable`
    lists the reason for each unreadable mark, and `doubtful` contains the images with such marks. `foreign` counts
    images that aren't in the sample, and `further` counts repeated reviews.
    """

    sizes: Mapping[int, Size]  # sizes of the drawn images, by id
    found: dict[int, list[Mark]] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    doubtful: set[int] = field(default_factory=set)
    foreign: int = 0
    further: int = 0

    def begin(self, image: int | None) -> int | None:
        """Record a review of an image. Return the image's id, or None if the review doesn't count."""
        if image is None or image not in self.sizes:
            self.foreign += 1
            return None
        self.further += image in self.found
        self.found.setdefault(image, [])
        return image

    def take(self, image: int, kind: Any, box: Box, size: tuple[Any, Any] | None) -> None:
        """Add a box. `size` is the image's size according to the tool.

        Raises `UnreadableMarkError` if the kind isn't in `MISSED_KINDS`, if the image's size differs, or if the box
        contains no pixel.
        """
        height, width = self.sizes[image]
        if size is not None and size != (width, height):
            raise UnreadableMarkError(
                f"it was drawn in an image of {size[0]} x {size[1]} pixels, but the released one is {width} x {height}"
            )
        name = str(kind).strip().lower()
        if name not in MISSED_KINDS:
            raise UnreadableMarkError(f"its label is {kind!r}, expected {', '.join(MISSED_KINDS)}")
        left, top = (max(0, math.floor(round(value, _DIGITS))) for value in box[:2])
        right, bottom = (math.ceil(round(value, _DIGITS)) for value in box[2:])
        right, bottom = min(width, right), min(height, bottom)
        if right <= left or bottom <= top:
            raise UnreadableMarkError(f"its box {list(box)} is outside the image")
        self.found[image].append(Mark(name, left, top, right - left, bottom - top))

    def leave_out(self, image: int, id: object, why: object) -> None:
        """Record an unreadable mark."""
        self.unreadable.append(f"{image_name(image)}, mark {'without an id' if id is None else id}: {why}")
        self.doubtful.add(image)


def read_marks(file: Location, sizes: Mapping[int, Size]) -> Marks:
    """Read the marks in a file. Raises `UsageError` if the file is missing, or neither COCO nor Label Studio's."""
    try:
        document = json.loads(file.read())
        if isinstance(document, list):
            return read_label_studio(document, sizes)
        return read_coco(document, sizes)
    except NotFoundError as error:
        raise UsageError(f"there is no file {file}. Pass the annotators' file with --corrected") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"{file} can't be read as marks ({type(error).__name__}: {error}): expected COCO JSON, or Label Studio's "
            "JSON or JSON_MIN"
        ) from error


def read_coco(document: Mapping[str, Any], sizes: Mapping[int, Size]) -> Marks:
    """Read the boxes from a COCO document, whose images are the images that people reviewed.

    Images are identified by file name, because tools renumber them. Raises `KeyError` or `TypeError` for other
    documents.
    """
    marks = Marks(sizes)
    kinds = {category["id"]: category["name"] for category in document["categories"]}
    images: dict[Any, tuple[int, tuple[Any, Any] | None]] = {}
    known = {image["id"] for image in document["images"]}
    for image in document["images"]:
        number = marks.begin(image_number(image["file_name"]))
        if number is not None:
            size = (image["width"], image["height"]) if "width" in image and "height" in image else None
            images[image["id"]] = number, size
    for annotation in document["annotations"]:
        home = images.get(annotation["image_id"])
        if annotation["image_id"] not in known:
            raise ValueError(f"a mark is in image {annotation['image_id']!r}, which isn't in the file")
        if home is None:
            continue  # already counted as foreign
        try:
            marks.take(home[0], kinds[annotation["category_id"]], _coco_box(annotation), home[1])
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            marks.leave_out(home[0], annotation.get("id"), _why(error))
    return marks


def read_label_studio(tasks: Iterable[Mapping[str, Any]], sizes: Mapping[int, Size]) -> Marks:
    """Read the rectangles from Label Studio's JSON or JSON_MIN.

    All annotations of a task that weren't canceled count. A task without such an annotation counts as not reviewed.
    Raises `KeyError` or `TypeError` if the values aren't tasks.
    """
    marks = Marks(sizes)
    for task in tasks:
        for _, regions in answers_of(task):
            number = marks.begin(image_number(str(task.get("data", task)["image"])))
            if number is None:
                continue
            for region in regions:
                _take_region(marks, number, region)
    return marks


def _take_region(marks: Marks, number: int, region: Mapping[str, Any]) -> None:
    value = region.get("value", region)
    try:
        if "rectanglelabels" not in value:
            raise UnreadableMarkError(f"its type is {region.get('type')}, not a rectangle with a label")
        sized = {**region, **value}  # JSON_MIN stores the size in the value
        size = (sized["original_width"], sized["original_height"])
        labels = value["rectanglelabels"]
        marks.take(number, labels[0] if len(labels) == 1 else labels, _box(value, *size), size)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        marks.leave_out(number, region.get("id"), _why(error))


def _box(value: Mapping[str, Any], width: float, height: float) -> Box:
    """Return the box around a Label Studio rectangle, which is in percent and rotated clockwise about its top left."""
    x, w = (value[key] * width / 100 for key in ("x", "width"))
    y, h = (value[key] * height / 100 for key in ("y", "height"))
    return _turned((x, y, x + w, y + h), value.get("rotation"), (x, y))


def _coco_box(annotation: Mapping[str, Any]) -> Box:
    """Return the box around a COCO box, which CVAT rotates clockwise about its center."""
    x, y, w, h = annotation["bbox"]
    rotation = (annotation.get("attributes") or {}).get("rotation")
    return _turned((x, y, x + w, y + h), rotation, (x + w / 2, y + h / 2))


def _turned(box: Box, degrees: float | None, pivot: tuple[float, float]) -> Box:
    if not degrees:
        return box
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = [(x - pivot[0], y - pivot[1]) for x in box[::2] for y in box[1::2]]
    return bounds((pivot[0] + x * cosine - y * sine, pivot[1] + x * sine + y * cosine) for x, y in corners)


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, UnreadableMarkError) else f"{type(error).__name__}: {error}"


def _missed(marks: Marks, kind: str) -> MissedCounts:
    def is_of(mark: Mark) -> bool:
        return kind in (ANY, mark.kind)

    images = {image for image, found in marks.found.items() if any(map(is_of, found))} | marks.doubtful
    return missed_share(
        kind, sum(is_of(mark) for found in marks.found.values() for mark in found), len(images), len(marks.found)
    )
