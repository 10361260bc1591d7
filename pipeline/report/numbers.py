"""A report's numbers in long form: one row per number, for your own tables and plots."""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import pyarrow as pa

from segmint.catalogs.parquet import table_bytes

NUMBERS = pa.schema(
    [
        pa.field("area", pa.string(), nullable=False),  # a key of the statistics; `dataset` for plain counts
        pa.field("statistic", pa.string(), nullable=False),  # the key below it; several keys are joined by dots
        pa.field("bin", pa.string()),  # the part: a bin, a step, a country, a shard; null for the whole
        pa.field("value", pa.float64(), nullable=False),
    ]
)
"""The schema of `statistics.parquet`; unknown numbers have no row."""

_NAMES = ("label", "size", "step", "country", "name", "license", "provider", "shard", "id")

_Number = tuple[str, str | None, float]  # statistic, bin, value


def numbers_table(statistics: Mapping[str, Any]) -> pa.Table:
    """Return all numbers of the statistics, in order."""
    rows = []
    for key, value in statistics.items():
        plain = isinstance(value, (int, float))
        area, prefix = ("dataset", key) if plain else (key, "")
        rows += [{"area": area, "statistic": s, "bin": b, "value": v} for s, b, v in _numbers(prefix, None, value)]
    return pa.Table.from_pylist(rows, schema=NUMBERS)


def numbers_parquet(statistics: Mapping[str, Any]) -> bytes:
    """Return all numbers of the statistics as a Parquet file."""
    return table_bytes(numbers_table(statistics), NUMBERS)


def _numbers(statistic: str, bin: str | None, value: Any) -> Iterator[_Number]:
    if isinstance(value, bool):
        return
    if isinstance(value, (int, float)):
        yield statistic or "value", bin, float(value)
    elif isinstance(value, Mapping):
        rest = dict(value)
        edges, counts = rest.pop("edges", None), rest.get("counts")
        if edges is not None and counts is not None:
            del rest["counts"]
            for (low, high), count in zip(pairwise(edges), counts, strict=True):
                yield _below(statistic, "count"), _joined(bin, f"{low:g} to {high:g}"), float(count)
        for key, inner in rest.items():
            yield from _numbers(_below(statistic, key), bin, inner)
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            name, rest = _named(place, inner)
            yield from _numbers(statistic, _joined(bin, name), rest)


def _named(place: int, item: Any) -> tuple[str, Any]:
    """Return the name of a list item (its position if it has none) and the rest of the item."""
    if not isinstance(item, Mapping):
        return str(place), item
    known = [key for key in _NAMES if item.get(key) is not None]
    label = ", ".join(str(item[key]) if isinstance(item[key], str) else f"{key} {item[key]}" for key in known)
    if "metric" in item:
        label = f"{item['metric']}, {label}" if label else str(item["metric"])
    return label or str(place), {key: inner for key, inner in item.items() if key not in _NAMES}


def _below(statistic: str, key: str) -> str:
    return f"{statistic}.{key}" if statistic else key


def _joined(bin: str | None, name: str) -> str:
    return name if bin is None else f"{bin}, {name}"
