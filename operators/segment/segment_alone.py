"""Trial of a suspect (an image that a worker was processing when it died) in a new worker, after a control image."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from segmint.infra.arrays import Pixels
from segmint.infra.stopping import Deadline, outlive_signals
from segmint.operators.child import is_out_of_memory
from segmint.operators.prepare.release import ReleaseConfig, release
from segmint.operators.rows import PROMPTED, to_table
from segmint.operators.segment.segment import SegmentSettings, decode_row, find_frugally, load_generator, mask_columns


class SegmentAlone:
    """Actor that segments a suspect image. The driver uses it to find out whether the process survives."""

    def __init__(self, settings: SegmentSettings, timeout_s: float) -> None:
        """Load the model. If an image takes more than `timeout_s` seconds in a stage, this process ends."""
        self._generator = load_generator(settings)
        self._deadline = Deadline(timeout_s)

    def node(self) -> str:
        """Return the id of this worker's node, and make the worker ignore signals that stop processes from now on."""
        outlive_signals()
        return str(ray.get_runtime_context().get_node_id())

    def has_memory_for(self, table: pa.Table) -> bool:
        """Segment the only row of a table of `PREPARED`. Return False if memory ran out; this process is unusable then.

        Any other error of segmentation propagates.
        """
        (row,) = table.to_pylist()
        try:
            with self._deadline.running():
                image, original = decode_row(row)
            with self._deadline.running():
                found = find_frugally(self._generator, image, original)
            with self._deadline.running():
                mask_columns(self._generator.finish(found))
        except Exception as error:
            if is_out_of_memory(error):
                return False
            raise
        return True


SHAPES: Sequence[Mapping[str, Any]] = (
    {"box": [30.0, 40.0, 100.0, 100.0]},
    {"points": [[190.0, 140.0], [80.0, 90.0]], "point_labels": [1, 0]},
)
"""Prompts of the control image: a box around its disc, and points inside its rectangle and outside."""


def control_table(prompts: Sequence[Mapping[str, Any]] = SHAPES) -> pa.Table:
    """Return a table with one row of `PROMPTED` that every worker can segment: 256 x 192 pixels, and prompts."""
    released = release(control_image(), ReleaseConfig())
    image = {"width": released.width, "height": released.height, "release": released.jpeg}
    names = {"image_id": "control", "uri": "control.jpg", "license": "CC0-1.0"}  # custom stages may use them
    return to_table([{"ordinal": 0, "id": 1, **names, **image, "regions": [], "prompts": [*prompts]}], PROMPTED)


def control_image() -> Pixels:
    """Draw a disc and a rectangle on a gray gradient: (192, 256, 3) uint8 RGB."""
    pixels = np.zeros((192, 256, 3), np.uint8)
    pixels[:] = np.linspace(40, 120, 256).astype(np.uint8)[:, None]
    rows, columns = np.ogrid[:192, :256]
    pixels[(rows - 90) ** 2 + (columns - 80) ** 2 < 50**2] = (220, 60, 40)
    pixels[110:170, 150:230] = (40, 90, 210)
    return pixels
