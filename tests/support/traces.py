"""Finding traces of a file in other files: any 64-byte run that both hold."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

WINDOW = 64
MIN_DISTINCT_BYTES = 24
"""A run with fewer different bytes (padding, a table of zeros) says nothing about where it came from."""

_FACTOR = 0x9E3779B97F4A7C15
_INVERSE = pow(_FACTOR, -1, 2**64)


def window_hashes(data: bytes) -> np.ndarray:
    """A 64-bit hash of each 64-byte window of `data`, uint64, by prefix sums of byte · factor^position mod 2^64."""
    values = np.frombuffer(data, np.uint8).astype(np.uint64)
    if len(values) < WINDOW:
        return np.empty(0, np.uint64)
    powers = _powers(_FACTOR, len(values))
    prefix = np.concatenate([[np.uint64(0)], np.cumsum((values + np.uint64(1)) * powers, dtype=np.uint64)])
    return (prefix[WINDOW:] - prefix[:-WINDOW]) * _powers(_INVERSE, len(values) - WINDOW + 1)


def telling_windows(data: bytes) -> np.ndarray:
    """Sorted hashes of the windows of `data` that are diverse enough to be recognized."""
    values = np.frombuffer(data, np.uint8)
    kept = []
    for start in range(0, max(len(values) - WINDOW + 1, 0), 65536):
        block = values[start : start + 65536 + WINDOW - 1]
        if len(block) < WINDOW:
            break
        windows = np.sort(np.lib.stride_tricks.sliding_window_view(block, WINDOW), axis=1)
        distinct = (np.diff(windows, axis=1) != 0).sum(axis=1) + 1
        kept.append(window_hashes(block.tobytes())[distinct >= MIN_DISTINCT_BYTES])
    return np.unique(np.concatenate(kept)) if kept else np.empty(0, np.uint64)


def files_with_traces(needles: np.ndarray, folders: Iterable[Path], chunk: int = 16 << 20) -> list[Path]:
    """The files under `folders` that hold a window whose hash is in `needles` (sorted)."""
    return [
        path
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink() and any(_holds(needles, part) for part in _parts(path, chunk))
    ]


def _holds(needles: np.ndarray, data: bytes) -> bool:
    return bool(np.isin(window_hashes(data), needles).any())


def _parts(path: Path, chunk: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        tail = b""
        while part := file.read(chunk):
            yield tail + part
            tail = (tail + part)[-(WINDOW - 1) :]


def _powers(factor: int, count: int) -> np.ndarray:
    powers = np.full(count, factor, np.uint64)
    powers[:1] = 1
    return np.cumprod(powers, dtype=np.uint64)


def scan_data(jpeg: bytes) -> bytes:
    """The entropy-coded part of a JPEG: what only this picture holds, unlike the tables before it."""
    start = jpeg.rfind(b"\xff\xda")
    return jpeg[start + 14 :]
