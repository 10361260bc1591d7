"""The version digest: what it covers, where a dataset lies, and what is cached of it."""

import hashlib
from pathlib import Path

import pytest

from segmint.catalogs.dataset import commits, digest
from segmint.catalogs.dataset.digest import current_digest, drop_cached_leaves, short_digest, take_snapshot
from segmint.catalogs.dataset.tombstones import RemovedImage, TakedownRequest, Tombstone, put_tombstone
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from tests.support.committed import write_dataset, write_generation
from tests.support.everything import upload
from tests.support.locations import location_of
from tests.support.stepped import SteppedThreads, stepping


def test_the_digest_can_be_computed_without_segmint(dataset: str) -> None:
    folder = Path(dataset)
    part = "catalog/part-0-000000000000.parquet"
    lines = [f"{'0' * 64}  {part}"]  # the manifest says its hash
    for path in ["commits/000000.g1.json", "commits/000001.g1.json", "commits/000002.g1.json", "dataset.json"]:
        lines.append(f"{hashlib.sha256((folder / path).read_bytes()).hexdigest()}  {path}")
    one, two, three, four, five = (hashlib.sha256(b"\x00" + line.encode()).digest() for line in lines)

    def node(left: bytes, right: bytes) -> bytes:
        return hashlib.sha256(b"\x01" + left + right).digest()

    root = node(node(node(one, two), node(three, four)), five).hex()
    assert current_digest(location_of(dataset)) == root
    assert short_digest(root) == f"sha256:{root[:12]}"


def test_a_digest_is_of_one_moment(dataset: str) -> None:
    """A shard is replaced and an image taken down between the listings of commits and of tombstones."""
    image = RemovedImage(ordinal=0, id=1, image_id="image-0", uri="/photos/0.jpg", sha256=None)
    with stepping():
        reader = SteppedThreads(lambda: take_snapshot(location_of(dataset)))
        while not reader.next_call.endswith("/dataset.json"):
            reader.step()
        states = {current_digest(location_of(dataset))}
        write_generation(location_of(dataset), shard=1, generation=2, refuse=3)
        states.add(current_digest(location_of(dataset)))
        tombstone = Tombstone(request=TakedownRequest(ids=("1",)), reason="asked", when="now", images=(image,))
        put_tombstone(location_of(dataset), tombstone)
        states.add(current_digest(location_of(dataset)))
        reader.finish()
    assert reader.error is None
    assert reader.result.digest in states


def test_only_what_the_dataset_is_changes_its_digest(dataset: str) -> None:
    location = location_of(dataset)
    before = current_digest(location)
    for path in ("shards.json", "report/index.html", "versions/1.json", "summaries/x.json", "commits/.tmp-1", "note"):
        (location / path).put(b"anything")
    assert current_digest(location) == before

    seen = {before}
    write_generation(location, shard=1, generation=2, refuse=3)
    seen.add(current_digest(location))
    (location / "commits/000001.g1.json").delete()  # a replaced commit does not count
    assert current_digest(location) in seen
    image = RemovedImage(ordinal=0, id=1, image_id="image-0", uri="/photos/0.jpg", sha256=None)
    put_tombstone(location, Tombstone(request=TakedownRequest(ids=("1",)), reason="asked", when="now", images=(image,)))
    seen.add(current_digest(location))
    (location / "commits/000002.g1.json").delete()
    seen.add(current_digest(location))
    manifest = (location / "dataset.json").read()
    (location / "dataset.g2.json").put(manifest)
    seen.add(current_digest(location))
    assert len(seen) == 5


def test_every_byte_of_manifest_and_commits_counts(dataset: str) -> None:
    location = location_of(dataset)
    seen = {current_digest(location)}
    changes = 0
    for name, old, new in [
        ("dataset.json", b'"code_version":"0"', b'"code_version":"1"'),
        ("dataset.json", b"2026-01-01", b"2026-01-02"),
        ("commits/000001.g1.json", b"0123456789ab", b"0123456789ac"),
    ]:
        data = (location / name).read()
        assert old in data
        (location / name).put(data.replace(old, new))
        seen.add(current_digest(location))
        changes += 1
    assert len(seen) == changes + 1


@pytest.mark.s3
def test_a_copy_on_s3_has_the_same_digest(dataset: str, s3_bucket: str, s3_options: dict[str, dict[str, str]]) -> None:
    there = Location(Storage(s3_options), f"s3://{s3_bucket}/copy")
    upload(Path(dataset), there)
    assert current_digest(there) == current_digest(location_of(dataset))


def test_full_blocks_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "SUMMARY_SHARDS", 2)
    monkeypatch.setattr(digest, "SUMMARY_SHARDS", 2)
    location = location_of(tmp_path / "dataset")
    write_dataset(location, shards=5)
    first = take_snapshot(location)
    assert not (tmp_path / "dataset/summaries").exists(), "a reader writes nothing"
    assert take_snapshot(location, save_cache=True) == first
    assert len(list((tmp_path / "dataset/summaries").iterdir())) == 2

    read: list[str] = []
    original = Location.read

    def counted(self: Location, max_bytes: int | None = None) -> bytes:
        if "/commits/" in self.uri:
            read.append(self.name)
        return original(self, max_bytes)

    monkeypatch.setattr(Location, "read", counted)
    assert take_snapshot(location) == first
    assert read == ["000004.g1.json"], "only the block that is not full yet is read"
    read.clear()
    assert take_snapshot(location, use_cache=False) == first
    assert len(read) == 5

    write_generation(location, shard=0, generation=2, refuse=3)
    read.clear()
    second = take_snapshot(location, save_cache=True)
    assert sorted(read) == ["000000.g2.json", "000001.g1.json", "000004.g1.json"]
    assert second == take_snapshot(location, use_cache=False) != first
    names = sorted(path.name[:14] for path in (tmp_path / "dataset/summaries").iterdir())
    assert names == ["leaves-000000-", "leaves-000002-"], "the leaves that no longer fit are gone"

    for path in (tmp_path / "dataset/summaries").iterdir():
        path.write_bytes(path.read_bytes().replace(b"a", b"b", 1))
    assert take_snapshot(location) == second, "damaged leaves are not used"
    for path in (tmp_path / "dataset/summaries").iterdir():
        path.write_bytes(b"[" * 100_000)
    assert take_snapshot(location) == second, "leaves that cannot be read are not used"
    take_snapshot(location, save_cache=True)
    drop_cached_leaves(location, [3])
    assert [path.name[:14] for path in (tmp_path / "dataset/summaries").iterdir()] == ["leaves-000000-"]


def test_a_commit_that_is_replaced_while_it_is_listed(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    location = location_of(dataset)
    original = Location.read

    def late(self: Location, max_bytes: int | None = None) -> bytes:
        if self.name == "000001.g1.json":
            write_generation(location, shard=1, generation=2, refuse=3)
            self.delete()
        return original(self, max_bytes)

    monkeypatch.setattr(Location, "read", late)
    found = take_snapshot(location)
    assert "commits/000001.g2.json" in found.by_path
    assert "commits/000001.g1.json" not in found.by_path


def test_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not a segmint dataset: no dataset\.json"):
        current_digest(location_of(tmp_path))
