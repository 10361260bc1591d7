"""Tables that are larger than memory, stored in files that are split into ranges of a key or mapped into memory.

If memory runs short, the kernel writes mapped pages back to their file and drops them.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

PART_ROWS = 1 << 23  # rows of a part, on average; each takes up to 100 bytes while the part is in memory
_SAMPLE = 1 << 16
Column = NDArray[Any]


def borders(sample: Column, rows: int) -> Column:
    """Return the lowest key of every part except the first, ascending, from a sample of the keys of `rows` rows."""
    parts = -(-rows // PART_ROWS)
    ordered = np.sort(sample)
    return np.unique(ordered[[len(ordered) * part // parts for part in range(1, parts)]] if len(ordered) else ordered)


def sampled(keys: Column) -> Column:
    """Return about 65,536 evenly spaced entries along the first axis."""
    return keys[:: len(keys) // _SAMPLE + 1]


class Partitions:
    """Rows of a few columns in files. The rows are split into parts at the `borders` of the first column.

    Within a part, rows keep their order.
    """

    def __init__(self, folder: Path, borders: Column, dtypes: Sequence[DTypeLike]) -> None:
        self._borders = borders
        self._dtypes = dtypes
        self._paths = [
            [folder / f"part-{part}-{column}" for column in range(len(dtypes))] for part in range(len(borders) + 1)
        ]

    def add(self, *columns: Column) -> None:
        """Append rows to the parts that their keys belong to."""
        parts = np.searchsorted(self._borders, columns[0], "right")
        order = np.argsort(parts, kind="stable")
        cuts = np.searchsorted(parts[order], np.arange(len(self._paths) + 1))
        for part, paths in enumerate(self._paths):
            rows = order[cuts[part] : cuts[part + 1]]
            for path, column, dtype in zip(paths, columns, self._dtypes, strict=True):
                append(path, column[rows].astype(dtype, copy=False))

    def drain(self) -> Iterator[list[Column]]:
        """Yield the columns of each part, in ascending order of keys, and delete the part's files."""
        for paths in self._paths:
            found = []
            for path, dtype in zip(paths, self._dtypes, strict=True):
                found.append(np.fromfile(path, dtype) if path.exists() else np.empty(0, dtype))
                path.unlink(missing_ok=True)
            if len(found[0]):
                yield found


def append(path: Path, values: Column) -> None:
    """Append values to a file. If there are none, don't create the file."""
    if len(values):
        with path.open("ab") as file:
            values.tofile(file)


def mapped(path: Path, dtype: DTypeLike) -> Column:
    """Map the values in a file into memory. Return an empty array if the file doesn't exist."""
    return np.asarray(np.memmap(path, dtype, "r")) if path.exists() else np.empty(0, dtype)


def mapped_zeros(shape: int | tuple[int, ...], dtype: DTypeLike) -> Column:
    """Return an array of zeros, mapped into memory from a new temporary file without a name."""
    if not np.prod(shape):
        return np.zeros(shape, dtype)
    with TemporaryFile() as file:
        return np.asarray(np.memmap(file, dtype, "w+", shape=shape))
