"""torchdata's loader stops and goes on: read_torchdata.py DATASET EXPECTED."""

import itertools
import sys
from typing import Any

import torchdata
from expected import load_expected
from torchdata.stateful_dataloader import StatefulDataLoader

from segmint import open_dataset
from segmint.catalogs.dataset.reading.batches import Batches


def loader_of(dataset: str, workers: int) -> tuple[Batches, Any]:
    """Return shuffled batches of one image, and a loader of them."""
    batches = open_dataset(dataset).batches(1, seed=3)
    return batches, StatefulDataLoader(batches, batch_size=None, num_workers=workers)


def ids(batches: Any) -> list[int]:
    """Return the ids of the images in batches."""
    return [sample.id for batch in batches for sample in batch]


def main(dataset: str, expected: str) -> None:
    """Stop after each number of batches, with and without workers, and go on in another loader."""
    wanted = sorted(load_expected(expected))
    stops = 0
    for workers, stop in itertools.product((0, 2), range(1, len(wanted))):
        batches, loader = loader_of(dataset, workers)
        batches.begin(1)
        whole = ids(loader)
        batches.begin(1)
        received = ids(itertools.islice(iter(loader), stop))
        _, other = loader_of(dataset, workers)
        other.load_state_dict(loader.state_dict())
        assert sorted(whole) == wanted, (whole, wanted)
        assert received + ids(other) == whole, (workers, stop)
        stops += 1
    print(f"torchdata {torchdata.__version__}: went on after {stops} stops")


main(*sys.argv[1:])
