"""A viewer's filters and sort order of images as values, and their SQL."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from segmint.catalogs.dataset.selection import number_of
from segmint.infra.errors import UsageError

CHOICES = ("country", "license", "provider")
"""Columns to filter by one value, or by no value (`unknown`)."""

RANGES = ("masks", "coverage", "predicted_iou", "stability", "megapixels")
"""Columns to filter by a minimum and a maximum, both included."""

SORTS = ("id", *RANGES)
"""Columns to sort by; images without a value come last, and equal values are in order of ids."""

_SHOWN = 60  # characters of a wrong value that an answer repeats

ANY_FINDING = "any"
"""The value of `finding` for all codes."""

Sql = tuple[str, list[Any]]
"""A piece of SQL, and the values of its parameters in order."""


@dataclass(frozen=True)
class Filters:
    """Which images, and in what order. `choices` are by column; None selects images without a value."""

    text: str = ""  # part of the image_id, or an id
    choices: Mapping[str, str | None] = field(default_factory=dict)
    least: Mapping[str, float] = field(default_factory=dict)
    greatest: Mapping[str, float] = field(default_factory=dict)
    finding: str | None = None
    sort: str = "id"
    descending: bool = False


def parse_filters(parameters: Mapping[str, str]) -> Filters:
    """Parse filters from the parameters of an address, ignoring empty ones; raises `UsageError` for unknown ones."""
    text = ""
    choices: dict[str, str | None] = {}
    least: dict[str, float] = {}
    greatest: dict[str, float] = {}
    finding: str | None = None
    sort, descending = "id", False
    for key, value in parameters.items():
        column, _, end = key.rpartition("_")
        if value == "":
            continue
        if key == "text":
            text = value
        elif key in CHOICES:
            choices[key] = value
        elif key == "unknown":
            choices |= dict.fromkeys(_known(value.split(","), CHOICES))
        elif column in RANGES and end in ("min", "max"):
            (least if end == "min" else greatest)[column] = _number(key, value)
        elif key == "finding":
            finding = value
        elif key == "sort":
            (sort,) = _known([value], SORTS)
        elif key == "descending":
            descending = value == "1"
        else:
            raise UsageError(f"there is no filter {key[:_SHOWN]!r}")
    return Filters(text, choices, least, greatest, finding, sort, descending)


def where(filters: Filters, with_finding: Mapping[str, list[int]]) -> Sql:
    """Return the SQL condition of the filters; `with_finding` are the ids of images by a finding's code."""
    terms, values = ["true"], []
    if filters.text:
        number = number_of(filters.text.strip())
        terms.append("(contains(lower(image_id), lower(?)) OR id = ?)")
        values += [filters.text.strip(), -1 if number is None else number]
    for column, choice in filters.choices.items():
        terms.append(f"{column} IS NOT DISTINCT FROM ?")
        values.append(choice)
    for operator, limits in ((">=", filters.least), ("<=", filters.greatest)):
        for column, limit in limits.items():
            terms.append(f"{column} {operator} ?")
            values.append(limit)
    if filters.finding is not None:
        wanted = with_finding if filters.finding == ANY_FINDING else [filters.finding]
        terms.append("id IN (SELECT unnest(?::BIGINT[]))")
        values.append(sorted({image for code in wanted for image in with_finding.get(code, [])}))
    return " AND ".join(terms), values


def order(filters: Filters, *, backward: bool = False) -> str:
    """Return the SQL order of the filters, or its reverse; it is a total order."""
    falling = filters.descending != backward
    if filters.sort == "id":
        return f"id {'DESC' if falling else 'ASC'}"
    direction = "DESC" if falling else "ASC"
    return f"{filters.sort} {direction} NULLS {'FIRST' if backward else 'LAST'}, id {'DESC' if backward else 'ASC'}"


def beyond(filters: Filters, image: int, value: float | None, *, backward: bool = False) -> Sql:
    """Return the SQL condition for images after one in the order, or before it; `value` is in its sorted column.

    A page begins where the last one ended, so that all pages cost the same.
    """
    operator = "<" if filters.descending != backward else ">"
    if filters.sort == "id":
        return f"id {operator} ?", [image]
    column, beside = filters.sort, "<" if backward else ">"
    if value is None:
        return (f"({column} IS NOT NULL OR id < ?)" if backward else f"({column} IS NULL AND id > ?)"), [image]
    unknown = "" if backward else f" OR {column} IS NULL"
    return f"({column} {operator} ? OR ({column} = ? AND id {beside} ?){unknown})", [value, value, image]


def _known(names: list[str], known: tuple[str, ...]) -> list[str]:
    for name in names:
        if name not in known:
            raise UsageError(f"{name[:_SHOWN]!r}: expected one of {', '.join(known)}")
    return names


def _number(key: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"{key}: expected a number, not {text[:_SHOWN]!r}")
    return number
