"""Numbers as people read them; what is not known is never a zero."""

import pytest

from segmint.pipeline.report.words import count, counted, listed, number, share, size


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (count(1234567), "1,234,567"),
        (count(0), "0"),
        (count(None), "unknown"),
        (counted(1, "mask"), "1 mask"),
        (counted(2000, "mask"), "2,000 masks"),
        (counted(None, "mask"), "an unknown number of masks"),
        (share(0.0283), "2.83 %"),
        (share(None), "unknown"),
        (number(12.345), "12.3"),
        (number(None), "unknown"),
        (size(999), "999 bytes"),
        (size(1_234_567), "1.23 MB"),
        (size(5 * 10**17), "500 PB"),
        (size(None), "unknown"),
        (listed(["a"]), "a"),
        (listed(["a", "b", "c"]), "a, b and c"),
        (listed([]), ""),
    ],
)
def test_words(said: str, expected: str) -> None:
    assert said == expected
