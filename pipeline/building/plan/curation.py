"""What `segmint catalog curate` takes: it reads every image of the catalog once, at a reduced scale."""

from dataclasses import dataclass

import numpy as np

from segmint.infra.wording import counted, number, size
from segmint.pipeline.building.plan.cpu_stages import SIZES
from segmint.pipeline.building.plan.estimates import Estimate

CPU_S = (0.015, 0.018, 0.028, 0.037, 0.056)
"""CPU seconds of an image of `SIZES` megapixels, without scorers: JPEGs on one core of an AMD EPYC."""


@dataclass(frozen=True)
class Curation:
    """The cost of looking at all images of a catalog."""

    rows: int
    seconds_an_image: float  # of one core, recorded on another machine
    core_hours: float
    bytes_in: Estimate | None  # None: unknown without a sample
    scorers: int  # whose time is not known

    def line(self) -> str:
        """The cost as a line of a plan."""
        read = "" if self.bytes_in is None else f", reading {size(self.bytes_in.value)}"
        more = f", and {counted(self.scorers, 'scorer')} of unknown cost" if self.scorers else ""
        return (
            f"{'curate':<10}{number(self.core_hours):>16} core-hours once, of all {self.rows:,} rows{read}: "
            f"{self.seconds_an_image:.2g} s an image{more}, recorded on another CPU, not measured here"
        )


def price_curation(rows: int, megapixels: float, scorers: int, an_image: Estimate | None) -> Curation:
    """Price a curation of so many rows; `an_image` is how many bytes an image has, where a sample says it."""
    seconds = float(np.interp(megapixels, SIZES, CPU_S)) * max(1.0, megapixels / SIZES[-1])
    return Curation(rows, seconds, rows * seconds / 3600, None if an_image is None else an_image.scaled(rows), scorers)
