"""A measure without weights: the area of each mask. What is left of an evaluation are its truths and its run."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from segmint.pipeline.engine.evaluate.result import HEAD
from segmint.pipeline.engine.evaluate.truth import Truth, TruthImage


class AreaMeasure:
    """A row a mask; refuses images named in `refused`."""

    name = "areas"
    schema = pa.schema([*HEAD, pa.field("mask", pa.int64()), pa.field("area", pa.int64())])

    def __init__(self, refused: tuple[str, ...] = ()) -> None:
        self.refused = refused

    def check(self, truths: Sequence[Truth]) -> None:
        """Any truth will do."""

    def rows(self, models: Sequence[Any], image: TruthImage) -> list[dict[str, Any]]:
        """The areas; KeyError for a refused image, as a bug would raise."""
        if image.name in self.refused:
            raise KeyError(image.name)
        assert image.pixels.shape[:2] == image.size
        return [{"mask": mask.id, "area": mask.area} for mask in image.masks]
