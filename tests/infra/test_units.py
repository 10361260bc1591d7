"""Sizes and times with units."""

import pytest
from pydantic import TypeAdapter, ValidationError

from segmint.infra.units import Bytes, Seconds, parse_size, parse_time


@pytest.mark.parametrize(
    ("text", "size"),
    [("200MB", 200_000_000), ("256 MiB", 1 << 28), ("1.1kB", 1100), ("3b", 3), ("2TiB", 2 << 40), ("0.5GiB", 1 << 29)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(("text", "seconds"), [("30min", 1800), ("1.5h", 5400), ("250ms", 0.25), (" 2 d ", 172_800)])
def test_times(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "MB", "3", "3 miles", "-1MB", "1e3MB", "1,5GB", "\u0663MB", "1 MB 2", "0.5B", "5min"]
)
def test_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_size(text)


def test_a_configuration_takes_numbers_and_text() -> None:
    sizes, times = TypeAdapter(Bytes), TypeAdapter(Seconds)
    assert [sizes.validate_python(value) for value in (5, "5", "5kB")] == [5, 5, 5000]
    assert [times.validate_python(value) for value in (5, 0.5, "5", "5min")] == [5, 0.5, 5, 300]
    for adapter, value in ((sizes, "5min"), (times, "5MB"), (sizes, 0.5), (times, "nan s")):
        with pytest.raises(ValidationError):
            adapter.validate_python(value)


@pytest.mark.parametrize("value", ["9" * 400 + "s", "9" * 400 + "d", "9" * 400, 10**400, "inf", "36501d"])
def test_a_time_that_no_timer_can_count_is_invalid(value: object) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Seconds).validate_python(value)
