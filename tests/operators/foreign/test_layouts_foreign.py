"""Pairs and tars are found in a listing, whatever else is in it."""

from pathlib import Path

from segmint.catalogs.dataset.tables import Foreign
from segmint.operators.foreign.layouts import IMAGES_IN_SHARD, ForeignFile, find_shards, kind_of
from tests.support.locations import location_of


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"xy")


def test_pairs_are_found_by_their_names(tmp_path: Path) -> None:
    touch(tmp_path, "sa_1.jpg", "sa_1.json", "sa_10.JPEG", "sa_10.JSON", "b/x.y.jpg", "b/x.y.json", "b/x.jpg", "notes")
    shards = list(find_shards(location_of(tmp_path), Foreign()))
    assert [(shard.shard, shard.tar) for shard in shards] == [(0, None)]
    assert sorted(pair.name for pair in shards[0].images) == ["b/x", "b/x.y", "sa_1", "sa_10"]
    last = shards[0].images[-1]
    picture = ForeignFile("b/x.jpg", str(tmp_path / "b/x.jpg"), 2)
    assert (last.name, last.picture, last.labels) == ("b/x", picture, None), "what has no other half comes last"


def test_a_tar_is_a_shard_and_loose_pairs_are_cut(tmp_path: Path) -> None:
    touch(
        tmp_path, "c.tar", "a.tar", *(f"x{i:05}.{end}" for i in range(IMAGES_IN_SHARD + 1) for end in ("jpg", "json"))
    )
    shards = list(find_shards(location_of(tmp_path), Foreign()))
    assert [shard.shard for shard in shards] == list(range(4))
    assert [shard.tar for shard in shards if shard.tar] == ["a.tar", "c.tar"]
    assert [len(shard.images) for shard in shards if not shard.tar] == [IMAGES_IN_SHARD, 1]


def test_endings_decide() -> None:
    assert [kind_of(name) for name in ("a.jpg", "a.JPEG", "a.json", "a.png", "jpg")] == [
        "jpeg",
        "jpeg",
        "json",
        None,
        None,
    ]
