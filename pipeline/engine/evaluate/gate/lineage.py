"""Lineage of weights, read from the `training.json` next to them, and the images they weren't trained on."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from segmint.catalogs.dataset.manifest import DatasetManifest, load_manifest
from segmint.catalogs.dataset.outputs import read_notes
from segmint.catalogs.dataset.versions.digest import current_digest
from segmint.catalogs.dataset.versions.record import read_version, version_numbers
from segmint.catalogs.layout import DamagedDatasetError, image_name
from segmint.catalogs.lineage import TRAINING, TrainingDatasetRef, TrainingRound, check_lineage
from segmint.infra.assets.known import ASSETS, is_web_address
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import absolute, parent
from segmint.infra.wording import listed
from segmint.pipeline.engine.evaluate.measure import EvaluatedWeights
from segmint.pipeline.engine.train.data.images import (
    NoImagesError,
    SkippedImages,
    TrainingDataset,
    TrainingImages,
    find_images,
    open_datasets,
)
from segmint.pipeline.engine.train.data.splits import held_out, similar_groups
from segmint.pipeline.engine.train.record import TrainingRecord, read_record
from segmint.pipeline.engine.train.settings import DatasetKeys, TrainConfig

_PUBLISHED = frozenset(asset.sha256 for asset in ASSETS.values())
"""SHA-256 of each published set of weights that segmint supports. segmint didn't train these."""


@dataclass(frozen=True)
class Lineage:
    """Training history of weights: all rounds that trained the weights or their ancestors.

    `known` is False for foreign weights without a `training.json`, and for a lineage that starts with such weights.
    `share` is the smallest held-out share of all rounds. It is None without rounds, and 0 if the share of a round isn't
    known. `begun` contains the lineage's entries without datasets, which describe the weights that the first round
    started from.
    """

    weights: EvaluatedWeights
    known: bool
    rounds: tuple[TrainingRound, ...] = ()
    share: float | None = None
    begun: tuple[TrainingRound, ...] = ()

    @property
    def hashes(self) -> frozenset[str]:
        """SHA-256 of these weights and all their ancestors."""
        return frozenset([self.weights.sha256, *(each.weights for each in (*self.begun, *self.rounds))])

    @property
    def ancestors(self) -> frozenset[str]:
        """SHA-256 of the lineage's earlier weights. Datasets that they built may contain masks of training images.

        Published weights are excluded, because they built many datasets but weren't trained on any of them.
        """
        return frozenset(each.weights for each in (*self.begun, *self.rounds)) - _PUBLISHED

    @property
    def unexplained(self) -> frozenset[str]:
        """SHA-256 of the weights in the lineage whose training data is unknown."""
        return self.hashes - {each.weights for each in self.rounds} - _PUBLISHED

    @property
    def names(self) -> frozenset[str]:
        """Names of all datasets that the rounds trained on."""
        return frozenset(dataset.name for each in self.rounds for dataset in each.datasets)

    @property
    def digests(self) -> frozenset[str]:
        """Digests of all dataset versions that the rounds trained on."""
        return frozenset(dataset.digest for each in self.rounds for dataset in each.datasets)

    def to_dict(self) -> dict[str, Any]:
        """Convert the lineage to JSON-serializable values."""
        return {
            **self.weights.to_dict(),
            "known": self.known,
            "held_out_share": self.share,
            "rounds": [each.model_dump(mode="json") for each in self.rounds],
        }

    def line(self) -> str:
        """Return the lineage as a sentence without a period."""
        if not self.known and not self.rounds:
            return (
                f"{self.weights.label}: unknown origin, because there's no {TRAINING} for these weights next to "
                "them. Images count as held out unless a dataset records that the weights were trained on it"
            )
        if not self.rounds:
            return f"{self.weights.label}: not trained by segmint"
        names = ", ".join(sorted(self.names))
        line = f"{self.weights.label}: trained on {names}, with {100 * (self.share or 0):g}% held out"
        if self.known:
            return line
        begun = self.begun[0].name if self.begun else "the first round's initial weights"
        return (
            f"{line}; it's unknown what {begun} was trained on before that, so images count as held out from that "
            "training unless a dataset records it"
        )


