"""Rows of images beside the catalog's: what is taken over, and from whom not."""

from typing import Any

from segmint.catalogs.dataset.manifest import load_manifest
from segmint.operators.shards.cataloged_rows import as_cataloged, catalog_rows, part_of
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
        assert list(catalog_rows(place.location, ROWS, 3 * ROWS)) == list(range(ROWS, 3 * ROWS))
        manifest = load_manifest(place.location)
        paths = [part.path for part in manifest.catalog]
        assert [part_of(manifest, shard) for shard in range(4)] == [paths[0], paths[0], paths[1], None]
