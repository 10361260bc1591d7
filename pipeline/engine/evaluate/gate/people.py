"""Which images of a dataset have masks that people made, and which models assisted them."""

import sys
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

import pyarrow as pa

from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.reader import Dataset
from segmint.catalogs.layout import DamagedDatasetError
from segmint.infra.storage.location import Location
from segmint.infra.threads import map_ahead
from segmint.operators.schemas import AUTOMATIC
from segmint.pipeline.engine.evaluate.gate.tally import ASSISTED, CORRECTED

_THREADS = 16
_AHEAD = 64


@dataclass
class PeopleMasks:
    """Images with masks of people; `assisted` counts assisted masks by image and the SHA-256 of the model.

    `corrected` has the SHA-256 of the model whose answer was corrected, by annotation id.
    """

    images: set[int] = field(default_factory=set)
    assisted: Counter[tuple[int, str]] = field(default_factory=Counter)
    corrected: dict[int, str] = field(default_factory=dict)

    def models(self, images: Collection[int]) -> Counter[str]:
        """The assisted masks of some images by the model's SHA-256."""
        found: Counter[str] = Counter()
        for (image, model), count in self.assisted.items():
            if image in images:
                found[model] += count
        return found


def find_people_masks(location: Location) -> PeopleMasks:
    """Read the tables of masks; a shard whose table cannot be read is passed over: an evaluation lists it."""
    dataset = Dataset.open(location)
    found = PeopleMasks()

    def table(commit: Commit) -> pa.Table | None:
        try:
            return dataset.table(commit, "masks")
        except DamagedDatasetError:
            return None

    own = dataset.manifest.weights.sha256  # of masks without a model
    for read in map_ahead(table, dataset.commits(), _THREADS, _AHEAD, "masks"):
        if read is None or not {"source", "annotation_id"} <= set(read.column_names):
            continue
        models = read["model"].to_pylist() if "model" in read.column_names else [None] * read.num_rows
        columns = (read[name].to_pylist() for name in ("id", "annotation_id", "source"))
        for image, mask, source, model in zip(*columns, models, strict=True):
            if source is not None and source != AUTOMATIC:
                found.images.add(image)
                if source == ASSISTED:
                    found.assisted[image, sys.intern(model or own)] += 1
                elif source == CORRECTED:
                    found.corrected[mask] = sys.intern(model or own)
    return found
