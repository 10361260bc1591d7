"""The sample of a correction study: images drawn evenly over strata, written for people to correct their masks.

The SAM paper (section 5) had professionals correct the masks of 500 random images of SA-1B.
"""

import hashlib
import heapq
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.dataset.reader import Dataset, Sample
from segmint.catalogs.layout import canonical_json
from segmint.infra.errors import UsageError
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import join
from segmint.pipeline.export.coco import compressed_rle
from segmint.pipeline.export.export import make_writer, refuse_standing, write_samples
from segmint.pipeline.export.formats import Format
from segmint.pipeline.export.samples import lot, read_images
from segmint.pipeline.statistics.paper import MASKS_PER_IMAGE

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1

_FRACTION = 32  # bits


@dataclass(frozen=True, order=True)
class Stratum:
    """Images alike in their number of masks and their country, which is empty where it is not known."""

    bin: int
    country: str

    @property
    def masks(self) -> str:
        """The numbers of masks, as the paper bins them."""
        return MASKS_PER_IMAGE[self.bin].label


@dataclass(frozen=True)
class Drawn:
    """The images that were drawn, by stratum, out of how many; those without masks cannot be."""

    images: Mapping[Stratum, list[int]]
    population: Mapping[Stratum, int]
    without_masks: int

    @property
    def ids(self) -> list[int]:
        """The numbers of all images drawn, ascending."""
        return sorted(number for numbers in self.images.values() for number in numbers)


@dataclass(frozen=True)
class StudySample:
    """What was written."""

    output: str
    images: int
    masks: int
    population: int
    without_masks: int
    strata: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    def lines(self) -> list[str]:
        """As a person reads it."""
        return [
            f"{self.images:,} images with {self.masks:,} masks, drawn out of {self.population:,} in {self.strata} "
            f"strata; {self.without_masks:,} images without masks were left out",
            f"for correction, in {self.output}: instances.json (COCO), or tasks.json with label_config.xml "
            "(Label Studio), and images/",
            f"then: segmint study score {self.output} --corrected FILE",
        ]


def sample_study(uri: str, storage: Storage, count: int, seed: int, output: str) -> StudySample:
    """Draws `count` images of a dataset and writes them with their masks into the folder `output`.

    The same dataset, count and seed give the same files. `manifest.json` comes last and pins each mask by its hash.
    Raises `UsageError` where there is no dataset or no mask in it, where `output` holds a study already, and where
    Label Studio's SDK is not installed.
    """
    dataset = Dataset.open(uri, storage)
    file = join(output, MANIFEST)
    refuse_standing(storage, uri, output, file)
    with TemporaryDirectory(prefix="segmint-") as folder:
        scratch = Path(folder)
        formats = [
            make_writer(format, scratch, dataset.manifest, output) for format in (Format.COCO, Format.LABEL_STUDIO)
        ]
        drawn = draw_stratified(dataset, count, seed)
        if not drawn.ids:
            raise UsageError(f"{uri} has no committed image with masks: there is nothing to correct")
        pins = PinWriter(scratch, dataset.manifest, drawn, count, seed)
        samples = read_images(dataset, range(dataset.manifest.shards), drawn.ids)
        written = write_samples(_with_pictures(samples), [*formats, pins], storage, output, file)
    return StudySample(
        output=output,
        images=written.images,
        masks=written.masks,
        population=sum(drawn.population.values()),
        without_masks=drawn.without_masks,
        strata=len(drawn.population),
    )


def draw_stratified(dataset: Dataset, count: int, seed: int) -> Drawn:
    """Draws `count` images with masks, or all where there are fewer, spread over the strata as the images are.

    Every image is as likely to be drawn as any other. Memory is that of `count` numbers a stratum.
    """
    lowest: dict[Stratum, list[tuple[int, int]]] = {}  # of each stratum, a heap of (-lot, number)
    population: dict[Stratum, int] = {}
    without = 0
    for number, masks, country in _image_rows(dataset):
        if masks == 0:
            without += 1
            continue
        stratum = stratum_of(masks, country)
        population[stratum] = population.get(stratum, 0) + 1
        heap = lowest.setdefault(stratum, [])
        entry = (-int.from_bytes(lot(seed, number)), number)
        if len(heap) < count:
            heapq.heappush(heap, entry)
        else:
            heapq.heappushpop(heap, entry)
    shares = allocate(population, count, seed)
    images = {
        stratum: [number for _, number in sorted(lowest[stratum], reverse=True)[:wanted]]
        for stratum, wanted in shares.items()
    }
    return Drawn(images, population, without)


def stratum_of(masks: int, country: str | None) -> Stratum:
    """The stratum of an image with this many masks."""
    bin = next(index for index, bin in enumerate(MASKS_PER_IMAGE) if bin.holds(masks))
    return Stratum(bin, country or "")


def allocate(population: Mapping[Stratum, int], count: int, seed: int) -> dict[Stratum, int]:
    """How many images to draw of each stratum, `count` in all: its share, rounded up or down by the seed.

    Equal steps through all images, laid out stratum by stratum, from a start that the seed decides: rounding to the
    nearest would never draw of small strata.
    """
    total = sum(population.values())
    count = min(count, total)
    start = int.from_bytes(lot(seed, 0)[: _FRACTION // 8])
    steps = iter([((step << _FRACTION) + start) * total // (count << _FRACTION) for step in range(count)])
    shares: dict[Stratum, int] = {}
    passed, step = 0, next(steps, total)
    for stratum in sorted(population):
        passed += population[stratum]
        shares[stratum] = 0
        while step < passed:
            shares[stratum] += 1
            step = next(steps, total)
    return shares


def mask_sha256(segmentation: Mapping[str, Any]) -> str:
    """What pins a mask: the SHA-256 of its compressed run lengths and size, as canonical JSON."""
    return hashlib.sha256(canonical_json(segmentation)).hexdigest()


class PinWriter:
    """Gathers what was drawn, and gives the study's manifest."""

    def __init__(self, scratch: Path, manifest: DatasetManifest, drawn: Drawn, asked: int, seed: int) -> None:
        self._path = scratch / MANIFEST
        self._images: list[dict[str, Any]] = []
        self._head = {
            "schema_version": SCHEMA_VERSION,
            "dataset": {"name": manifest.name, "config_sha256": manifest.config_sha256},
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
        """Takes an image with its masks."""
        masks = [{"id": mask.id, "sha256": mask_sha256(compressed_rle(mask))} for mask in sample.masks]
        size = {"width": sample.row["width"], "height": sample.row["height"]}
        self._images.append({"id": sample.id, "image_id": sample.row["image_id"], **size, "masks": masks})

    def finish(self) -> dict[str, Path]:
        """The manifest, by its name below the study's folder."""
        text = json.dumps({**self._head, "images": self._images}, indent=1, ensure_ascii=False, allow_nan=False)
        self._path.write_text(f"{text}\n", encoding="utf-8")
        return {MANIFEST: self._path}


def _with_pictures(samples: Iterable[Sample]) -> Iterator[Sample]:
    for sample in samples:
        if sample.jpeg is None:
            raise UsageError(
                "this dataset holds annotations without images: nobody can correct masks without a picture"
            )
        yield sample


def _image_rows(dataset: Dataset) -> Iterator[tuple[int, int, str | None]]:
    """Number, masks and country of each image."""
    columns = ["id", "masks", "country"]
    for commit in dataset.commits():
        table = dataset.table(commit, "images", columns)
        yield from zip(*(table[name].to_pylist() for name in columns), strict=True)
