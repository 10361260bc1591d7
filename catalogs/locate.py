"""Filling in images' countries from captions, as the SAM paper did for SA-1B; implements `segmint catalog locate`."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from segmint.catalogs.places import country_in
from segmint.catalogs.schema import SOURCE
from segmint.catalogs.source.scan import write_catalog
from segmint.catalogs.source.whole import WholeCatalog
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location, refuse_existing
from segmint.infra.uris import absolute, parent
from segmint.infra.wording import counted, some

SOURCE_COLUMN = "country_source"
"""Column for the source of a country; builds ignore it."""

FROM_CAPTION = "caption"


@dataclass
class LocateResult:
    """Result of locating a catalog's images."""

    catalog: str
    output: str
    rows: int = 0
    given: int = 0  # rows that already had a country, which is kept
    filled: int = 0  # rows with a country from the caption
    without_caption: int = 0  # rows without a country or a caption
    countries: dict[str, int] = field(default_factory=dict)  # filled rows per country, the most frequent first

    @property
    def unknown(self) -> int:
        """Number of rows that still have no country."""
        return self.rows - self.given - self.filled

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {**asdict(self), "unknown": self.unknown}

    def lines(self) -> list[str]:
        """Return the result as lines of text."""
        return [
            f"{self.output}: {counted(self.rows, 'row')}",
            f"  {self.filled:>12,} countries filled in from the caption"
            + (f": {some([f'{code} {count:,}' for code, count in self.countries.items()])}" if self.filled else ""),
            f"  {self.given:>12,} were given and are unchanged",
            f"  {self.unknown:>12,} are unknown ({self.without_caption:,} without a caption)",
        ]


def locate(catalog: Location, output: Location, country_of: Callable[[str], str | None] = country_in) -> LocateResult:
    """Write a copy of a catalog in which missing countries are filled in from captions; all else is unchanged.

    The column `country_source` is `caption` for a country that was filled in. Raises `UsageError` for an output that
    already exists or is in another folder, where relative URIs would not fit, and for a catalog without captions.
    """
    refuse_existing(output)
    if parent(absolute(output.uri)) != parent(absolute(catalog.uri)):
        raise UsageError(
            f"{output} is not in the folder of {catalog}, to which URIs are relative: choose a file in "
            f"{parent(absolute(catalog.uri))}"
        )
    whole = WholeCatalog(catalog)
    if "caption" not in whole.schema.names:
        raise UsageError(f"{catalog} has no column 'caption', which is where countries are found")
    done = LocateResult(str(catalog), str(output))
    found: Counter[str] = Counter()
    done.rows = write_catalog(_rows(whole, done, found, country_of), output, _schema(whole.schema))
    done.countries = dict(found.most_common())
    return done


def _schema(schema: pa.Schema) -> pa.Schema:
    """Return a catalog's columns, with `country` and `country_source`."""
    fields = {each.name: each for each in schema}
    fields.setdefault("country", SOURCE.field("country"))
    fields.setdefault(SOURCE_COLUMN, pa.field(SOURCE_COLUMN, pa.string()))
    names = [*(name for name in SOURCE.names if name in fields), *(name for name in fields if name not in SOURCE.names)]
    return pa.schema([fields[name] for name in names])


def _rows(
    whole: WholeCatalog, done: LocateResult, found: "Counter[str]", country_of: Callable[[str], str | None]
) -> Iterator[Mapping[str, Any]]:
    for batch in whole.batches():
        for row in batch.to_pylist():
            if row.get("country") is not None:
                done.given += 1
                yield row
                continue
            caption = row["caption"] or ""
            country = country_of(caption)
            if country is None:
                done.without_caption += not caption.strip()
                yield row
                continue
            found[country] += 1
            done.filled += 1
            yield {**row, "country": country, SOURCE_COLUMN: FROM_CAPTION}
