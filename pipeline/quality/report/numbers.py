"""Numbers of a report in long form, one per row, for your own tables and plots."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from itertools import pairwise
from typing import Any

import pyarrow as pa

from segmint.pipeline.quality.statistics.values import Histogram, Statistics

NUMBERS = pa.schema(
    [
        pa.field("area", pa.string(), nullable=False),  # a key of the statistics; `dataset` for plain counts
        pa.field("statistic", pa.string(), nullable=False),  # the keys below the area, joined by dots
        pa.field("bin", pa.string()),  # a bin, step, country, or shard; null for the whole dataset
        pa.field("value", pa.float64(), nullable=False),
    ]
)
"""Schema of `statistics.parquet`, which has no rows for unknown numbers."""

_NAMES = ("label", "size", "step", "country", "name", "license", "provider", "shard", "id")

_Number = tuple[str, str | None, float]  # statistic, bin, value


def numbers_table(statistics: Statistics) -> pa.Table:
    """Return all numbers of the statistics, in order."""
    rows = []
    for field in fields(statistics):
        key, value = field.name, getattr(statistics, field.name)
        plain = isinstance(value, (int, float))
        area, prefix = ("dataset", key) if plain else (key, "")
        rows += [{"area": area, "statistic": s, "bin": b, "value": v} for s, b, v in _numbers(prefix, None, value)]
    return pa.Table.from_pylist(rows, schema=NUMBERS)


def _numbers(statistic: str, bin: str | None, value: Any) -> Iterator[_Number]:
    if isinstance(value, (int, float)):
        yield statistic or "value", bin, float(value)
    elif isinstance(value, tuple):
        for place, item in enumerate(value):
            yield from _numbers(statistic, _joined(bin, _name(place, item)), item)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _numbers(_below(statistic, key), bin, part)
    elif is_dataclass(value):
        done: tuple[str, ...] = _NAMES
        if isinstance(value, Histogram):
            done = (*_NAMES, "edges", "counts")
            for (low, high), count in zip(pairwise(value.edges), value.counts or (), strict=value.counts is not None):
                yield _below(statistic, "count"), _joined(bin, f"{low:g} to {high:g}"), float(count)
        for field in fields(value):
            if field.name not in done:
                yield from _numbers(_below(statistic, field.name), bin, getattr(value, field.name))


def _name(place: int, item: Any) -> str:
    """Return the name of a tuple's item, or its index if it is unnamed."""
    known = [(key, getattr(item, key)) for key in _NAMES if getattr(item, key, None) is not None]
    words = [part if isinstance(part, str) else f"{key} {part}" for key, part in known]
    return ", ".join([*([item.metric] if hasattr(item, "metric") else []), *words]) or str(place)


def _below(statistic: str, key: str) -> str:
    return f"{statistic}.{key}" if statistic else key


def _joined(bin: str | None, name: str) -> str:
    return name if bin is None else f"{bin}, {name}"
