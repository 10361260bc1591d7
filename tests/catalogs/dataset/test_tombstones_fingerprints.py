"""Fingerprints: what is added stays, what is forgotten is gone, and the latest generation alone counts."""

from pathlib import Path

import pytest

from segmint.catalogs.dataset.digest import Snapshot, VersionLeaf, compare_snapshots
from segmint.catalogs.dataset.tombstones import (
    Fingerprint,
    OtherPicture,
    ShardFingerprints,
    change_fingerprints,
    damaged_fingerprints,
    fingerprints_path,
    forget_fingerprints,
    list_fingerprints,
    parse_fingerprints_path,
    put_fingerprints,
    read_fingerprints,
)
from segmint.catalogs.layout import DamagedDatasetError, is_known
from tests.support.locations import location_of

ONE = Fingerprint(released=("a" * 64,), pixels="b" * 64, hashes=f"{7:016x}" * 9)
EARLIER = Fingerprint(released=("c" * 64,))


def names(dataset: Path) -> list[str]:
    return sorted(path.name for path in (dataset / "fingerprints").iterdir())


def test_hashes_are_added_in_generations(tmp_path: Path) -> None:
    location = location_of(tmp_path)
    assert read_fingerprints(location) == {}
    put_fingerprints(location, 3, {})
    assert not (tmp_path / "fingerprints").exists()
    put_fingerprints(location, 3, {7: EARLIER, 8: Fingerprint()})
    put_fingerprints(location, 3, {7: ONE})
    put_fingerprints(location, 3, {7: EARLIER})  # nothing new
    put_fingerprints(location, 1_234_567, {9: ONE})
    assert names(tmp_path) == ["000003.g2.json", "1234567.g1.json"]
    found = read_fingerprints(location)
    joined = ONE.model_copy(update={"released": ("a" * 64, "c" * 64)})
    assert found[3].images == {7: joined, 8: Fingerprint()}
    assert joined.digests == {"a" * 64, "b" * 64, "c" * 64}
    assert joined.views().tolist() == [[7] * 9]
    assert EARLIER.views().shape == (0, 9)


def test_what_is_forgotten_is_gone_and_not_added_again(tmp_path: Path) -> None:
    location = location_of(tmp_path)
    put_fingerprints(location, 0, {1: ONE, 2: ONE})
    (tmp_path / "fingerprints" / "000000.g0.json").write_text("not segmint's")
    forget_fingerprints(location, 0, [1])
    forget_fingerprints(location, 0, [1])
    put_fingerprints(location, 0, {1: ONE})
    assert read_fingerprints(location)[0].images == {1: Fingerprint(forgotten=True), 2: ONE}
    assert names(tmp_path) == ["000000.g0.json", "000000.g2.json"]


def test_the_latest_generation_counts_and_the_others_are_deleted_by_the_next_writer(tmp_path: Path) -> None:
    location = location_of(tmp_path)
    for number in (1, 2, 10):  # as if writers had died before they deleted the replaced ones
        data = ShardFingerprints(images={number: ONE}).to_json()
        (location / fingerprints_path(0, number)).put(data)
    assert {shard: number for shard, (number, _) in list_fingerprints(location).items()} == {0: 10}
    put_fingerprints(location, 0, {10: ONE})
    assert names(tmp_path) == ["000000.g10.json"]


def test_a_writer_that_slept_starts_over(tmp_path: Path) -> None:
    location = location_of(tmp_path)
    put_fingerprints(location, 0, {1: ONE})
    slept = False

    def change(now: ShardFingerprints) -> ShardFingerprints:
        nonlocal slept
        if not slept:  # others put two generations meanwhile, and delete those that they replace
            slept = True
            put_fingerprints(location, 0, {2: ONE})
            put_fingerprints(location, 0, {3: ONE})
        return now.joined({4: ONE})

    change_fingerprints(location, 0, change)
    assert read_fingerprints(location)[0].images.keys() == {1, 2, 3, 4}
    assert names(tmp_path) == ["000000.g4.json"]


@pytest.mark.parametrize("other", [b"", b"[]", b"{}", b'{"digest": 1}', b"\xff"])
def test_damage_is_reported_with_its_file(tmp_path: Path, other: bytes) -> None:
    location = location_of(tmp_path)
    put_fingerprints(location, 0, {1: ONE})
    file = tmp_path / fingerprints_path(0, 1)
    for data in (other, file.read_bytes().replace(b"aaaa", b"aaab"), file.read_bytes() + b" "):
        file.write_bytes(data)
        with pytest.raises(DamagedDatasetError, match=r"fingerprints/000000\.g1\.json .*segmint repair"):
            read_fingerprints(location)
        assert damaged_fingerprints(location).keys() == {"fingerprints"}
        file.unlink()
        put_fingerprints(location, 0, {1: ONE})


def test_paths_and_decisions(tmp_path: Path) -> None:
    decision = OtherPicture(id=4, tombstone="x.json", reason="another", when="2026-11-24T00:00:00Z")
    change_fingerprints(location_of(tmp_path), 2, lambda now: now.with_decision(decision))
    assert read_fingerprints(location_of(tmp_path))[2].others == (decision,)
    assert is_known(fingerprints_path(2, 1))
    assert parse_fingerprints_path("fingerprints/000002.g1.json") == (2, 1)
    assert parse_fingerprints_path("commits/000002.g1.json") is None


def test_replaced_fingerprints_are_no_damage_and_missing_ones_are() -> None:
    def snapshot(*paths: str) -> Snapshot:
        return Snapshot.of(VersionLeaf(path, "0" * 64) for path in paths)

    before = snapshot("fingerprints/000001.g1.json", "commits/000001.g1.json")
    replaced = compare_snapshots(before, snapshot("fingerprints/000001.g2.json", "commits/000001.g1.json"))
    assert (replaced.damaged, replaced.replaced) == (False, ("fingerprints/000001.g1.json",))
    for other in ("commits/000001.g2.json", "fingerprints/000002.g2.json"):
        assert compare_snapshots(before, snapshot(other, "commits/000001.g1.json")).missing
