"""Masks of photographs in a Ray Data pipeline of your own.

    import ray
    import segmint.ray

    photographs = ray.data.read_binary_files("photos", include_paths=True)
    actors = ray.data.ActorPoolStrategy(size=2)
    masks = photographs.map_batches(segmint.ray.Masks, batch_format="pyarrow", batch_size=4, compute=actors)
    masks.write_parquet("masks")

This needs neither a catalog nor a configuration. It doesn't check licenses, and it doesn't redact anything.
"""

from typing import Any

import pyarrow as pa

from segmint.catalogs.findings import RejectedError
from segmint.infra.errors import SegmintError
from segmint.model.automatic.settings import MaskSettings
from segmint.model.device import first_line
from segmint.model.sam.load import Sam
from segmint.model.sam.predictor import Predictor
from segmint.operators.child import lacks_memory
from segmint.operators.prepare.ingest import decode_photograph
from segmint.operators.rows import MASK
from segmint.operators.segment.segment import mask_row
from segmint.pipeline.masks.generator import MaskGenerator, Weights

ADDED = (
    pa.field("height", pa.int32()),
    pa.field("width", pa.int32()),
    pa.field("masks", pa.list_(MASK)),
    pa.field("error", pa.string()),
)
"""Columns that `Masks` adds. The masks are in pixels of the upright photograph, which has this `height` and `width`."""


class Masks:
    """Stage for `ray.data.Dataset.map_batches` that replaces the bytes of photographs by masks.

    A row's photograph is in `column`: the bytes of a JPEG, PNG, WebP, TIFF, or HEIC. That column is removed, all other
    columns stay, and those in `ADDED` are appended. If a photograph can't be decoded or doesn't fit into memory, its
    `error` contains the reason, its other new columns are null, and the pipeline continues.

    The constructor takes the arguments of `segmint.MaskGenerator`, such as `weights="vit_h"`, `settings="sa1b"`,
    `device="cuda"`, or `points_per_side=16`, and raises the same errors. Each actor loads the model once.
    """

    def __init__(
        self,
        weights: Predictor | Sam | Weights = "auto",
        settings: MaskSettings | str | None = None,
        *,
        column: str = "bytes",
        **keys: Any,
    ) -> None:
        self._generator = MaskGenerator(weights, settings, **keys)
        self._column = column

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return a batch with masks. Raises TypeError unless the batch is a table, and ValueError for wrong columns."""
        if not isinstance(batch, pa.Table):
            raise TypeError(f"the batch is a {type(batch).__name__}: pass batch_format='pyarrow' to map_batches")
        if self._column not in batch.column_names:
            raise ValueError(f"there is no column {self._column!r}, only {', '.join(batch.column_names)}: set column=")
        others = batch.drop_columns([self._column])
        taken = [field.name for field in ADDED if field.name in others.column_names]
        if taken:
            raise ValueError(f"the rows already have columns {', '.join(taken)}, which Masks adds: rename them first")
        rows = [self._masks_of(value.as_py()) for value in batch[self._column]]
        for field in ADDED:
            others = others.append_column(field, pa.array([row.get(field.name) for row in rows], field.type))
        return others

    def _masks_of(self, photograph: Any) -> dict[str, Any]:
        if not isinstance(photograph, bytes):
            return {"error": f"the photograph is a {type(photograph).__name__}: expected bytes"}
        try:
            pixels = decode_photograph(photograph)
            found = self._generator.generate(pixels)
        except (RejectedError, SegmintError) as error:
            return {"error": str(error)}
        except Exception as error:
            if not lacks_memory(error):
                raise
            return {"error": f"not enough memory: {first_line(error)}"}
        return {"height": pixels.shape[0], "width": pixels.shape[1], "masks": [mask_row(each) for each in found]}
