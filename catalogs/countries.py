"""Countries with the region and the income level under which the Segment Anything paper counts them.

`countries.csv` has the codes of ISO 3166-1 alpha-2, and XK, which the World Bank counts too. `region` is one of the
paper's five: those of the United Nations (M49), Asia and Oceania as one, and the Americas as two. `income` is the World
Bank's for its fiscal year 2026 (July 2025 to June 2026), with lower and upper middle as `middle`. It is empty for what
the World Bank does not classify: 216 of its 218 economies are classified, and Ethiopia and Venezuela were not that
year. The Channel Islands, one economy, are two codes.
"""

import csv
from functools import cache
from importlib.resources import files
from typing import NamedTuple

REGIONS = ("Africa", "Asia & Oceania", "Europe", "Latin America & Caribbean", "North America")
INCOMES = ("high", "middle", "low")


class Country(NamedTuple):
    """A country by its code; `region` is one of `REGIONS`, `income` one of `INCOMES`, None where there is none."""

    code: str
    name: str
    region: str | None
    income: str | None


@cache
def countries() -> dict[str, Country]:
    """All countries by their code, in order of codes."""
    lines = files("segmint.catalogs").joinpath("countries.csv").read_text(encoding="utf-8").splitlines()
    rows = (Country(code, name, region or None, income or None) for code, name, region, income in csv.reader(lines[1:]))
    return {row.code: row for row in rows}
