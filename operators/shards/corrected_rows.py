"""Redact: more regions of a released image obliterated, by hand, after the image was committed.

The released JPEG is decoded, obliterated and encoded again as a release is; its masks are not touched.
"""

from collections.abc import Sequence
from dataclasses import asdict

from segmint.catalogs.dataset.regions import WantedRegion
from segmint.operators.images import decode_jpeg
from segmint.operators.prepare.deidentify import Region
from segmint.operators.prepare.mosaic import rectangle, redact_patches
from segmint.operators.prepare.release import ReleaseConfig, release
from segmint.operators.rows import Row

MANUAL = "manual"
"""The source of a region that a person asked for."""


def redact_row(row: Row, wanted: Sequence[WantedRegion], config: ReleaseConfig) -> Row:
    """A described row with these boxes of its released image obliterated, and in `regions` and their counts.

    A box that is among the row's regions already is passed over, so that doing it again changes nothing; the very row
    is returned where that leaves none. The boxes must lie inside the image.
    """
    if not wanted:
        return row
    known = [Region(**region) for region in row["regions"]]
    new = {source_region(row, box): box for box in wanted}
    new = {region: box for region, box in new.items() if region not in known}
    if not new:
        return row
    image = decode_jpeg(row["release"])
    shape = image.shape[0], image.shape[1]
    patches = [rectangle(box.x, box.y, box.w, box.h, shape) for box in new.values()]
    clean = redact_patches(image, [patch for patch in patches if patch is not None])
    regions = [*known, *new]
    return {
        **row,
        "release": release(clean, config).jpeg,
        "regions": [asdict(region) for region in regions],
        "faces": sum(region.kind == "face" for region in regions),
        "plates": sum(region.kind == "plate" for region in regions),
    }


def source_region(row: Row, box: WantedRegion) -> Region:
    """A box of the released image as `regions` has it: the smallest one around it in pixels of the upright source."""

    def scaled(start: int, length: int, source: int, released: int) -> tuple[int, int]:
        first = start * source // released
        return first, -(-(start + length) * source // released) - first

    x, w = scaled(box.x, box.w, row["source_width"], row["width"])
    y, h = scaled(box.y, box.h, row["source_height"], row["height"])
    return Region(box.kind, 1.0, x, y, w, h, MANUAL)
