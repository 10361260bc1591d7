"""Order of the decoder's outputs, which decides whether pages may call them subpart, part, and whole.

SAM's three outputs are meant for a subpart, a part, and the whole object at a point, but nothing in the model enforces
this order. Pages therefore use these names only next to a measurement: the share of points at which the outputs' areas
increase in order.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class OutputOrder:
    """Measurement at grid points: their number, and at how many points the areas of masks 0, 1, and 2 increase."""

    points: int
    rising: int


MEASURED: Mapping[str, OutputOrder] = {
    # MobileSAM
    "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f": OutputOrder(points=864, rising=789),
}
"""Results of `benchmarks/masks/output_order.py`, by the SHA-256 of the weights."""
