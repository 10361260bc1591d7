"""Sample of a correction study: images drawn evenly over strata and exported for people to correct their masks.

In the SAM paper (section 5), professionals corrected the masks of 500 random images of SA-1B.
"""

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.dataset.reader import Dataset, Sample
from segmint.catalogs.dataset.versions import VersionName, name_now
from segmint.catalogs.layout import ANNOTATION_COLUMNS, json_sha256
from segmint.infra.errors import UsageError
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.location import Location
from segmint.infra.wording import counted
from segmint.operators.audit.masks import of_people
from segmint.operators.rows import MASKS_PER_IMAGE_LIMIT
from segmint.pipeline.engine.study.files import MANIFEST, json_file
from segmint.pipeline.export.export import OutputFolder, draw_key, make_writer, refuse_existing, write_samples
from segmint.pipeline.export.formats import Format
from segmint.pipeline.quality.statistics.comparison import MASKS_PER_IMAGE

SCHEMA_VERSION = 1

_FRACTION = 32  # bits


@dataclass(frozen=True, order=True)
class ImageStratum:
    """Stratum of images from the same country with similar numbers of masks. `country` is empty if it is unknown."""

    bin: int
    country: str

    @property
    def masks(self) -> str:
        """Label of the paper's bin of masks per image."""
        return MASKS_PER_IMAGE[self.bin].label


@dataclass(frozen=True)
class DrawnSample:
    """Drawn ids and population of each stratum. Images without automatic masks are only counted."""

    images: Mapping[ImageStratum, list[int]]
    population: Mapping[ImageStratum, int]
    without_masks: int

    @property
    def ids(self) -> list[int]:
        """Ids of all drawn images, in ascending order."""
        return sorted(number for numbers in self.images.values() for number in numbers)


@dataclass(frozen=True)
class StudySample:
    """Result of writing a sample. Annotated masks are counted, but aren't part of the sample."""

    output: str
    images: int
    masks: int
    masks_of_people: int  # annotated masks in the drawn images
    population: int
    without_masks: int
    strata: int
    version: VersionName

    def lines(self) -> list[str]:
        return [
            f"{counted(self.images, 'image')} with {counted(self.masks, 'mask')}, drawn from {self.population:,} in "
            f"{self.strata} strata; {counted(self.without_masks, 'image')} without automatic masks excluded",
            *([f"not included: {counted(self.masks_of_people, 'annotated mask')}"] if self.masks_of_people else []),
            f"for correction, in {self.output}: instances.json (COCO), or tasks.json with label_config.xml "
            "(Label Studio), and images/",
            f"next: segmint study score {self.output} --corrected FILE",
            self.version.line(),
        ]


def sample_study(location: Location, count: int, seed: int, output: Location) -> StudySample:
    """Draw `count` images of the dataset at `location`, and write them with their masks to the folder `output`.

    The study is about the model, so only automatic masks are included. The same dataset, count, and seed give the same
    sample. `manifest.json` is written last and pins each mask by its hash. Raises `UsageError` if there is no dataset,
    if it has no such mask, if `output` already contains a study, or if Label Studio's SDK isn't installed.
    """
    dataset = Dataset.open(location)
    file = output / MANIFEST
    refuse_existing(location, output, file)
    with ScratchFolder() as folder:
        scratch = Path(folder)
        version = name_now(location)
        into = OutputFolder(location, "study sample", output, version, scratch)
        formats = [
            make_writer(format, scratch, dataset.manifest, version, output.uri)
            for format in (Format.COCO, Format.LABEL_STUDIO)
        ]
        drawn = draw_stratified(dataset, count, seed)
        if not drawn.ids:
            raise UsageError(f"{location} has no committed images with automatic masks, so there is nothing to correct")
        pins = PinWriter(scratch, dataset.manifest, version, drawn, count, seed)
        of_people_ids: list[int] = []
        samples = _sampled_images(dataset, drawn.ids, of_people_ids)
        written = write_samples(samples, [*formats, pins], into, file, version)
    return StudySample(
        output=str(output),
        images=written.images,
        masks=written.masks,
        masks_of_people=len(of_people_ids),
        population=sum(drawn.population.values()),
        without_masks=drawn.without_masks,
        strata=len(drawn.population),
        version=version,
    )


def draw_stratified(dataset: Dataset, count: int, seed: int) -> DrawnSample:
    """Draw `count` images with automatic masks, or all of them if there are fewer, in proportion to the strata.

    Every image has the same probability. This keeps at most `count` ids per stratum in memory.
    """
    lowest: dict[ImageStratum, list[tuple[int, int]]] = {}  # a heap of (-draw key, id) for each stratum
    population: dict[ImageStratum, int] = {}
    without = 0
    for number, masks, country in _image_rows(dataset):
        if masks == 0:
            without += 1
            continue
        stratum = stratum_of(masks, country)
        population[stratum] = population.get(stratum, 0) + 1
        heap = lowest.setdefault(stratum, [])
        entry = (-int.from_bytes(draw_key(seed, number)), number)
        if len(heap) < count:
            heapq.heappush(heap, entry)
        else:
            heapq.heappushpop(heap, entry)
    shares = allocate(population, count, seed)
    images = {
        stratum: [number for _, number in sorted(lowest[stratum], reverse=True)[:wanted]]
        for stratum, wanted in shares.items()
    }
    return DrawnSample(images, population, without)


