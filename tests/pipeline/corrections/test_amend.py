"""Amendments: what is corrected and what is refused, beside builds and other corrections."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from segmint.catalogs.dataset.manifest import load_latest_manifest, load_manifest
from segmint.catalogs.dataset.tombstones import Asked
from segmint.catalogs.dataset.versions.record import latest_version
from segmint.catalogs.source.amendments import AMENDABLE
from segmint.catalogs.source.rows import read_rows
from segmint.infra.errors import UsageError
from segmint.operators.shards.committed_rows import read_committed_rows
from segmint.pipeline.audit.integrity import audit_integrity
from segmint.pipeline.corrections.amend import Amended, amend, list_amendment
from segmint.pipeline.corrections.takedown import takedown
from tests.support.everything import mentions
from tests.support.history_commands import grow, mark
from tests.support.locations import location_of
from tests.support.protocol import Place, contents, two_shards, write
from tests.support.stepped import Stepped, stepping


@pytest.fixture
def place() -> Iterator[Place]:
    """A dataset with one of its two shards committed."""
    with two_shards(committed=1) as place:
        yield place


def catalog(place: Place, *rows: dict[str, Any]) -> Path:
    path = Path(place.uri).parent / "corrected.jsonl"
    whole = [{"uri": f"photo_{row['image_id'].partition('-')[2]}.jpg", "license": None, **row} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in whole))
    return path


def amended(place: Place, *rows: dict[str, Any], **options: Any) -> Amended:
    return amend(place.location, location_of(catalog(place, *rows)), **options)


def credits(place: Place, shard: int = 0) -> dict[int, tuple[Any, ...]]:
    """The amendable values of the images of a shard, by ordinal."""
    commit = place.log.latest(shard)
    assert commit is not None
    rows = read_committed_rows(place.location, commit)
    return {row["ordinal"]: tuple(row[name] for name in AMENDABLE) for row in rows if row["reason"] is None}


ANN = {"attribution": "Ann", "country": "no"}


def test_values_are_corrected_in_the_catalog_and_in_shards_and_all_else_stays(place: Place) -> None:
    before = contents(place)
    done = amended(place, {"image_id": "image-0", **ANN}, {"image_id": "image-5", "provider": "P"}, {"image_id": "x-9"})
    assert (done.rows, done.images, done.changed_shards, done.unknown) == (2, 1, (0,), 1)
    assert done.values == {"attribution": 1, "provider": 1, "country": 1}
    assert credits(place) == {0: ("Ann", None, None, "NO"), 1: (None, None, None, None)}
    after = contents(place)
    kept = {path for path in before if path.startswith(("shards/", "masks/", "rejects/", "dataset.json"))}
    assert {path: after.get(path) for path in kept} == {path: before[path] for path in kept}
    assert not [path for path in after if path.startswith("claims/")]
    manifest, generation = load_latest_manifest(place.location)
    (part,) = manifest.catalog
    assert (generation, [path for path in after if path.startswith("catalog/")]) == (2, [part.path])
    assert read_rows(place.location / part.path, 5, 6).column("provider").to_pylist() == ["P"]
    version = latest_version(place.location)
    assert version is not None
    assert (version.command, version.digest) == ("amend", done.version.digest)
    assert (version.reason or "").startswith("from corrected.jsonl, SHA-256 ")
    write(place, 1, variant=2)
    assert credits(place, 1)[5] == (None, "P", None, None)  # its rows were made of the catalog as it was
    assert audit_integrity(place.location).findings.total == 0
    again = amended(place, {"image_id": "image-0", **ANN})
    assert (again.rows, again.changed_shards, again.version.digest) == (0, (), latest_version(place.location).digest)


def test_an_absent_value_is_kept_or_cleared(place: Place) -> None:
    amended(place, {"image_id": "image-0", **ANN})
    assert amended(place, {"image_id": "image-0", "country": "DE"}).values == {"country": 1}
    assert credits(place)[0] == ("Ann", None, None, "DE")
    assert amended(place, {"image_id": "image-0", "country": "DE"}, clear=True).values == {}, "it has no such column"
    corrected = {"image_id": "image-0", "country": "DE", "attribution": None}
    done = amended(place, corrected, clear=True, reason="asked by Ann")
    assert (done.values, credits(place)[0]) == ({"attribution": 1}, (None, None, None, "DE"))
    assert (latest_version(place.location).reason) == "asked by Ann"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"license": "MIT"}, "1 row with another license, the first is row 1, image_id 'image-0': 'CC0-1.0' in the"),
        ({"uri": "other.jpg"}, "with another uri"),
        ({"redistributable": True}, "with another redistributable"),
        ({"image_id": "image-77"}, "names no row of"),
    ],
)
def test_a_catalog_that_says_otherwise_of_anything_else_is_refused_as_a_whole(
    place: Place, row: dict[str, Any], says: str
) -> None:
    before = contents(place)
    with pytest.raises(UsageError) as caught:
        amended(place, {"image_id": "image-0", **ANN, **row})
    assert says in str(caught.value)
    assert contents(place) == before


def test_a_list_changes_nothing(place: Place) -> None:
    before = contents(place)
    listed = list_amendment(place.location, location_of(catalog(place, {"image_id": "image-0", **ANN})))
    assert "  'image-0': country nothing -> 'NO'" in listed.lines()
    assert (listed.rows, listed.shards, contents(place) == before) == (1, (0,), True)


@pytest.mark.parametrize("call", ["put shards", "create commits", "walk dataset/tombstones"])
def test_a_build_that_read_the_catalog_before_puts_in_what_was_amended_since(place: Place, call: str) -> None:
    with stepping():
        build = Stepped(lambda: write(place, 1))
        while not build.next_call.startswith(call):
            build.step()
        amended(place, {"image_id": "image-3", **ANN})
        build.finish()
    assert build.error is None
    assert credits(place, 1)[3] == ("Ann", None, None, "NO")
    assert audit_integrity(place.location).findings.total == 0


@pytest.mark.parametrize("call", ["create dataset/dataset.g2", "create commits"])
def test_an_amendment_beside_a_takedown_growth_and_a_redaction_loses_nothing(place: Place, call: str) -> None:
    with stepping():
        late = Stepped(lambda: amended(place, {"image_id": "image-0", **ANN}, {"image_id": "image-1", **ANN}))
        while not late.next_call.startswith(call):
            late.step()
        takedown(place.location, Asked(ids=("image-0",)), "asked for")
        grow(place)
        mark(place, 1, x=5)
        late.finish()
    assert late.error is None
    assert mentions(Path(place.uri), ["image-0"]) == []
    assert credits(place) == {1: ("Ann", None, None, "NO")}
    write(place, 1)
    write(place, 2)
    assert len(load_manifest(place.location).catalog) == 2
    assert audit_integrity(place.location).findings.total == 0
