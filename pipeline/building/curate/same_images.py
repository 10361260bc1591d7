"""Rows of a catalog that are of one image by what names it; an opt-out of one of them holds for all."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segmint.catalogs.source.same_files import SameFiles

Firsts = NDArray[np.int64]
"""(N,), for each of N rows the first that is of the same image, or itself."""

_ROWS = 65_536  # whose groups are read at once


def same_uris(normalized: Path, rows: int) -> Firsts:
    """For each row of a normalized catalog the first one that has its URI."""
    first = np.arange(rows)
    with tempfile.TemporaryDirectory(prefix="segmint-uris-") as name, SameFiles(normalized, Path(name)) as same:
        for stop in range(_ROWS, rows + _ROWS, _ROWS):
            for ordinal, numbers in same.until(stop).items():
                for number in numbers:
                    if number < 0:  # of a URI
                        first[ordinal] = -number - 1
    return first


def spread(opted_out: NDArray[np.bool_], same: Mapping[str, Firsts]) -> dict[int, str]:
    """Mark all rows that are of one image with a row in `opted_out`, (N,), which is changed; return why each is one.

    `same` has what rows have in common, in the words of the reason, and the first row that has it. Each row that is
    marked marks others.
    """
    rows = len(opted_out)
    found: dict[int, str] = {}
    while True:
        before = len(found)
        for shared, first in same.items():
            there = np.flatnonzero(opted_out)
            lowest = np.full(rows, rows)
            np.minimum.at(lowest, first[there], there)
            of = lowest[first]
            new = np.flatnonzero((of < rows) & ~opted_out)
            opted_out[new] = True
            found |= {int(row): f"it has the {shared} of row {of[row] + 1}, which is opted out" for row in new}
        if len(found) == before:
            return found
