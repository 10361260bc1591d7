"""Countries with their region and income level, as the Segment Anything paper groups them.

`countries.csv` contains the codes of ISO 3166-1 alpha-2, and XK, which is in the World Bank's list. `region` is one of
the paper's five regions. These are the regions of the United Nations (M49), but with Asia and Oceania merged, and the
Americas split in two. `income` is the World Bank's classification for its fiscal year 2026 (July 2025 to June 2026).
`middle` stands for both lower and upper middle income. `income` is empty for countries that the World Bank doesn't
classify.
"""

import csv
from functools import cache
from importlib.resources import files
from typing import NamedTuple

REGIONS = ("Africa", "Asia & Oceania", "Europe", "Latin America & Caribbean", "North America")
INCOMES = ("high", "middle", "low")


class Country(NamedTuple):
    """Country or territory. `region` is one of `REGIONS` or None, and `income` is one of `INCOMES` or None."""

    code: str
    name: str
    region: str | None
    income: str | None


@cache
def countries() -> dict[str, Country]:
    """Return all countries, keyed by code and ordered by code."""
    lines = files("segmint.catalogs").joinpath("countries.csv").read_text(encoding="utf-8").splitlines()
    rows = (Country(code, name, region or None, income or None) for code, name, region, income in csv.reader(lines[1:]))
    return {row.code: row for row in rows}
