"""Recorded versions: numbers, races, and files that someone has changed."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from segmint import open_dataset
from segmint.catalogs.dataset import commits as summaries
from segmint.catalogs.dataset import digest
from segmint.catalogs.dataset.digest import current_digest, take_snapshot
from segmint.catalogs.dataset.manifest import load_manifest
from segmint.catalogs.dataset.reader import Dataset
from segmint.catalogs.dataset.tombstones import (
    RemovedImage,
    TakedownRequest,
    Tombstone,
    list_tombstones,
    put_tombstone,
)
from segmint.catalogs.dataset.versions import (
    RemovedVersionError,
    Version,
    VersionName,
    files_sha256,
    find_version,
    latest_version,
    list_files,
    name_now,
    put_version,
    read_history,
    read_version,
    version_numbers,
)
from segmint.catalogs.layout import DamagedDatasetError
from segmint.infra.errors import UsageError
from segmint.infra.storage.storage import Storage
from tests.support.committed import sum_commits, write_generation
from tests.support.locations import location_of

NOW = datetime(2026, 11, 21, 12, 30, 5, tzinfo=UTC)

DAY = datetime(2026, 11, 21, tzinfo=UTC)


def test_a_version_says_what_the_dataset_is_and_what_made_it_so(dataset: str) -> None:
    location = location_of(dataset)
    assert latest_version(location) is None
    assert name_now(location) == VersionName(current_digest(location), None)
    name = put_version(location, "build", now=NOW)
    assert name == name_now(location) == VersionName(current_digest(location), 1)
    assert str(name) == f"sha256:{name.digest[:12]} (version 1)"
    document = json.loads(Path(dataset, "versions/1.json").read_bytes())
    commits = document.pop("commits")
    assert [(shard, generation) for shard, generation, _ in commits] == [(0, 1), (1, 1), (2, 1)]
    assert sorted(document.pop("files")) == ["catalog/part-0-000000000000.parquet", "dataset.json"]
    assert document.pop("counts") | {"bytes": 0} == {
        "shards": 3, "bytes": 0, "rows": 9, "images": 6, "masks": 12, "rejected": 3,
    }  # fmt: skip
    assert document["digest"] == name.digest
    assert (document["before"], document["command"], document["when"]) == (None, "build", "2026-11-21T12:30:05Z")

    write_generation(location, shard=1, generation=2, refuse=3)
    assert name_now(location).number is None
    assert "(not recorded as a version)" in str(name_now(location))
    second = put_version(location, "takedown", "its author asked", now=NOW)
    version = read_version(location, 2)
    assert (second.number, version.before, version.digest) == (2, name.digest, current_digest(location))
    assert version.made_by() == "version 2 (takedown of 2026-11-21: its author asked)"
    assert version.snapshot.digest == version.digest


def test_the_list_of_files_has_leaves_and_data_files_in_the_format_of_sha256sum(dataset: str) -> None:
    location = location_of(dataset)
    snapshot = take_snapshot(location)
    files = list(list_files(location, snapshot))
    assert [file for file in files if file in snapshot.leaves] == list(snapshot.leaves)
    assert len({file.path for file in files}) == len(files) == len(snapshot.leaves) + 4 * 3
    text = "".join(f"{file.sha256}  {file.path}\n" for file in files)
    assert files_sha256(location, snapshot) == hashlib.sha256(text.encode()).hexdigest()
    (location / "commits/000001.g1.json").delete()
    with pytest.raises(DamagedDatasetError, match=r"commits/000001\.g1\.json is gone"):
        files_sha256(location, snapshot)


@pytest.mark.parametrize(
    "changed", [{"path": "../../etc/passwd"}, {"path": "/etc/passwd"}, {"sha256": f"{'0' * 64}  a\n{'1' * 64}"}]
)
def test_the_list_of_files_only_names_files_of_a_dataset(dataset: str, changed: dict[str, str]) -> None:
    file = Path(dataset, "commits/000001.g1.json")
    commit = json.loads(file.read_bytes())
    commit["files"][0] |= changed
    file.write_text(json.dumps(commit))
    location = location_of(dataset)
    with pytest.raises(DamagedDatasetError, match=r"commits/000001\.g1\.json is damaged: not a file of a dataset"):
        files_sha256(location, take_snapshot(location))


def test_an_unchanged_dataset_is_not_recorded_again(dataset: str) -> None:
    location = location_of(dataset)
    assert put_version(location, "build") == put_version(location, "build") == put_version(location, "repair")
    assert version_numbers(location) == [1]


def test_versions_are_numbered_by_number_not_by_name(dataset: str) -> None:
    location = location_of(dataset)
    for number in range(1, 12):
        (location / f"tombstones/{number:012x}.json").put(b"{}")
        assert put_version(location, "takedown", applied=[f"{number:012x}.json"]).number == number
    assert version_numbers(location) == list(range(1, 12))
    assert put_version(location, "takedown").number == 11


def test_of_two_that_record_at_once_the_loser_takes_the_next_number(dataset: str) -> None:
    location = location_of(dataset)

    def correct(number: int) -> VersionName:
        (location / f"tombstones/{number:012x}.json").put(b"{}")
        return put_version(location, "takedown", applied=[entry.name for entry in list_tombstones(location)])

    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(correct, range(8)))
    numbers = version_numbers(location)
    assert numbers == list(range(1, len(numbers) + 1))
    assert {name.number for name in names} <= {*numbers, None}, "None: another put its tombstone in the meantime"
    versions = [read_version(location, number) for number in numbers]
    assert [version.before for version in versions] == [None, *(version.digest for version in versions[:-1])]
    assert versions[-1].digest == current_digest(location), "the last one has all corrections"


def test_a_version_is_found_by_number_or_digest(dataset: str) -> None:
    location = location_of(dataset)
    with pytest.raises(UsageError, match="has no version 1: none is recorded"):
        read_version(location, 1)
    digest = put_version(location, "build").digest
    for wanted in (1, "1", digest, digest[:6], f"sha256:{digest[:12]}"):
        assert find_version(location, wanted).number == 1
    with pytest.raises(UsageError, match="has no version 2: it has only 1"):
        find_version(location, 2)
    with pytest.raises(UsageError, match="no version with the digest sha256:000000: it has only 1"):
        find_version(location, "sha256:000000")
    with pytest.raises(UsageError, match="'latest' is not a version: expected its number"):
        find_version(location, "latest")


def test_no_bit_of_a_version_can_change_unseen(dataset: str) -> None:
    location = location_of(dataset)
    put_version(location, "build", now=NOW)
    data = (location / "versions/1.json").read()
    for place in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[place] ^= 1 << bit
            with pytest.raises(DamagedDatasetError, match=r"^it (is not|was changed)"):
                Version.from_json(bytes(changed), "it")


def test_a_checksum_that_fits_does_not_hide_another_digest(dataset: str) -> None:
    location = location_of(dataset)
    put_version(location, "build")
    version = read_version(location, 1)
    forged = version.model_copy(update={"digest": "0" * 64}).to_json()
    with pytest.raises(DamagedDatasetError, match="its digest is not that of the files that it lists"):
        Version.from_json(forged, "it")


def test_each_version_but_the_first_names_the_one_before_it(dataset: str) -> None:
    location = location_of(dataset)
    first = put_version(location, "build").digest
    version = read_version(location, 1)
    assert read_history(location).problems == ()
    for number, before, expected in (
        (2, None, f"sha256:{first} before it, the digest of version 1"),
        (3, None, "the digest of version 2 before it"),
        (1, "0" * 64, "no digest before the first version"),
    ):
        place = location / f"versions/{number}.json"
        place.put(version.model_copy(update={"number": number, "before": before}).to_json())
        problems = [each for each in read_history(location).problems if each.file == f"versions/{number}.json"]
        assert [each.expected for each in problems][-1:] == [expected]
        place.delete()
        location.storage.put(str(location / "versions/1.json"), version.to_json())


def test_a_damaged_version_is_not_followed_by_another(dataset: str) -> None:
    location = location_of(dataset)
    name = put_version(location, "build")
    (location / "versions/1.json").put(b"{}")
    assert name_now(location) == VersionName(name.digest, None)
    assert put_version(location, "build") == VersionName(name.digest, None)
    assert version_numbers(location) == [1]


def test_damage_is_not_recorded_as_a_version(dataset: str) -> None:
    location = location_of(dataset)
    put_version(location, "build")
    commit = location / "commits/000001.g1.json"
    data = commit.read()
    commit.put(data.replace(b"0123456789ab", b"0123456789ac"))
    assert put_version(location, "build") == VersionName(current_digest(location), None)
    commit.delete()
    assert put_version(location, "build").number is None
    commit.put(data)
    assert put_version(location, "build").number == 1
    assert version_numbers(location) == [1]


def test_a_versions_counts_come_from_the_commits_that_its_digest_read(
    dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digest, "SUMMARY_SHARDS", 2)
    monkeypatch.setattr(summaries, "SUMMARY_SHARDS", 2)
    location = location_of(dataset)
    read: list[str] = []
    original = Storage.read

    def noted(self: Storage, uri: str, max_bytes: int | None = None) -> bytes:
        read.append(uri.rpartition("/")[2])
        return original(self, uri, max_bytes)

    monkeypatch.setattr(Storage, "read", noted)
    put_version(location, "build")
    assert sorted(name for name in read if ".g" in name) == ["000000.g1.json", "000001.g1.json", "000002.g1.json"]

    # Leaves are cached now, so the commits of a full block are read only where it has no sums.
    for summary in Path(dataset, "summaries").glob("00000*"):
        summary.unlink()
    write_generation(location, shard=2, generation=2, refuse=3)
    read.clear()
    put_version(location, "redact")
    assert sorted(name for name in read if ".g" in name) == ["000000.g1.json", "000001.g1.json", "000002.g2.json"]
    assert read_version(location, 2).counts["images"] == sum_commits(location).counts["images"] == 4


def test_a_commit_that_cannot_be_read_is_not_counted_as_nothing(dataset: str) -> None:
    location = location_of(dataset)
    (location / "commits/000001.g1.json").put(b"{}")
    with pytest.raises(DamagedDatasetError, match=r"000001\.g1\.json is not a commit"):
        put_version(location, "build")
    assert version_numbers(location) == []


def ids_of(uri: str, version: int | str | None = None) -> list[int]:
    return [sample.id for sample in open_dataset(uri, version=version)]


def test_shards_that_came_later_are_not_in_an_earlier_version(dataset: str) -> None:
    location = location_of(dataset)
    (location / "commits/000002.g1.json").delete()
    first = put_version(location, "build")
    write_generation(location, shard=2)
    put_version(location, "build")
    assert ids_of(dataset) == ids_of(dataset, 2) == [1, 2, 4, 5, 7, 8]
    assert ids_of(dataset, 1) == ids_of(dataset, first.digest) == [1, 2, 4, 5]
    opened = open_dataset(dataset, version=1)
    assert (len(opened), opened.version.number if opened.version else None) == (4, 1)
    assert open_dataset(dataset).version is None


def test_the_manifest_is_that_of_the_version(dataset: str) -> None:
    location = location_of(dataset)
    put_version(location, "build")
    before = load_manifest(location)
    (location / "dataset.g2.json").put(before.model_copy(update={"licenses": {"CC0-1.0": 9}}).to_json())
    put_version(location, "build")
    assert Dataset.open(location, 1).manifest == before
    assert Dataset.open(location, 2).manifest.licenses == {"CC0-1.0": 9}


def test_an_error_says_which_correction_removed_what(dataset: str) -> None:
    location = location_of(dataset)
    put_version(location, "build", now=DAY)
    write_generation(location, shard=0, generation=2, refuse=2)
    image = RemovedImage(ordinal=0, id=1, image_id="image-0", uri="/photos/0.jpg", sha256=None)
    tombstone = Tombstone(request=TakedownRequest(ids=("1",)), reason="its author asked", when="now", images=(image,))
    put_tombstone(location, tombstone)
    assert ids_of(dataset, 1) == [1, 2, 4, 5, 7, 8], "the files are still there"
    (location / "commits/000000.g1.json").delete()
    put_version(location, "takedown", now=DAY, applied=[tombstone.name])
    write_generation(location, shard=2, generation=2, refuse=2)
    (location / "commits/000002.g1.json").delete()
    with pytest.raises(RemovedVersionError) as caught:
        open_dataset(dataset, version=1)
    assert str(caught.value).splitlines() == [
        f"version 1 of {dataset} can no longer be read:",
        f"  version 2 (takedown of 2026-11-21) replaced shard 0; tombstones/{tombstone.name}: its author asked",
        "  a correction that recorded no version replaced shard 2",
        "Open a later version, or omit the version to open the dataset's current state",
    ]
    put_version(location, "redact", now=DAY)
    with pytest.raises(RemovedVersionError, match=r"version 3 \(redact of 2026-11-21\) replaced shard 2\n"):
        open_dataset(dataset, version=1)
    assert ids_of(dataset, 3) == ids_of(dataset)


def test_files_that_nothing_replaced_are_damage(dataset: str) -> None:
    location = location_of(dataset)
    put_version(location, "build")
    commit = location / "commits/000001.g1.json"
    data = commit.read()
    commit.put(data.replace(b'"masks":4', b'"masks":5'))
    with pytest.raises(DamagedDatasetError, match=r"000001\.g1\.json was changed since the version was recorded"):
        ids_of(dataset, 1)
    commit.delete()
    with pytest.raises(DamagedDatasetError, match=r"commits/000001\.g1\.json are gone, and no later generation"):
        open_dataset(dataset, version=1)
    commit.put(data)
    manifest = location / "dataset.json"
    manifest.put(manifest.read().replace(b'"small"', b'"other"'))
    with pytest.raises(DamagedDatasetError, match=r"dataset\.json was changed"):
        open_dataset(dataset, version=1)
    with pytest.raises(UsageError, match="has no version 7: it has only 1"):
        open_dataset(dataset, version=7)
