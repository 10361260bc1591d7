"""Labels and prompts of a shard's masks, from its masks table, because the JSON in tars keeps SA-1B's keys."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from segmint.catalogs.dataset.submissions import MOST_MASKS

MASK_LABEL = ("label", "label_score", "label_source")
"""Columns of the masks table about a mask's label. `MaskAnnotation` has attributes with the same names."""

MASK_SAID = (*MASK_LABEL, "prompts")
"""Columns of the masks table that readers add to the masks in an image's JSON."""

NO_LABEL = (None, None, None, ())
"""Values of `MASK_SAID` for a mask with neither a label nor prompts."""

MODEL = "model:"
"""Prefix of the `label_source` of a label that a model set. The SHA-256 of the model follows it."""

LabelsById = Mapping[int, tuple[str | None, float | None, str | None, tuple[Mapping[str, Any], ...]]]
"""Values of the columns `MASK_SAID`, keyed by annotation id."""


class ShardLabels:
    """Labels and prompts of the masks in a shard.

    Each mask with either takes 24 bytes of memory, and about 60 bytes per prompt; other masks take no memory.
    """

    def __init__(self, table: pa.Table) -> None:
        """Keep the rows of `table`, whose columns are `annotation_id` and `MASK_SAID`."""
        table = table.sort_by("annotation_id")
        self._ids = table.column("annotation_id").to_numpy()
        self._scores = table.column("label_score").to_numpy()
        self._texts = [_encoded(table.column(name)) for name in ("label", "label_source")]
        self._prompts = table.column("prompts")

    def of_image(self, image: int) -> LabelsById:
        """Return an image's (label, label_score, label_source, prompts), keyed by annotation id."""
        if not len(self._ids):
            return {}
        span = slice(*np.searchsorted(self._ids, [image * MOST_MASKS, (image + 1) * MOST_MASKS]).tolist())
        labels, sources = ([words[place] for place in places[span].tolist()] for words, places in self._texts)
        sources = [None if label is None else source for label, source in zip(labels, sources, strict=True)]
        scores = [None if score != score else score for score in self._scores[span].tolist()]
        prompts = [_known(each or ()) for each in self._prompts[span].to_pylist()]
        return dict(zip(self._ids[span].tolist(), zip(labels, scores, sources, prompts, strict=True), strict=True))


def is_of_model(source: str | None) -> bool:
    """Return whether a model set the label with this `label_source`."""
    return source is not None and source.startswith(MODEL)


def submitted_label(mask: Mapping[str, Any]) -> str | None:
    """Return a mask's label in the form that submissions use.

    An empty text means that a person removed the label, and None means that the mask never had one.
    """
    label: str | None = mask["label"]
    return "" if label is None and mask["label_source"] is not None else label


def may_label(mask: Mapping[str, Any], source: str) -> bool:
    """Return whether the model `source` may set a mask's label.

    A model may replace the label of another model. It may also label a mask without a label, unless a person removed
    the label.
    """
    found = mask["label_source"]
    return found != source and (is_of_model(found) or (mask["label"] is None and found is None))


def _known(prompts: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """Return prompts without the keys that their kind doesn't use."""
    return tuple({key: value for key, value in prompt.items() if value is not None} for prompt in prompts)


def _encoded(column: pa.ChunkedArray) -> tuple[list[str | None], NDArray[np.int32]]:
    """Return the distinct texts in a column, and the index of each row's text among them.

    The last text is None, for nulls.
    """
    encoded = column.combine_chunks().dictionary_encode()
    words = encoded.dictionary.to_pylist()
    return [*words, None], encoded.indices.fill_null(len(words)).to_numpy()
