"""A server of annotators on a small real dataset, with real weights, asked as a browser asks it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from segmint.pipeline.annotate.server import Opened, open_desk
from tests.support.annotating import options
from tests.support.locations import location_of


@pytest.fixture
def opened(dataset: Path) -> Iterator[Opened]:
    """A desk of a copy of the small real dataset: images 1, 2, 4 to 7."""
    with open_desk(location_of(dataset), options()) as desk:
        yield desk
