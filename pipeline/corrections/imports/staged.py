"""The masks of a file that `segmint.pipeline.corrections.imports.staging` sorted, read shard by shard."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from segmint.operators.schemas import ANNOTATION_STAGE
from segmint.pipeline.corrections.annotated_masks import NewMask
from segmint.pipeline.corrections.imports.merge import ImageImport

SHOWN = 20
"""Images and masks that are named for people; all are counted."""


@dataclass(frozen=True)
class StagedMasks:
    """The masks of a file, by ordinals of the dataset. The folder must be there as long as this is used."""

    folder: Path
    ordinals: tuple[tuple[int, int], ...]  # spans [a, b) of the shards with an image of the file, by shard
    shards: tuple[int, ...]
    images: int  # of the file, each once
    masks: int  # of these images
    unknown: int = 0  # images of the file that the dataset does not have
    ambiguous: int = 0  # those whose name several images have
    superseded: int = 0  # those that an earlier entry of the file is of
    first_unknown: str | None = None
    first_ambiguous: str | None = None
    unreadable: tuple[str, ...] = ()  # the first `SHOWN` masks and images that cannot be read
    all_unreadable: int = 0
    left: Mapping[str, int] = field(default_factory=dict)  # masks and images that are not for the dataset, by reason

    def answers(self, first: int, stop: int) -> dict[int, ImageImport]:
        """Return what the file has for the images with the ordinals [first, stop)."""
        span = [("ordinal", ">=", first), ("ordinal", "<", stop)]
        masks: dict[int, list[NewMask]] = {}
        sizes: dict[int, set[tuple[int, int]]] = {}
        rows = pq.read_table(self.folder / "masks.parquet", filters=span).to_pylist()
        for row in sorted(rows, key=lambda row: int(row["number"])):
            said = {name: value for name, value in (row["said"] or {}).items() if value is not None}
            mask = NewMask(row["counts"], row["id"], row["label"], said)
            masks.setdefault(row["ordinal"], []).append(mask)
            sizes.setdefault(row["ordinal"], set()).add((row["height"], row["width"]))
        found = {}
        for row in pq.read_table(self.folder / "answers.parquet", filters=span).to_pylist():
            ordinal = row["ordinal"]
            own = {(row["height"], row["width"])} if row["height"] is not None else set()
            found[ordinal] = ImageImport(
                masks.get(ordinal, ()),
                frozenset(sizes.get(ordinal, set()) | own),
                row["unreadable"],
                _as_rows_say(row["of_image"] or {}),
            )
        return found


def _as_rows_say(of_image: Mapping[str, Any]) -> dict[str, Any]:
    """Return columns of `images` under their names in rows, whose own `stage` is that of a verdict."""
    return {ANNOTATION_STAGE if name == "stage" else name: value for name, value in of_image.items()}
