"""Masks of a segmint dataset as ground truth, with one part per shard and the released pixels."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.reader import Dataset, MaskAnnotation, Sample
from segmint.catalogs.dataset.versions.record import name_now
from segmint.catalogs.layout import DamagedDatasetError, image_name
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.threads import map_ahead
from segmint.infra.uris import redact
from segmint.infra.wording import listed
from segmint.operators.annotations.image import UnreadableMaskError, checked_rle
from segmint.operators.decoding import UndecodableError
from segmint.operators.images import decode_jpeg
from segmint.operators.schemas import AUTOMATIC, SOURCES
from segmint.pipeline.engine.evaluate.kinds import DATASET, TruthSelection
from segmint.pipeline.engine.evaluate.truth import (
    Decoders,
    PendingImage,
    SkippedTruth,
    Truth,
    TruthImage,
    TruthMask,
    UnreadableTruthError,
    empty_lines,
)

_CREDIT = ("attribution", "provider", "license")
"""Columns of the images table to keep for each drawn image."""

_THREADS = 16
_AHEAD = 64


SOURCES_OF: Mapping[TruthSelection, tuple[str, ...]] = {
    TruthSelection.HUMAN: tuple(source for source in SOURCES if source != AUTOMATIC),
    TruthSelection.AUTOMATIC: (AUTOMATIC,),
    TruthSelection.ALL: SOURCES,
}
"""Mask sources by selection; a mask without a source is automatic."""


@dataclass(frozen=True)
class _MaskColumns:
    """Values of a mask in the masks table."""

    source: str
    label: str | None


@dataclass(frozen=True)
class ShardTruthPart:
    """Images of a shard with masks from the chosen sources. If `only` isn't None, other image ids are skipped."""

    dataset: Location
    truth: int
    shard: int
    images: int
    sources: tuple[str, ...]
    columns: tuple[str, ...]
    only: frozenset[int] | None

    @property
    def name(self) -> str:
        """Name of the part for messages."""
        return f"shard {self.shard}"

    def pending(self) -> Iterator[PendingImage]:
        """Yield the shard's images in order. Raises `SegmintError` if one of its files can't be read."""
        dataset = Dataset.open(self.dataset)
        commit = next(iter(dataset.commits(only=[self.shard])), None)
        if commit is None:
            raise DamagedDatasetError(f"shard {self.shard} is no longer committed")
        told = _told(dataset, commit, self.sources, self.only)
        for sample in dataset.shard(commit, ids=told.keys()):
            yield PendingImage(
                str(sample.row.get("image_id", sample.id)),
                image_name(sample.id),
                partial(self._load, sample, told[sample.id]),
            )

    def _load(self, sample: Sample, told: Mapping[int, _MaskColumns], decoders: Decoders) -> TruthImage:
        if sample.jpeg is None:
            raise UnreadableTruthError("the dataset contains only annotations, no pixels")
        try:
            pixels = decoders.own.run(decode_jpeg, sample.jpeg)
            masks = [_mask(mask, told[mask.id]) for mask in sample.masks if mask.id in told]
        except (UndecodableError, UnreadableMaskError) as error:
            raise UnreadableTruthError(str(error)) from error
        size = (sample.row["height"], sample.row["width"])
        if pixels.shape[:2] != size:
            raise UnreadableTruthError(
                f"its JPEG is {pixels.shape[1]} x {pixels.shape[0]}, but its row says {size[1]} x {size[0]}"
            )
        return TruthImage(
            self.truth,
            str(sample.row.get("image_id", sample.id)),
            image_name(sample.id),
            pixels,
            [mask for mask in masks if mask.area],
            empty_lines(masks),
            {name: sample.row.get(name) for name in (*_CREDIT, *self.columns)},
        )


