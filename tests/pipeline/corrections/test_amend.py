"""Amendments: what is corrected and what is refused, beside builds and other corrections."""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from segmint.catalogs.dataset.digest import current_digest
from segmint.catalogs.dataset.manifest import DatasetHandle, load_latest_manifest, load_manifest
from segmint.catalogs.dataset.tombstones import TakedownRequest
from segmint.catalogs.dataset.versions import latest_version
from segmint.catalogs.parquet import AMENDABLE
from segmint.catalogs.source.files import read_rows
from segmint.infra.errors import UsageError
from segmint.infra.ray_session import Cluster
from segmint.operators.shards.revise import finish_dead_writers, read_committed_rows
from segmint.pipeline.corrections.amend import AmendResult, amend, list_amendment
from segmint.pipeline.corrections.correction import revise
from segmint.pipeline.corrections.repair import repair
from segmint.pipeline.corrections.takedown import takedown
from segmint.pipeline.quality.audit.integrity import audit_integrity
from tests.support.described_rows import accepted_row, described, rejected_row
from tests.support.everything import mentions
from tests.support.history_commands import grow, mark
from tests.support.locations import location_of
from tests.support.protocol import DatasetPath, contents, two_shards, write
from tests.support.stepped import SteppedThreads, stepping


@pytest.fixture
def place() -> Iterator[DatasetPath]:
    """A dataset with one of its two shards committed."""
    with two_shards(committed=1) as place:
        yield place


def catalog(place: DatasetPath, *rows: dict[str, Any]) -> Path:
    path = Path(place.uri).parent / "corrected.jsonl"
    whole = [{"uri": f"photo_{row['image_id'].partition('-')[2]}.jpg", "license": None, **row} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in whole))
    return path


def amended(place: DatasetPath, *rows: dict[str, Any], **options: Any) -> AmendResult:
    return amend(place.location, location_of(catalog(place, *rows)), **options)


def until(actor: SteppedThreads, call: str) -> SteppedThreads:
    while not actor.next_call.startswith(call):
        actor.step()
    return actor


def credits(place: DatasetPath, shard: int = 0) -> dict[int, tuple[Any, ...]]:
    """The amendable values of the images of a shard, by ordinal."""
    commit = place.log.latest(shard)
    assert commit is not None
    rows = read_committed_rows(place.location, commit)
    return {row["ordinal"]: tuple(row[name] for name in AMENDABLE) for row in rows if row["reason"] is None}


ANN = {"attribution": "Ann", "country": "no"}


def test_values_are_corrected_in_the_catalog_and_in_shards_and_all_else_stays(place: DatasetPath) -> None:
    before = contents(place)
    done = amended(place, {"image_id": "image-0", **ANN}, {"image_id": "image-5", "provider": "P"}, {"image_id": "x-9"})
    assert (done.rows, done.images, done.changed_shards, done.unknown) == (2, 1, (0,), 1)
    assert done.values == {"attribution": 1, "provider": 1, "country": 1}
    assert credits(place) == {0: ("Ann", None, None, "NO"), 1: (None, None, None, None)}
    after = contents(place)
    kept = {path for path in before if path.startswith(("shards/", "masks/", "rejects/", "dataset.json"))}
    assert {path: after.get(path) for path in kept} == {path: before[path] for path in kept}
    assert not [path for path in after if path.startswith("reservations/")]
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
    assert (again.rows, again.changed_shards, again.version.digest) == (0, (), current_digest(place.location))


def test_an_absent_value_is_kept_or_cleared(place: DatasetPath) -> None:
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
        ({"license": "MIT"}, "1 row with another license; the first is row 1, image_id 'image-0': 'CC0-1.0' in the"),
        ({"uri": "other.jpg"}, "with another uri"),
        ({"redistributable": True}, "with another redistributable"),
        ({"image_id": "image-77"}, "matches a row of"),
    ],
)
def test_a_catalog_that_says_otherwise_of_anything_else_is_refused_as_a_whole(
    place: DatasetPath, row: dict[str, Any], says: str
) -> None:
    before = contents(place)
    with pytest.raises(UsageError) as caught:
        amended(place, {"image_id": "image-0", **ANN, **row})
    assert says in str(caught.value)
    assert contents(place) == before


def test_a_list_changes_nothing(place: DatasetPath) -> None:
    before = contents(place)
    listed = list_amendment(place.location, location_of(catalog(place, {"image_id": "image-0", **ANN})))
    assert "  'image-0': country nothing -> 'NO'" in listed.lines()
    assert (listed.rows, listed.shards, contents(place) == before) == (1, (0,), True)