def lineage_of(weights: EvaluatedWeights, storage: Storage) -> Lineage:
    """Read the lineage of weights. Raises `UsageError` if `training.json` is unreadable."""
    if weights.sha256 in _PUBLISHED:
        return Lineage(weights, known=True)
    if is_web_address(weights.name):
        return Lineage(weights, known=False)
    file = Location(storage, parent(absolute(weights.name))) / TRAINING
    record = read_record(file, TrainingRecord)
    if record is None or record.weights != weights.sha256:
        return Lineage(weights, known=False)
    try:
        check_lineage(record.weights, record.lineage, record.datasets)
        if not record.datasets:
            raise ValueError("it lists no datasets")
    except ValueError as error:
        raise UsageError(
            f"{file} was not written by segmint train: {error}. Restore the file that the training run wrote"
        ) from error
    rounds = tuple(each for each in record.lineage if each.datasets)
    begun = tuple(each for each in record.lineage if not each.datasets)
    known = not record.lineage[0].datasets and all(each.weights in _PUBLISHED for each in begun)
    share = min(each.held_out_share or 0.0 for each in rounds)
    return Lineage(weights, known, rounds, share, begun)


@dataclass(frozen=True)
class UntrainedImages:
    """Split of a dataset's images by whether any of the weights were trained on them.

    `ids` contains the images that no weights were trained on, or is None for all images. `trained` contains all other
    images: training images, images similar to training images, and images with an unknown role. `why` explains the
    split. `groups` maps the file name of each readable image to a group number, which similar images of all datasets in
    the command share. `skipped` lists the unreadable images and shards.
    """

    ids: frozenset[int] | None
    trained: frozenset[int]
    why: str
    groups: Mapping[str, int] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()

    def of(self, images: Collection[int]) -> frozenset[int]:
        """Return which of these images no weights were trained on."""
        return frozenset(images) if self.ids is None else self.ids & frozenset(images)


@dataclass(frozen=True)
class _DatasetHistory:
    """History of a dataset: its manifest, the digests of all its versions, and `noted`, the weights trained on it."""

    manifest: DatasetManifest
    digests: frozenset[str]
    noted: frozenset[str]

    @classmethod
    def read(cls, dataset: Location) -> "_DatasetHistory":
        digests = {current_digest(dataset), *(read_version(dataset, each).digest for each in version_numbers(dataset))}
        noted = {value for note in read_notes(dataset) if note.command == "train" for value in note.files.values()}
        return cls(load_manifest(dataset), frozenset(digests), frozenset(noted))

    def trained(self, lineage: Lineage) -> bool:
        """Return whether a lineage was trained on the dataset or on a dataset that its images come from."""
        before = [dataset for each in self.manifest.lineage for dataset in each.datasets]
        names = {self.manifest.name, *(dataset.name for dataset in before)}
        digests = self.digests | {dataset.digest for dataset in before}
        return bool(
            names & lineage.names
            or digests & lineage.digests
            or self.noted & lineage.hashes
            or self.manifest.weights.sha256 in lineage.ancestors
        )

    def share(self, lineage: Lineage) -> float:
        """Return the share of the dataset that the lineage's training held out, or 0 if it is unknown."""
        return 0.0 if self.noted & lineage.unexplained else lineage.share or 0.0

    def is_one(self, dataset: TrainingDatasetRef) -> bool:
        """Return whether `dataset`, from a training round, is a version of this dataset."""
        return dataset.name == self.manifest.name or dataset.digest in self.digests


