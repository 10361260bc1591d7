"""How a report and a dataset card write numbers: filters for their templates."""

from typing import Any

from segmint.pipeline.audit import lines as audit_lines
from segmint.pipeline.report.plots import short

UNKNOWN = "unknown"


def count(value: float | None) -> str:
    """A whole number as `1,234`; what is not known is said to be unknown."""
    return UNKNOWN if value is None else f"{value:,.0f}"


def counted(value: int | None, noun: str) -> str:
    """A number with its noun, as `1 mask` or `2,000 masks`."""
    if value is None:
        return f"an unknown number of {noun}s"
    return audit_lines.counted(value, noun)


def share(value: float | None) -> str:
    """A share of 0 to 1 as `12.5 %`."""
    return UNKNOWN if value is None else f"{short(100 * value)} %"


def number(value: float | None) -> str:
    """A number of any size in three digits."""
    return UNKNOWN if value is None else short(value)


def size(value: int | None) -> str:
    """Bytes as `1.5 GB`."""
    if value is None:
        return UNKNOWN
    amount, unit = float(value), "bytes"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{short(amount)} {unit}"


def listed(items: Any) -> str:
    """Several words as `a, b and c`."""
    words = [str(item) for item in items]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


FILTERS = {"count": count, "counted": counted, "share": share, "number": number, "size": size, "listed": listed}
"""By their names in templates."""
