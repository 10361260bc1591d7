"""Rows of images beside the catalog's: what is taken over, and from whom not."""

import pickle
from typing import Any

import pytest

from segmint.operators.shards.revise import CatalogRows, as_cataloged
from tests.support.history_commands import grow
from tests.support.protocol import ROWS, two_shards

ROW: dict[str, Any] = {"image_id": "a", "attribution": "Old", "provider": None, "source_url": None, "country": "NO"}


def test_amendable_values_alone_are_taken_over() -> None:
    assert as_cataloged(ROW, {**ROW, "attribution": "New", "license": "MIT"}) == {**ROW, "attribution": "New"}
    refused = {**ROW, "reason": "corrupt"}
    for row, source in (
        (ROW, dict(ROW)),
        (ROW, None),
        (ROW, {**ROW, "image_id": ""}),
        (refused, {**ROW, "country": "DE"}),
    ):
        assert as_cataloged(row, source) is row


def test_rows_are_read_from_the_part_of_their_shard() -> None:
    with two_shards() as place:
        grow(place)
        catalog = pickle.loads(pickle.dumps(CatalogRows(place.location)))
        assert list(catalog.read(ROWS, 3 * ROWS)) == list(range(ROWS, 3 * ROWS))
        assert [catalog.read(n, n + 1)[n]["image_id"] for n in range(ROWS)] == ["image-0", "image-1", "image-2"]


def test_rows_cross_the_borders_of_row_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segmint.operators.shards.revise.CATALOG_GROUP_ROWS", 2)
    with two_shards() as place:
        grow(place)
        catalog = CatalogRows(place.location)
        for start, stop in ((0, 9), (1, 4), (3, 5), (5, 8), (8, 20), (9, 12)):
            assert list(catalog.read(start, stop)) == list(range(start, min(stop, 9)))
