"""Sample of a privacy study: released images drawn at random, in which people mark missed faces and plates."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.dataset.reader import Dataset, Sample
from segmint.catalogs.dataset.versions.record import VersionName, name_now
from segmint.infra.errors import UsageError
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.location import Location
from segmint.infra.wording import counted
from segmint.pipeline.export.export import refuse_existing, write_samples
from segmint.pipeline.export.folder import OutputFolder
from segmint.pipeline.export.label_studio import IMAGE_KEY, LABEL_CONFIG, image_url
from segmint.pipeline.export.samples import draw_images, read_images
from segmint.pipeline.quality.statistics.ratings import MISSED_KINDS
from segmint.pipeline.quality.study.files import MANIFEST
from segmint.pipeline.quality.study.kind import StudyKind

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
        pin = {"sha256": hashlib.sha256(sample.jpeg).hexdigest()}
        self._images.append({"id": sample.id, "image_id": sample.row["image_id"], **size, **pin})
        data = {"image": image_url(self._folder, sample.id), IMAGE_KEY: sample.id}
        self._tasks.append({"id": sample.id, "data": data, "meta": self._meta})

    def finish(self) -> dict[str, Path]:
        """Create the files and return them by their paths in the study's folder. The manifest comes last."""
        labels = [{"name": kind, "type": "rectangle", "attributes": []} for kind in MISSED_KINDS]
        texts = {
            LABEL_CONFIG: LABELING,
            TASKS: _json(self._tasks),
            CVAT_LABELS: _json(labels),
            MANIFEST: _json({**self._head, "images": self._images}),
        }
        for name, text in texts.items():
            (self._scratch / name).write_text(text, encoding="utf-8")
        return {name: self._scratch / name for name in texts}


def _json(value: Any) -> str:
    return f"{json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)}\n"