def stratum_of(masks: int, country: str | None) -> ImageStratum:
    """Return the stratum of an image, given its number of masks and its country."""
    bin = next(index for index, bin in enumerate(MASKS_PER_IMAGE) if bin.holds(masks))
    return ImageStratum(bin, country or "")


def allocate(population: Mapping[ImageStratum, int], count: int, seed: int) -> dict[ImageStratum, int]:
    """Decide how many images to draw from each stratum, `count` in total. The seed decides how shares are rounded.

    Rounding each share to the nearest integer would never draw from small strata. Systematic sampling avoids this: the
    images, sorted by stratum, are visited in equal steps, from a start that depends on the seed.
    """
    total = sum(population.values())
    count = min(count, total)
    start = int.from_bytes(draw_key(seed, 0)[: _FRACTION // 8])
    steps = iter([((step << _FRACTION) + start) * total // (count << _FRACTION) for step in range(count)])
    shares: dict[ImageStratum, int] = {}
    passed, step = 0, next(steps, total)
    for stratum in sorted(population):
        passed += population[stratum]
        shares[stratum] = 0
        while step < passed:
            shares[stratum] += 1
            step = next(steps, total)
    return shares


def mask_sha256(segmentation: Mapping[str, Any]) -> str:
    """Compute the hash that pins a mask: the SHA-256 of its compressed run lengths and size, as canonical JSON."""
    return json_sha256(segmentation)


class PinWriter:
    """Writer that collects the drawn images, and then creates the study's manifest."""

    def __init__(
        self, scratch: Path, manifest: DatasetManifest, version: VersionName, drawn: DrawnSample, asked: int, seed: int
    ) -> None:
        self._path = scratch / MANIFEST
        self._images: list[dict[str, Any]] = []
        self._head = {
            "schema_version": SCHEMA_VERSION,
            "dataset": {"name": manifest.name, "config_sha256": manifest.config_sha256, **asdict(version)},
            "seed": seed,
            "asked": asked,
            "without_masks": drawn.without_masks,
            "strata": [
                {
                    "masks": stratum.masks,
                    "country": stratum.country or None,
                    "images": drawn.population[stratum],
                    "drawn": len(drawn.images[stratum]),
                }
                for stratum in sorted(drawn.population)
            ],
        }

    def add(self, sample: Sample) -> None:
        """Add an image with its masks."""
        masks = [{"id": mask.id, "sha256": mask_sha256(mask.rle)} for mask in sample.masks]
        size = {"width": sample.row["width"], "height": sample.row["height"]}
        self._images.append({"id": sample.id, "image_id": sample.row["image_id"], **size, "masks": masks})

    def finish(self) -> dict[str, Path]:
        """Create the manifest, and return it by its path in the study's folder."""
        self._path.write_text(json_file({**self._head, "images": self._images}), encoding="utf-8")
        return {MANIFEST: self._path}


def _image_rows(dataset: Dataset) -> Iterator[tuple[int, int, str | None]]:
    """Yield id, number of automatic masks, and country of each image."""
    for commit in dataset.commits():
        table = dataset.table(commit, "images")
        people = Counter(id // MASKS_PER_IMAGE_LIMIT for id in _of_people(dataset, commit, table))
        rows = zip(*(table[name].to_pylist() for name in ("id", "masks", "country")), strict=True)
        yield from ((id, masks - people[id], country) for id, masks, country in rows)


def _of_people(dataset: Dataset, commit: Commit, images: pa.Table) -> frozenset[int]:
    """Return the ids of a shard's annotated masks. `images` is the shard's table of images."""
    said = [name for name in ANNOTATION_COLUMNS if name != "next_mask"]
    if all(images[name].null_count == images.num_rows for name in said):
        return frozenset()
    masks = dataset.table(commit, "masks", ["annotation_id", "source"])
    return frozenset(masks.filter(of_people(masks))["annotation_id"].to_pylist())


def _sampled_images(dataset: Dataset, ids: Sequence[int], left_out: list[int]) -> Iterator[Sample]:
    """Yield the drawn images with their automatic masks, and add the ids of their annotated masks to `left_out`."""
    drawn = frozenset(ids)
    shards = {(id - 1) // dataset.manifest.images_per_shard for id in ids}
    for commit in dataset.commits(shards):
        people = _of_people(dataset, commit, dataset.table(commit, "images"))
        for sample in dataset.shard(commit, drawn):
            if sample.jpeg is None:
                raise UsageError("this dataset has only annotations, and masks can't be corrected without images")
            left_out += [mask.id for mask in sample.masks if mask.id in people]
            yield replace(sample, masks=[mask for mask in sample.masks if mask.id not in people])