def open_dataset_truth(
    location: Location,
    number: int,
    chosen: TruthSelection = TruthSelection.HUMAN,
    columns: Sequence[str] = (),
    only: Collection[int] | None = None,
) -> Truth:
    """Plan the evaluation of a dataset. `number` is its index among the truths; `only` restricts it to these image ids.

    Only shards with chosen masks become parts, so the masks tables are read, but no images. `columns` are the image
    columns to keep. Raises `UsageError` if there is no dataset, no such mask, no pixels, or no such column.
    """
    dataset = Dataset.open(location)
    if dataset.manifest.config.get("release", {}).get("format") == "annotations":
        raise UsageError(f"{location} contains only annotations, but an evaluation needs pixels")
    ids = None if only is None else frozenset(only)
    sources = SOURCES_OF[chosen]
    parts: list[ShardTruthPart] = []
    skipped: list[SkippedTruth] = []
    for commit, found in map_ahead(partial(_plan, dataset, sources, ids), dataset.commits(), _THREADS, _AHEAD, "truth"):
        if isinstance(found, str):
            skipped.append(SkippedTruth(redact(str(location)), f"shard {commit.shard}", found))
        elif found:
            parts.append(ShardTruthPart(location, number, commit.shard, found, sources, tuple(columns), ids))
    if not parts and not skipped:
        raise UsageError(_no_masks(location, chosen, ids is not None))
    if parts and columns:
        _check_columns(dataset, parts[0].shard, columns)
    version = name_now(location)
    facts: dict[str, Any] = {
        "truth": chosen.value,
        "digest": version.digest,
        "version": version.number,
        "dataset": dataset.manifest.name,
    }
    return Truth(redact(str(location)), DATASET, parts, facts, skipped, location)


def _no_masks(location: Location, chosen: TruthSelection, restricted: bool) -> str:
    among = " among the requested images" if restricted else ""
    if chosen is not TruthSelection.HUMAN:
        return (
            f"{location} has no committed mask with source {listed(SOURCES_OF[chosen])}{among}: nothing to evaluate on"
        )
    return (
        f"{location} has no annotated masks{among} (source {', '.join(SOURCES_OF[chosen])}). Import some with "
        "`segmint import`, or use the model's own masks as ground truth with --truth automatic, which shows how two "
        "weights differ, but not how good they are"
    )


def _check_columns(dataset: Dataset, shard: int, columns: Sequence[str]) -> None:
    table = dataset.table(next(iter(dataset.commits(only=[shard]))), "images")
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise UsageError(
            f"the images of {dataset.location} have no column {missing[0]!r}: expected one of "
            f"{', '.join(table.column_names)}, label or source of a mask, or a file of groups"
        )


def _plan(
    dataset: Dataset, sources: tuple[str, ...], only: frozenset[int] | None, commit: Commit
) -> tuple[Commit, int | str]:
    """Return the number of a shard's images with chosen masks, or the reason the shard can't be read."""
    try:
        return commit, len(_told(dataset, commit, sources, only))
    except DamagedDatasetError as error:
        return commit, str(error)


def _told(
    dataset: Dataset, commit: Commit, sources: tuple[str, ...], only: frozenset[int] | None
) -> dict[int, dict[int, _MaskColumns]]:
    """Return the masks from these sources by image id and annotation id."""
    if not commit.counts.get("masks", 1):
        return {}
    table = dataset.table(commit, "masks")
    missing = [name for name in ("id", "annotation_id", "source", "label") if name not in table.column_names]
    if missing:
        raise DamagedDatasetError(f"the mask table of shard {commit.shard} has no column {missing[0]}")
    flat = table.select(["id", "annotation_id", "source", "label"])
    flat = flat.filter(pc.is_in(flat["source"], value_set=pa.array(sources)))
    if only is not None:
        flat = flat.filter(pc.is_in(flat["id"], value_set=pa.array(sorted(only), pa.int64())))
    told: dict[int, dict[int, _MaskColumns]] = {}
    for row in flat.to_pylist():
        told.setdefault(row["id"], {})[row["annotation_id"]] = _MaskColumns(row["source"], row["label"])
    return told


def _mask(mask: MaskAnnotation, told: _MaskColumns) -> TruthMask:
    rle = checked_rle({"size": list(mask.size), "counts": mask.counts})
    return TruthMask(mask.id, rle, mask.area, told.label, told.source)
