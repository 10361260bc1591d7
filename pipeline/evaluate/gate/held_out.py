"""Which images of the datasets of a gate no weights were trained on."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from segmint.catalogs.dataset.manifest import load_manifest
from segmint.catalogs.dataset.outputs import read_notes
from segmint.catalogs.dataset.versions.digest import current_digest
from segmint.catalogs.dataset.versions.record import read_version, version_numbers
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import absolute
from segmint.pipeline.evaluate.gate.lineage import Lineage
from segmint.pipeline.train.data.images import LeftOut, find_images, open_datasets
from segmint.pipeline.train.data.splits import held_out
from segmint.pipeline.train.settings import DatasetKeys, TrainConfig


@dataclass(frozen=True)
class Untrained:
    """The images of a dataset that no weights were trained on; `ids` None: all of them.

    `trained` are those that were, or that show the same as one that was. `why` says how that is known.
    """

    ids: frozenset[int] | None
    trained: frozenset[int]
    why: str

    def of(self, images: Collection[int]) -> frozenset[int]:
        """Those of some images that no weights were trained on."""
        return frozenset(images) if self.ids is None else self.ids & frozenset(images)


def untrained_images(targets: Sequence[str], lineages: Sequence[Lineage], storage: Storage) -> dict[str, Untrained]:
    """Find the images of datasets, by the names that the user gave, that no weights were trained on.

    Weights were trained on a dataset if their lineage names it or one of its versions, or if it notes that it trained
    them. A dataset that was built with weights of the lineage, or of another one that begins with the same datasets,
    counts as such a dataset: masks of people are carried over to it. Of these an image is held out as in training, by
    the smallest share of all rounds. An image of another dataset is, too, unless it shows the same as one that is not.
    """
    trained = {target: _trained_by(Location(storage, target), lineages) for target in targets}
    if not any(trained.values()):
        return {
            target: Untrained(None, frozenset(), "in no lineage: all images count as held out") for target in targets
        }
    share = min(lineage.share or 0.0 for group in trained.values() for lineage in group)
    places = {absolute(target): target for target in targets}
    config = TrainConfig(
        datasets=tuple(DatasetKeys(uri=place, masks="all") for place in places),
        output=next(iter(places)),  # nothing is written
        max_mask_area_ratio=1.0,
        bad_shards="skip",
    )
    images, _ = find_images(config, open_datasets(config, storage), None, LeftOut())
    seen = np.array([bool(trained[target]) for target in places.values()])
    held = held_out(images, share, seen[images.entry])
    found: dict[str, Untrained] = {}
    for entry, (place, target) in enumerate(places.items()):
        ids, others = (frozenset(images.ids[chosen & (images.entry == entry)].tolist()) for chosen in (held, ~held))
        if trained[target]:
            labels = " and ".join(lineage.weights.label for lineage in trained[target])
            kept = f"images of its held-out {100 * share:g} % remain" if share else "no share of it was held out"
            why = f"{labels} trained on it: {kept}"
        else:
            why = "in no lineage: images that show none of those trained on count as held out"
        found |= {each: Untrained(ids, others, why) for each in targets if absolute(each) == place}
    return found


def _trained_by(dataset: Location, lineages: Sequence[Lineage]) -> list[Lineage]:
    """The lineages that a dataset is in."""
    manifest = load_manifest(dataset)
    digests = {current_digest(dataset), *(read_version(dataset, each).digest for each in version_numbers(dataset))}
    noted = {value for note in read_notes(dataset) if note.command == "train" for value in note.files.values()}
    return [
        lineage
        for lineage in lineages
        if manifest.name in lineage.names
        or digests & lineage.digests
        or noted & lineage.hashes
        or manifest.weights.sha256 in {each.weights for each in lineage.rounds}
        or {dataset.digest for each in manifest.lineage for dataset in each.datasets} & lineage.digests
    ]
