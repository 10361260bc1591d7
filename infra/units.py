"""Values in a configuration: sizes and durations with units (`200MB`, `30min`), and validators for keys and options."""

import math
import re
import sys
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field

from segmint.infra.errors import UsageError

OVER_ZERO = math.ulp(0.0)
"""Smallest number above 0, as a limit for `check_option`."""

FLOPS = (1e9, 1e18)
"""Slowest and fastest device to plan for, in operations per second."""

Given = TypeVar("Given")
Parsed = TypeVar("Parsed")

_SIZES: dict[str, int | Fraction] = {
    "B": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("kMGT", start=1)},
    **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", start=1)},
}
_TIMES: dict[str, int | Fraction] = {"ms": Fraction(1, 1000), "s": 1, "min": 60, "h": 3600, "d": 86_400}
_LONGEST = 36_500 * 86_400  # in seconds; timers of the operating system support this duration
_AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)", re.ASCII)


def parse_size(text: str) -> int:
    """Parse a size in bytes: `200MB` is 200,000,000. Raises `ValueError` if the text is invalid or not whole bytes."""
    size = _parse(text, _SIZES, "bytes or a size, such as 200MB or 256MiB")
    if size.denominator != 1:
        raise ValueError("expected whole bytes")
    return int(size)


def parse_time(text: str) -> float:
    """Parse a duration in seconds, and cap it at about 200 years: `30min` is 1800.0.

    Raises `ValueError` if the text is invalid.
    """
    return float(min(_parse(text, _TIMES, "seconds or a time, such as 90s, 30min, or 2h"), Fraction(2 * _LONGEST)))


def check_option(name: str, value: float | None, expected: str, least: float, most: float = sys.float_info.max) -> None:
    """Check that the value of a command's option is from `least` to `most`. None means that the option wasn't given.

    Raises `UsageError` with `expected` for other values, including NaN and infinity.
    """
    if value is not None and not least <= value <= most:
        raise UsageError(f"{name} is {value:g}: expected {expected}")


def auto_or(fits: Callable[[Any], bool], expected: str) -> BeforeValidator:
    """Return a validator for a key that accepts `auto` and any value that `fits`. `expected` describes these values."""

    def check(value: Any) -> Any:
        if value == "auto" or fits(value):
            return value
        raise ValueError(f"expected auto{expected}")

    return BeforeValidator(check)


def validated(parse: Callable[[Given], Parsed]) -> Callable[[Given], Parsed]:
    """Wrap `parse` as a validator, which must raise `ValueError` instead of `UsageError`."""

    def check(value: Given) -> Parsed:
        try:
            return parse(value)
        except UsageError as error:
            raise ValueError(str(error)) from error

    return check


def _parse(text: str, units: Mapping[str, int | Fraction], expected: str) -> Fraction:
    match = _AMOUNT.fullmatch(text.strip())
    factor = {unit.lower(): factor for unit, factor in units.items()}.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise ValueError(f"expected {expected}")
    return Fraction(match[1]) * factor


def _size(value: Any) -> Any:
    return parse_size(value) if isinstance(value, str) and not _is_number(value) else value


def _time(value: Any) -> Any:
    return parse_time(value) if isinstance(value, str) and not _is_number(value) else value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


Bytes = Annotated[int, BeforeValidator(_size)]
"""Size in a configuration, as a number of bytes or as text with a unit. B, kB, MB, GB, and TB are powers of 1000; KiB,
MiB, GiB, and TiB are powers of 1024."""

Seconds = Annotated[float, BeforeValidator(_time), Field(le=_LONGEST, allow_inf_nan=False)]
"""Duration in a configuration, as a number of seconds or as text with a unit (ms, s, min, h, d)."""