def untrained_images(
    targets: Sequence[str], lineages: Sequence[Lineage], storage: Storage
) -> dict[str, UntrainedImages]:
    """Find the images in each target dataset that none of the weights were trained on.

    Weights count as trained on a dataset in any of these cases: their lineage names the dataset or one of its versions,
    the dataset records them, or weights of their lineage built it. They also count as trained on it if the dataset's
    own lineage shares datasets with theirs, because annotated masks are carried over from one dataset to the next.

    A dataset that was trained on is split as in training, with the smallest held-out share of all rounds. Its held-out
    images count as untrained. If a round trained on this dataset together with another one that isn't in `targets`,
    none of its images count as untrained, because they may be similar to images of the missing dataset. In a dataset
    that wasn't trained on, an image counts as untrained unless it is similar to a trained image.

    Raises `DamagedDatasetError` if a shard of a dataset that was trained on can't be read.
    """
    if not targets:
        return {}
    known = {target: _DatasetHistory.read(Location(storage, target)) for target in targets}
    trained = {target: [each for each in lineages if known[target].trained(each)] for target in targets}
    share = min((known[target].share(each) for target in targets for each in trained[target]), default=1.0)
    places = {absolute(target): target for target in targets}
    config = TrainConfig(
        datasets=tuple(DatasetKeys(uri=place, masks="all") for place in places),
        output=next(iter(places)),  # required, but nothing is written
        max_mask_area_ratio=1.0,
        bad_shards="skip",
    )
    opened, skipped = open_datasets(config, storage), SkippedImages()
    images: TrainingImages | None = None
    try:
        images, read = find_images(config, opened, None, skipped)
    except NoImagesError as error:
        read = error.held
    for dataset, target in zip(opened, places.values(), strict=True):
        if trained[target] and not read[dataset.key].whole:
            raise DamagedDatasetError(_unreadable(dataset, skipped))
    if images is None:
        return {
            target: UntrainedImages(
                frozenset(), frozenset(), "none of its images has a readable mask", {}, _skipped(dataset, skipped)
            )
            for dataset, place in zip(opened, places, strict=True)
            for target in targets
            if absolute(target) == place
        }
    groups = similar_groups(images)
    seen = np.array([bool(trained[target]) for target in places.values()])
    held = held_out(images, share, seen[images.entry], groups)
    found: dict[str, UntrainedImages] = {}
    for entry, (place, target) in enumerate(places.items()):
        here = images.entry == entry
        ids, others = (frozenset(images.ids[chosen & here].tolist()) for chosen in (held, ~held))
        numbers = dict(zip(map(image_name, images.ids[here].tolist()), groups[here].tolist(), strict=True))
        missing = _missing(trained[target], known.values())
        kept: frozenset[int] | None = ids
        labels = " and ".join(lineage.weights.label for lineage in trained[target])
        if missing:
            kept, others = frozenset(), ids | others
            why = (
                f"{labels} trained on it together with {listed(missing)}, not given here. Its images may be "
                "near-duplicates of those, so none count. Pass those datasets too"
            )
        elif trained[target]:
            remain = f"its held-out {100 * share:g}% remains" if share else "nothing was held out"
            why = f"{labels} trained on it: {remain}"
        elif any(trained.values()):
            why = "in no lineage: images that aren't near-duplicates of trained ones count as held out"
        else:
            kept, others, why = None, frozenset(), "in no lineage: all images count as held out"
        lines = _skipped(opened[entry], skipped)
        found |= {
            each: UntrainedImages(kept, others, why, numbers, lines) for each in targets if absolute(each) == place
        }
    return found


def _missing(lineages: Sequence[Lineage], known: Collection[_DatasetHistory]) -> list[str]:
    """Return the datasets that aren't in `known`, although a round trained on them together with another dataset."""
    several = [each.datasets for lineage in lineages for each in lineage.rounds if len(each.datasets) > 1]
    return sorted(
        {each.name for datasets in several for each in datasets if not any(one.is_one(each) for one in known)}
    )


def _skipped(dataset: TrainingDataset, skipped: SkippedImages) -> tuple[str, ...]:
    """Describe the first unreadable images and shards of a dataset."""
    lines = []
    for each in skipped.listed:
        if each["dataset"] == dataset.manifest.name and "detail" in each:
            where = f"shard {each['shard']}" if "shard" in each else f"image {each['image']}"
            lines.append(f"{where}: {each['detail']}")
    return tuple(lines)


def _unreadable(dataset: TrainingDataset, skipped: SkippedImages) -> str:
    shown = "; ".join(line for line in _skipped(dataset, skipped) if line.startswith("shard "))
    return (
        f"{dataset.location} was trained on, but has unreadable shards, so near-duplicates of their images "
        f"can't be excluded: {shown}. Repair them with `segmint repair {dataset.location}`"
    )