@pytest.mark.parametrize("call", ["put shards", "create commits", "walk dataset/tombstones"])
def test_a_build_that_read_the_catalog_before_puts_in_what_was_amended_since(place: DatasetPath, call: str) -> None:
    with stepping():
        build = until(SteppedThreads(lambda: write(place, 1)), call)
        amended(place, {"image_id": "image-3", **ANN})
        build.finish()
    assert build.error is None
    assert credits(place, 1)[3] == ("Ann", None, None, "NO")
    assert audit_integrity(place.location).findings.total == 0


@pytest.mark.parametrize("call", ["create dataset/dataset.g2", "create commits"])
def test_an_amendment_beside_a_takedown_growth_and_a_redaction_loses_nothing(place: DatasetPath, call: str) -> None:
    with stepping():
        corrected = [{"image_id": f"image-{n}", **ANN} for n in (0, 1)]
        late = until(SteppedThreads(lambda: amended(place, *corrected)), call)
        takedown(place.location, TakedownRequest(ids=("image-0",)), "asked for")
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


@pytest.mark.parametrize("late", ["build", "amendment"])
def test_of_amendments_that_cross_the_last_one_holds(place: DatasetPath, late: str) -> None:
    """One has read the values that another one takes back meanwhile, and commits them afterwards."""
    corrected = [{"image_id": f"image-{n}", "provider": "P"} for n in (0, 3)]
    with stepping():
        if late == "build":
            actor = until(SteppedThreads(lambda: write(place, 1)), "create commits/000001.g1")
            amended(place, *corrected)
            until(actor, "create commits/000001.g2")
        else:
            actor = until(SteppedThreads(lambda: amended(place, *corrected)), "create commits/000000.g2")
        amended(place, *({**row, "provider": None} for row in corrected), clear=True)
        actor.finish()
    assert actor.error is None
    shard = 1 if late == "build" else 0
    assert credits(place, shard)[shard * 3] == (None, None, None, None)
    assert audit_integrity(place.location).findings.total == 0
    assert not [path for path in contents(place) if path.startswith("reservations/")]


@pytest.mark.parametrize("mend", ["another amendment", "repair"])
def test_an_amendment_that_died_is_completed(place: DatasetPath, mend: str) -> None:
    write(place, 1)
    with stepping():
        killed = until(SteppedThreads(lambda: amended(place, {"image_id": "image-0", **ANN})), "create commits")
        killed.kill()
    (finding,) = audit_integrity(place.location).findings
    assert "as in the catalog (`segmint repair` applies the amendment); found" in finding.line()
    other = {"image_id": "image-3", "provider": "P"}
    listed = list_amendment(place.location, location_of(catalog(place, other)))
    assert "completing an earlier amendment that didn't finish: 1 shard" in listed.lines()
    if mend == "repair":
        assert "1 image amended with the catalog's values" in repair(place.location).lines()
        assert repair(place.location).credited == 0
    else:
        assert amended(place, other).changed_shards == (0, 1)
    (part,) = load_manifest(place.location).catalog
    assert [path for path in contents(place) if path.startswith("catalog/")] == [part.path]
    assert credits(place)[0] == ("Ann", None, None, "NO")
    assert audit_integrity(place.location).findings.total == 0
    assert not [path for path in contents(place) if path.startswith("reservations/")]


def test_a_repair_removes_what_an_amendment_replaced_that_died_after_its_commit(place: DatasetPath) -> None:
    amended(place, {"image_id": "image-0", "attribution": "Former Name"})
    with stepping():
        killed = until(
            SteppedThreads(lambda: amended(place, {"image_id": "image-0", **ANN})), "create commits/000000.g3"
        )
        killed.step()
        killed.kill()
    report = Path(place.uri) / "report" / "index.html"
    report.parent.mkdir()
    report.write_text("by Former Name")
    repair(place.location)
    paths = [
        path.partition("-")[0] for path in contents(place) if path.startswith(("reservations", "commits", "images"))
    ]
    assert sorted(paths) == ["commits/000000.g3.json", "images/sa_000000"]
    assert mentions(Path(place.uri), ["Former Name"]) == []
    assert credits(place)[0] == ("Ann", None, None, "NO")


