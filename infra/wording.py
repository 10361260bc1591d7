"""Formatting of numbers, sizes, durations, and lists for people."""

import json
import re
import shutil
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

UNKNOWN = "unknown"

TURNING = r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
"""Bidirectional control characters, which can disguise a name's ending; for a regular expression's character class."""

MOST_COLUMNS = 80
"""Maximum width of lines on a terminal, except for words that are longer."""

_TURNING = re.compile(f"[{TURNING}]")
_COLORS = re.compile(r"\x1b\[[0-9;]*m")
_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def count(value: float | None) -> str:
    """Format a whole number: `1,234`; None is `unknown`."""
    return UNKNOWN if value is None else f"{value:,.0f}"


def counted(value: int | None, noun: str) -> str:
    """Format a number with its noun: `1 mask`, `2,000 masks`, `an unknown number of masks`."""
    words = plural(value, noun)
    return f"an unknown number of {words}" if value is None else f"{value:,} {words}"


def plural(value: int | None, noun: str) -> str:
    """Return the noun in the right number: `mask` for 1, else `masks`."""
    return noun if value == 1 else f"{noun}s"


def number(value: float | None) -> str:
    """Format a number with at most three significant digits: `0.25`, `12.5`, `1,234`; None is `unknown`."""
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{float(f'{value:.3g}'):g}"


def share(value: float | None) -> str:
    """Format a fraction from 0 to 1 in percent: `12.5 %`; None is `unknown`."""
    return UNKNOWN if value is None else f"{number(100 * value)} %"


def upper_bound(value: float) -> str:
    """Format an upper bound of a fraction in percent, rounded up to two digits so that it remains a bound: `0.11 %`."""
    text = f"{value * 100:.1e}"
    if float(text) < value * 100:
        digits, power = text.split("e")
        text = f"{float(digits) + 0.1:.1f}e{power}"
    return f"{min(100.0, float(text)):.12g} %"


def size(value: float | None) -> str:
    """Format bytes in decimal units: `999 bytes`, `1.5 GB`; None is `unknown`."""
    if value is None:
        return UNKNOWN
    amount = float(value)
    for unit in _UNITS:
        if amount < 999.5:
            return f"{number(amount)} {unit}"
        amount /= 1000
    return f"{number(amount)} PB"


def duration(seconds: float | None, *, rough: bool = False) -> str:
    """Format a duration in its largest unit: `45 s`, `12 min`, `3.4 h`, `5.1 days`; None is `unknown`.

    If `rough`, the number is whole, at least `1 s`, and from 10 on a multiple of 5.
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
    """Join words into a list: `a, b and c`."""
    words = [str(item) for item in items]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def some(texts: Sequence[str], shown: int = 10) -> str:
    """Join the first `shown` texts and the number of the remaining ones: `a, b, and 3 more`."""
    more = f", and {len(texts) - shown:,} more" if len(texts) > shown else ""
    return ", ".join(texts[:shown]) + more


def not_checked_lines(items: Sequence[object], shown: int = 10) -> list[str]:
    """Return a line for each of the first items that couldn't be checked, and a last line for the others."""
    more = [f"{len(items) - shown:,} more"] if len(items) > shown else []
    return [f"not checked: {each}" for each in [*items[:shown], *more]]


def fit(text: str, stream: TextIO) -> str:
    """Return `text` with long lines broken at spaces if `stream` is a terminal. Words stay whole.

    Elsewhere, lines stay as they are, so that programs can match them.
    """
    if not stream.isatty():
        return text
    width = min(MOST_COLUMNS, shutil.get_terminal_size().columns)
    return "\n".join(_broken(line, width) for line in text.split("\n"))


def _broken(line: str, width: int) -> str:
    """Break a line that is wider than `width` columns, and indent its continuations by two more spaces."""
    if _columns(line) <= width:
        return line
    indent = " " * (len(line) - len(line.lstrip(" ")))
    first, *words = line[len(indent) :].split(" ")
    lines = [indent + first]
    for word in words:
        if _columns(lines[-1]) + 1 + _columns(word) > width:
            lines[-1] = lines[-1].rstrip(" ")
            lines.append(f"{indent}  {word}")
        else:
            lines[-1] += f" {word}"
    return "\n".join(lines)


def _columns(text: str) -> int:
    if text.isascii():
        return len(_COLORS.sub("", text))
    from rich.cells import cell_len

    return cell_len(_COLORS.sub("", text))


def without_turning(text: str) -> str:
    """Return `text` with each bidirectional control character replaced by U+FFFD."""
    return _TURNING.sub("\N{REPLACEMENT CHARACTER}", text)


def yaml_text(value: Any) -> str:
    """Return a value as readable YAML in its key order; non-ASCII is escaped if there are bidirectional controls."""
    import yaml

    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120)
    if _TURNING.search(text):
        text = yaml.safe_dump(value, sort_keys=False, allow_unicode=False, width=120)
    return text


def json_text(value: Any, **options: Any) -> str:
    """Return JSON that any reader accepts: lone surrogates in names that aren't UTF-8 become text like `\\udc80`."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, **options)
    return re.sub("[\ud800-\udfff]", lambda match: f"\\\\u{ord(match[0]):04x}", text)
