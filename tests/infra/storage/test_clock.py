"""The store's time is that of a probe, and one that a sweep takes meanwhile is put again."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from segmint.infra.errors import SegmintError
from segmint.infra.storage.location import Location, store_time
from tests.support.locations import location_of


def taking_probes(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Delete the first so many probes before they are listed."""
    left = iter(range(times))
    listed = Location.list

    def take(self: Location, *arguments: Any, **options: Any) -> Iterator[Any]:
        if next(left, None) is not None:
            for probe in Path(self.uri).iterdir():
                probe.unlink()
        return listed(self, *arguments, **options)

    monkeypatch.setattr(Location, "list", take)


def test_a_probe_that_is_taken_is_put_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taking_probes(monkeypatch, 2)
    assert abs((store_time(location_of(tmp_path)) - datetime.now(UTC)).total_seconds()) < 60
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_never_lists_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taking_probes(monkeypatch, 3)
    with pytest.raises(SegmintError, match="does not list what was just written there"):
        store_time(location_of(tmp_path))
