"""A server of annotators on a small real dataset, with real weights, asked as a browser asks it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from segmint.pipeline.engine.annotate.app import ServedView, open_view
from segmint.pipeline.engine.annotate.decoder import Embeddings
from tests.support.annotating import options
from tests.support.locations import location_of


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch, embedded_once: None) -> None:
    """No embedding is made ahead: seconds of a processor for each, which these tests end before anybody uses."""
    monkeypatch.setattr(Embeddings, "prepare", lambda *_: None)


@pytest.fixture
def opened(dataset: Path, unhurried: None) -> Iterator[ServedView]:
    """An annotator view of a copy of the small real dataset: images 1, 2, 4 to 7."""
    with open_view(location_of(dataset), options()) as annotator_view:
        yield annotator_view
