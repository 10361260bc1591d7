"""How numbers, sizes and lists are written for people."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

UNKNOWN = "unknown"

TURNING = r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
"""Marks that turn the direction of text, which disguise a name's ending; for a class of a regular expression."""

_TURNING = re.compile(f"[{TURNING}]")
_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def count(value: float | None) -> str:
    """A whole number: `1,234`; None is `unknown`."""
    return UNKNOWN if value is None else f"{value:,.0f}"


def counted(value: int | None, noun: str) -> str:
    """A number with its noun: `1 mask`, `2,000 masks`, `an unknown number of masks`."""
    words = plural(value, noun)
    return f"an unknown number of {words}" if value is None else f"{value:,} {words}"


def plural(value: int | None, noun: str) -> str:
    """The noun for so many: `mask` for 1, else `masks`."""
    return noun if value == 1 else f"{noun}s"


def number(value: float | None) -> str:
    """A number in at most three significant digits: `0.25`, `12.5`, `1,234`; None is `unknown`."""
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{float(f'{value:.3g}'):g}"


def share(value: float | None) -> str:
    """A share of 0 to 1 in percent: `12.5 %`; None is `unknown`."""
    return UNKNOWN if value is None else f"{number(100 * value)} %"


def upper_bound(value: float) -> str:
    """An upper bound of a share in percent, rounded up in its second digit, so that it still is one: `0.11 %`."""
    text = f"{value * 100:.1e}"
    if float(text) < value * 100:
        digits, power = text.split("e")
        text = f"{float(digits) + 0.1:.1f}e{power}"
    return f"{min(100.0, float(text)):.12g} %"


def size(value: float | None) -> str:
    """Bytes in decimal units: `999 bytes`, `1.5 GB`; None is `unknown`."""
    if value is None:
        return UNKNOWN
    amount = float(value)
    for unit in _UNITS:
        if amount < 999.5:
            return f"{number(amount)} {unit}"
        amount /= 1000
    return f"{number(amount)} PB"


def duration(seconds: float | None, *, rough: bool = False) -> str:
    """A length of time in its largest unit: `45 s`, `12 min`, `3.4 h`, `5.1 days`; None is `unknown`.

    If `rough`, in whole units, from 10 on in steps of 5, and at least `1 s`.
    """
    if seconds is None:
        return UNKNOWN
    units = (("days", 86_400), ("h", 3600), ("min", 60), ("s", 1))
    unit, length = next((each for each in units if seconds >= 1.5 * each[1]), units[-1])
    amount = seconds / length
    if rough:
        amount = 5 * round(amount / 5) if amount >= 10 else max(1, round(amount))
    return f"{number(amount)} {unit}"


def listed(items: Iterable[object]) -> str:
    """Several words: `a, b and c`."""
    words = [str(item) for item in items]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def some(texts: Sequence[str], shown: int = 10) -> str:
    """The first texts, and how many more there are: `a, b, and 3 more`."""
    more = f", and {len(texts) - shown:,} more" if len(texts) > shown else ""
    return ", ".join(texts[:shown]) + more


def without_turning(text: str) -> str:
    """`text` with U+FFFD in place of each mark that turns the direction of text."""
    return _TURNING.sub("\N{REPLACEMENT CHARACTER}", text)


def yaml_text(value: Any) -> str:
    """A value as YAML for people, in the order of its keys; where a mark turns text, all but ASCII is escaped."""
    import yaml

    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120)
    if _TURNING.search(text):
        text = yaml.safe_dump(value, sort_keys=False, allow_unicode=False, width=120)
    return text