@pytest.mark.parametrize("mend", ["the same amendment", "repair"])
def test_former_parts_of_an_amendment_that_died_are_removed(place: DatasetPath, mend: str) -> None:
    """The amendment died after its last commit, so no image differs from the catalog."""
    former, row = {"image_id": "image-0", "attribution": "Former Name"}, {"image_id": "image-0", **ANN}
    amended(place, former)
    with stepping():
        killed = until(SteppedThreads(lambda: amended(place, row)), "purge catalog")
        killed.kill()
    assert mentions(Path(place.uri), ["Former Name"])
    if mend == "repair":
        repair(place.location)
    else:
        done = amended(place, row)
        assert (done.rows, done.images, done.version.number) == (0, 0, 2)
    assert mentions(Path(place.uri), ["Former Name"]) == []


def test_a_list_of_an_amendment_of_segmint_0_3_0_is_ignored(place: DatasetPath) -> None:
    with stepping():
        killed = until(SteppedThreads(lambda: amended(place, {"image_id": "image-0", **ANN})), "create commits")
        killed.kill()
    old = Path(place.uri) / "reservations" / "amended.g2-0123456789ab.json"
    old.write_text('{"shards":[0]}')
    amended(place, {"image_id": "image-3", "provider": "P"})
    assert credits(place)[0] == ("Ann", None, None, "NO")
    assert old.exists()
    assert audit_integrity(place.location).findings.total == 0


def test_a_repair_mends_what_the_audit_says_that_it_mends_also_of_the_first_catalog() -> None:
    with two_shards(committed=0) as place:
        other = {**accepted_row(0), "attribution": "Ann"}
        write(place, 0, rows=described([other, accepted_row(1), rejected_row(2)]))
        (finding,) = audit_integrity(place.location).findings
        assert "`segmint repair` applies the amendment" in finding.line()
        assert repair(place.location).credited == 1
        assert audit_integrity(place.location).findings.total == 0


def test_where_there_is_nothing_to_amend_nothing_is_touched(place: DatasetPath) -> None:
    amended(place, {"image_id": "image-0", **ANN})
    report = Path(place.uri) / "report" / "index.html"
    report.parent.mkdir()
    report.write_text("a report")
    before = contents(place)

    def confirm(_: object) -> None:
        raise AssertionError

    done = amended(place, {"image_id": "image-0", **ANN}, {"image_id": "x"}, confirm=confirm)
    assert done.lines() == [
        f"nothing to amend: {place.uri} already has these values",
        "1 row not in the dataset, skipped",
        f"dataset digest: {done.version}",
    ]
    assert done.version.number == 1
    assert contents(place) == before


def test_a_catalog_that_contradicts_itself_is_refused(place: DatasetPath) -> None:
    rows = [{"image_id": "image-0", **ANN}, {"image_id": "image-0", "attribution": "Bo", "country": "NO"}]
    with pytest.raises(UsageError, match="rows 1 and 2 have the image_id 'image-0', but attribution 'Ann' and 'Bo'"):
        amended(place, *rows)


def test_a_column_that_the_dataset_does_not_read_may_hold_anything(place: DatasetPath) -> None:
    row = {"image_id": "image-0", **ANN, "opt_out": 7}
    assert amended(place, row).rows == 1


def test_a_later_build_credits_a_shard_whose_writer_died_before_it_saw_the_amendment(place: DatasetPath) -> None:
    """The build's handle is of the amended catalog, and the dead writer read its rows before."""
    with stepping():
        build = until(SteppedThreads(lambda: write(place, 1)), "create commits")
        amended(place, {"image_id": "image-3", **ANN})
        until(build, "walk dataset/tombstones")
        build.kill()
    assert credits(place, 1)[3] == (None, None, None, None)
    handle = DatasetHandle.open(place.location)
    assert handle.catalog_generation == 2
    assert finish_dead_writers(handle, range(2)) == [1]
    assert credits(place, 1)[3] == ("Ann", None, None, "NO")


@pytest.mark.ray
def test_ray_amends_the_shards_of_a_large_dataset(
    place: DatasetPath, local_ray: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(place, 1)
    monkeypatch.setattr("segmint.pipeline.corrections.amend.revise", partial(revise, ray_from=2))
    monkeypatch.chdir(Path(place.uri).parent)
    there = replace(place, uri=Path(place.uri).name)  # not the current folder of the tasks
    corrected = catalog(place, {"image_id": "image-0", **ANN}, {"image_id": "image-3", **ANN})
    assert amend(there.location, location_of(corrected)).changed_shards == (0, 1)
    assert credits(place)[0] == credits(place, 1)[3] == ("Ann", None, None, "NO")
