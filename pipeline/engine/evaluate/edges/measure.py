"""Edge detection as a measure, with a row of counts at each threshold for each image and set of weights."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa

from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.storage.location import Location
from segmint.operators.annotations.label_maps import ENDINGS, UnreadableMapError, label_masks, read_label_map
from segmint.operators.evaluate.boundaries import LabelMap, label_boundaries
from segmint.operators.evaluate.edges import (
    THRESHOLDS,
    TOLERANCE,
    EdgeCounts,
    EdgeMap,
    count_edges,
    edge_scores,
    edge_settings,
    find_edges,
    ignored_pixels,
    thresholds,
)
from segmint.operators.rows import Row
from segmint.pipeline.engine.evaluate.measure import HEAD, Model, Predictions, with_embeddings
from segmint.pipeline.engine.evaluate.truth import Truth, TruthImage

COUNTS = ("found_matched", "found", "true_matched", "true")
_LARGEST_MAP = 1 << 30  # bytes


@dataclass(frozen=True)
class Annotator:
    """Additional annotator, with a folder of label maps. `names` maps the stem of an image's name to a file name."""

    folder: Location
    names: Mapping[str, str]

    def labels(
        self, stem: str, size: tuple[int, int], ignore: Collection[int] = (), is_edge_map: bool = False
    ) -> LabelMap | None:
        """Return an image's label map, or None if this annotator has none. Raises ValueError if the map is invalid.

        An edge map is a picture, so its values are scaled to 8 bits.
        """
        name = self.names.get(stem)
        if name is None:
            return None
        try:
            labels = read_label_map((self.folder / name).read(max_bytes=_LARGEST_MAP), name, is_picture=is_edge_map)
            if not is_edge_map:
                label_masks(labels, ignore)  # checks that the numbers stand for objects
        except (UnreadableMapError, SegmintError, OSError) as error:
            raise ValueError(f"the label map {self.folder / name}: {error}") from error
        if labels.shape != size:
            raise ValueError(
                f"the label map {self.folder / name} is {labels.shape[1]} x {labels.shape[0]} pixels, "
                f"but the image is {size[1]} x {size[0]}"
            )
        return labels


def open_annotator(folder: Location) -> Annotator:
    """List an additional annotator's label maps. Raises `UsageError` if there are none, or if two share a stem."""
    names: dict[str, str] = {}
    for entry in folder.list():
        path = PurePosixPath(entry.name)
        if path.suffix.lower() in ENDINGS:
            if path.stem in names:
                raise UsageError(f"{folder} has two label maps for one image: {names[path.stem]} and {entry.name}")
            names[path.stem] = entry.name
    if not names:
        raise UsageError(f"{folder} contains no label maps: expected files ending in {', '.join(ENDINGS)}")
    return Annotator(folder, names)


@dataclass(frozen=True)
class EdgesMeasure:
    """Edge detection in each image. Edges are matched with the boundaries in each annotator's label map."""

    points_per_side: int = 16
    cuts: int = THRESHOLDS
    tolerance: float = TOLERANCE
    annotators: tuple[Annotator, ...] = field(default_factory=tuple)
    predicted: Mapping[str, Annotator] = field(default_factory=dict)  # by the hash of the predictions: their edge maps

    name = "edges"

    @property
    def schema(self) -> pa.Schema:
        """`HEAD`, the weights, the number of annotators, the image's best F-measure, and the counts by threshold."""
        counts = pa.list_(pa.int64())
        return pa.schema(
            [
                *HEAD,
                pa.field("weights", pa.int32(), nullable=False),  # index of the weights in the command, from 0
                pa.field("annotators", pa.int32(), nullable=False),
                pa.field("f", pa.float64(), nullable=False),
                *(pa.field(name, counts, nullable=False) for name in COUNTS),
            ]
        )

    def check(self, truths: Sequence[Truth]) -> None:
        """Raise `UsageError` if a truth isn't a folder of label maps."""
        for truth in truths:
            if truth.kind != "label maps":
                raise UsageError(
                    f"{truth.name} is a {truth.kind}: edges are measured on label maps, which number every pixel, "
                    "so boundaries are complete. Masks may not cover every boundary"
                )

    def rows(self, models: Sequence[Model], image: TruthImage) -> list[Row]:
        """Find edges with each model and count the matches. Raises ValueError if an annotator's map is invalid."""
        assert image.label_map is not None, "checked before"
        others = (each.labels(image.image_id, image.size, image.ignore) for each in self.annotators)
        maps = [image.label_map, *(each for each in others if each is not None)]
        truths = [label_boundaries(labels) for labels in maps]
        ignored = ignored_pixels(maps, image.ignore, self.tolerance) if image.ignore else None
        cuts = thresholds(self.cuts)
        rows = []
        for weights, model in enumerate(with_embeddings(models, image.pixels)):
            if isinstance(model, Predictions):
                edges = _predicted(self.predicted[model.sha256], image)
            else:
                edges = find_edges(*model, edge_settings(self.points_per_side))
            counts = count_edges(edges, truths, cuts, self.tolerance, ignored)
            best = edge_scores([counts], cuts).ois
            lists = {name: getattr(counts, name).tolist() for name in COUNTS}
            rows.append({"weights": weights, "annotators": len(maps), "f": best, **lists})
        return rows


def _predicted(maps: Annotator, image: TruthImage) -> EdgeMap:
    """Read an 8-bit edge map as shares of 255. Raises ValueError if it is missing or invalid."""
    values = maps.labels(image.image_id, image.size, is_edge_map=True)
    if values is None:
        raise ValueError(f"{maps.folder} has no edge map for it")
    if values.min() < 0 or values.max() > 255:
        raise ValueError(f"its edge map in {maps.folder} has values up to {values.max()}: expected 0 to 255")
    return (values / 255).astype(np.float32)


def counts_of(row: Row) -> EdgeCounts:
    """Return the counts of a row."""
    return EdgeCounts(*(np.array(row[name], dtype=np.int64) for name in COUNTS))
