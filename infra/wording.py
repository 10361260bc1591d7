"""Formatting of numbers, sizes, durations, and lists for people."""

import json
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, TextIO

UNKNOWN = "unknown"

TURNING = r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
"""Bidirectional control characters, which can disguise how a name ends. Use this inside a character class of a regular
expression."""

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f" + TURNING + "]")
"""Characters that can control a terminal, without tab and newline. Includes the bidirectional ones."""

MOST_COLUMNS = 80
"""Maximum width in columns of lines on a terminal. A word that is longer stays whole."""

_TURNING = re.compile(f"[{TURNING}]")
_COLORS = re.compile(r"\x1b\[[0-9;]*m")
_SHOWN = 10
_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def count(value: float | None) -> str:
    """Format a whole number: `1,234`. None becomes `unknown`."""
    return UNKNOWN if value is None else f"{value:,.0f}"


def counted(value: int | None, noun: str) -> str:
    """Format a number with its noun: `1 mask`, `2,000 masks`, `an unknown number of masks`."""
    words = plural(value, noun)
    return f"an unknown number of {words}" if value is None else f"{value:,} {words}"


def plural(value: int | None, noun: str) -> str:
    """Return the noun's singular or plural: `mask` for 1, otherwise `masks`."""
    return noun if value == 1 else f"{noun}s"


_WHOLE = 1 - 1e-9  # a fraction from here on is 1, except for errors of rounding


def number(value: float | None) -> str:
    """Format a number with up to three significant digits: `0.25`, `12.5`, `1,234`. None becomes `unknown`."""
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{float(f'{value:.3g}'):g}"


def share(value: float | None) -> str:
    """Format a fraction from 0 to 1 as a percentage: `12.5%`. None becomes `unknown`.

    Only the whole is 100%: a smaller fraction isn't rounded up to it.
    """
    if value is None:
        return UNKNOWN
    text = number(100 * value)
    if text == "100" and value < _WHOLE:
        text = "99.9"
    return f"{text}%"


def upper_bound(value: float) -> str:
    """Format an upper bound from 0 to 1 as a percentage: `0.11%`.

    The percentage is rounded up to two significant digits, so that it remains an upper bound.
    """
    text = f"{value * 100:.1e}"
    if float(text) < value * 100:
        digits, power = text.split("e")
        text = f"{float(digits) + 0.1:.1f}e{power}"
    return f"{min(100.0, float(text)):.12g}%"


def size(value: float | None) -> str:
    """Format a number of bytes in decimal units: `999 bytes`, `1.5 GB`. None becomes `unknown`."""
    if value is None:
        return UNKNOWN
    amount = float(value)
    for unit in _UNITS:
        if amount < 999.5:
            return f"{number(amount)} {unit}"
        amount /= 1000
    return f"{number(amount)} PB"


def duration(seconds: float | None, *, rough: bool = False) -> str:
    """Format a duration in its largest unit: `45 s`, `12 min`, `3.4 h`, `5.1 days`. None becomes `unknown`.

    If `rough` is set, the number is rounded to an integer, and the shortest duration is `1 s`. From 10 on, the number
    is rounded to a multiple of 5.
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
    """Join items with commas and a final "and": `a, b and c`."""
    words = [str(item) for item in items]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def some(items: Sequence[object], shown: int = _SHOWN) -> str:
    """Join the first `shown` items as text, and say how many more there are: `a, b, and 3 more`."""
    more = f", and {len(items) - shown:,} more" if len(items) > shown else ""
    return ", ".join(map(str, items[:shown])) + more


def not_checked_lines(items: Sequence[object]) -> list[str]:
    """Return one line for each of the first ten items that couldn't be checked, and a line that counts the rest."""
    more = [f"{len(items) - _SHOWN:,} more"] if len(items) > _SHOWN else []
    return [f"not checked: {each}" for each in [*items[:_SHOWN], *more]]


def without_controls(text: str) -> str:
    """Replace control characters, with which a text could change a terminal. Tabs and line breaks stay."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def fit(text: str, stream: TextIO | None) -> str:
    """If `stream` is a terminal, break long lines of `text` at spaces. Words stay whole.

    If it isn't a terminal, the lines stay unchanged, so that programs can match them.
    """
    width = terminal_width(stream)
    return text if width is None else "\n".join(_broken(line, width) for line in text.split("\n"))


def terminal_width(stream: TextIO | None) -> int | None:
    """Return the width to which `fit` breaks lines, or None if `stream` isn't a terminal."""
    return min(MOST_COLUMNS, shutil.get_terminal_size().columns) if is_terminal(stream) else None


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a stream is a terminal. A closed standard stream is None in Python, and isn't one."""
    return stream is not None and not stream.closed and stream.isatty()


def open_stream(stream: TextIO | None) -> TextIO:
    """Return a stream for writing: `stream`, or the null device if it's closed."""
    return _null_device() if stream is None or stream.closed else stream


@cache
def _null_device() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123 - stays open


def _broken(line: str, width: int) -> str:
    """Break a line that is wider than `width` columns, and indent its continuation lines by two more spaces."""
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
    """Replace each bidirectional control character in `text` with U+FFFD."""
    return _TURNING.sub("\N{REPLACEMENT CHARACTER}", text)


def yaml_text(value: Any) -> str:
    """Format a value as readable YAML, with keys in their original order.

    If the text contains bidirectional control characters or U+0085, which PyYAML would read back as a space, all
    non-ASCII characters are escaped.
    """
    import yaml

    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120)
    if _TURNING.search(text) or "\x85" in text:
        text = yaml.safe_dump(value, sort_keys=False, allow_unicode=False, width=120)
    return text


def json_text(value: Any, **options: Any) -> str:
    """Format a value as JSON that any reader accepts.

    A name that isn't valid UTF-8 contains lone surrogates, which become text like `\\udc80`.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, **options)
    return re.sub("[\ud800-\udfff]", lambda match: f"\\\\u{ord(match[0]):04x}", text)
