"""The datasets that `make test-interop` exports: real masks of photographs, and shapes that are hard to carry."""

from pathlib import Path
from typing import Any

import numpy as np

from segmint.catalogs.dataset.reader import Dataset
from tests.support.builds import small_catalog, write_config
from tests.support.committed import mask_row, row_of, write_dataset
from tests.support.locations import location_of
from tests.support.mask_labels import named
from tests.support.small_dataset import build_dataset

HEIGHT, WIDTH = 60, 80


def shapes() -> list[np.ndarray]:
    """Masks (60, 80) bool with holes, holes in holes, several parts, at the border, of one pixel, thin, and whole."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    distance = np.hypot(y - 30, x - 40)
    plate = (abs(y - 30) < 24) & (abs(x - 40) < 34)
    holes = plate.copy()
    holes[10:20, 10:20] = holes[10:20, 30:50] = holes[30:40, 30:31] = holes[25:28, 60] = False
    target = (distance < 28) & ~((distance > 18) & (distance < 22)) & ~(distance < 6)
    return [
        holes,
        target,
        distance < 29.5,
        (y + 2 * x) % 9 < 4,
        (y % 3 == 0) & plate,
        (y + x) % 2 == 0,
        ~((y % 2 == 1) & (x % 2 == 1)),
        (y == 7) & (x == 9),
        (y == 59) & (x == 79),
        (y == 20) & (x > 3),
        (abs(y - x) < 1) & (x < 50),
        np.ones((HEIGHT, WIDTH), bool),
        (x < 20) | ((x > 23) & (x < 78)),
        (distance < 9) | ((x > 70) & (y < 4)),
        y >= 59 - x // 8,
    ]


def hard_row(ordinal: int, refused: bool) -> dict[str, Any]:
    """A row with hard shapes; the second image has 230 masks, later ones have none."""
    row = row_of(ordinal, refused)
    if not refused:
        row["masks"] = [mask_row(mask) for mask in {0: shapes, 1: many}.get(ordinal, list)()]
        named(row["masks"], ordinal)
    return row


def many() -> list[np.ndarray]:
    """230 masks, each another: shapes, moved."""
    moved = {np.roll(shape, n, axis=(0, 1)).tobytes(): None for n in range(40) for shape in shapes()}
    return [np.frombuffer(data, bool).reshape(HEIGHT, WIDTH) for data in list(moved)[:230]]


def make_datasets(folder: Path) -> list[Path]:
    """Write both datasets, and beside each what a tool must read back: `NAME` and `NAME.npz`."""
    hard, real = folder / "hard", folder / "real" / "dataset"
    write_dataset(location_of(hard), shards=2, make_row=hard_row)
    masks = {"points_per_side": 6, "crop_n_layers": 0}
    build_dataset(
        write_config(folder / "real" / "build.yaml", small_catalog(folder / "real" / "photos"), real, masks=masks)
    )
    for dataset in (hard, real):
        _write_expected(dataset)
    return [hard, real]


def _write_expected(dataset: Path) -> None:
    arrays: dict[str, np.ndarray] = {}
    for sample in Dataset.open(location_of(dataset)):
        shape = (len(sample.masks), sample.row["height"], sample.row["width"])
        arrays[f"ids_{sample.id}"] = np.array([mask.id for mask in sample.masks], np.int64)
        arrays[f"labels_{sample.id}"] = np.array([mask.label or "object" for mask in sample.masks], np.str_)
        arrays[f"masks_{sample.id}"] = np.array([mask.mask for mask in sample.masks], bool).reshape(shape)
    np.savez_compressed(expected_of(dataset), **arrays)


def expected_of(dataset: Path) -> Path:
    """The file with the masks of a dataset."""
    return dataset.with_name(f"{dataset.name}.npz")
