"""Redacting a real dataset: the old picture is gone, the rest stays, and a crash on the way loses nothing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.reading.torch_dataset import open_dataset
from segmint.catalogs.dataset.versions import name_now
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.pipeline.corrections.redact import RedactResult, redact
from segmint.pipeline.quality.audit.integrity import audit_integrity
from tests.support.builds import digests
from tests.support.committed import write_dataset
from tests.support.everything import download, download_versions, jpegs, upload
from tests.support.killed_writes import KilledProcessError, dying_after
from tests.support.locations import location_of
from tests.support.s3_server import S3Server
from tests.support.traces import files_with_traces, scan_data, telling_windows

WANTED = [
    {"id": 1, "kind": "face", "x": 90, "y": 10, "w": 60, "h": 80},
    {"id": 5, "kind": "plate", "x": 0, "y": 0, "w": 240, "h": 20},
    {"id": 5, "kind": "other", "x": 100, "y": 100, "w": 40, "h": 30},
]


@pytest.fixture
def regions(tmp_path: Path) -> str:
    """Regions in image 1 of shard 0 and image 5 of shard 1."""
    return write(tmp_path / "regions.jsonl", WANTED)


def write(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def old_windows(before: dict[str, bytes], after: dict[str, bytes], names: list[str]) -> np.ndarray:
    """Byte sequences that identify the old pictures and not the new ones, which share their unchanged parts."""
    gone = [np.setdiff1d(telling_windows(scan_data(before[n])), telling_windows(scan_data(after[n]))) for n in names]
    assert all(len(windows) > 100 for windows in gone)
    return np.unique(np.concatenate(gone))


def test_the_old_pictures_are_gone_and_the_rest_stays(dataset: Path, regions: str) -> None:
    storage, uri = Storage(), str(dataset)
    location = Location(storage, uri)
    before, old = jpegs(dataset), {sample.id: sample for sample in open_dataset(uri)}
    commits = list(CommitLog(location).read_all())

    done = redact(location, location_of(regions))
    assert done == RedactResult(uri, 3, 2, 2, (0, 1), name_now(location))
    assert done.version.number == 1
    assert done.lines()[-1] == f"dataset digest: {done.version}"
    after, new = jpegs(dataset), {sample.id: sample for sample in open_dataset(uri)}
    assert {name for name in before if before[name] != after[name]} == {"sa_1.jpg", "sa_5.jpg"}
    assert files_with_traces(old_windows(before, after, ["sa_1.jpg", "sa_5.jpg"]), [dataset]) == []
    for id, sample in old.items():
        assert new[id].masks == sample.masks
        changed = {name for name in sample.row if sample.row[name] != new[id].row[name]}
        counts = {"faces", "plates", "regions", "hashes", "redacted_share"} & changed
        assert changed == ({"release_sha256", *counts} if id in (1, 5) else set())
    assert new[1].row["faces"] == old[1].row["faces"] + 1
    assert new[5].row["plates"] == old[5].row["plates"] + 1
    assert [region["kind"] for region in new[5].row["regions"][-2:]] == ["plate", "other"]

    generations = CommitLog(location).generations()
    assert generations == {0: [2], 1: [2], 2: [1]}
    held = list(CommitLog(location).read_all())
    assert [commit.numerics for commit in held] == [commit.numerics for commit in commits]
    without = [{**commit.counts, "highly_redacted": 0} for commit in held]
    assert without == [{**commit.counts, "highly_redacted": 0} for commit in commits]
    for commit in held:
        assert len(commit.most_redacted) == commit.counts.get("highly_redacted", 0)
    assert new[1].row["redacted_share"] > old[1].row["redacted_share"] > 0
    assert audit_integrity(Location(storage, uri)).findings.total == 0
    assert json.loads((dataset / "shards.json").read_bytes())["shardlist"][0]["url"] == held[0].file("shards").path


def test_again_changes_nothing_and_a_new_region_is_added(dataset: Path, regions: str) -> None:
    redact(location_of(dataset), location_of(regions))
    once = digests(dataset)
    version = name_now(location_of(dataset))
    (dataset / "a.txt").write_text("mine")
    again = redact(location_of(dataset), location_of(regions))
    assert again == RedactResult(str(dataset), 3, 2, 0, (), version, unknown_files=("a.txt",))
    assert not any("were deleted" in line for line in again.lines())
    (dataset / "a.txt").unlink()
    assert digests(dataset) == once
    more = write(Path(regions).with_name("more.jsonl"), [*WANTED, {**WANTED[0], "x": 0}])
    assert redact(location_of(dataset), location_of(more)).changed_shards == (0,)


def test_a_report_that_shows_the_picture_goes(dataset: Path, regions: str) -> None:
    (dataset / "report" / "crops").mkdir(parents=True)
    (dataset / "report" / "crops" / "1.jpg").write_bytes(jpegs(dataset)["sa_1.jpg"])
    redact(location_of(dataset), location_of(regions))
    assert [path for path in digests(dataset) if path.startswith("report/")] == []


@pytest.mark.parametrize("step", [10, pytest.param(1, marks=pytest.mark.long)])
def test_killed_after_any_write_and_run_again_it_ends_in_the_same_bytes(
    small_dataset: Path, tmp_path: Path, regions: str, step: int
) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(small_dataset, whole)
    with dying_after(None) as counted:
        redact(location_of(whole), location_of(regions))
    expected = digests(whole)
    assert counted.spent > 15
    for writes in range(step // 2, counted.spent, step):
        dataset = tmp_path / f"killed-{writes}"
        shutil.copytree(small_dataset, dataset)
        with dying_after(writes), pytest.raises(KilledProcessError):
            redact(location_of(dataset), location_of(regions))
        assert len(list(open_dataset(str(dataset)))) == 6  # one whole generation of each shard
        redact(location_of(dataset), location_of(regions))
        assert digests(dataset) == expected
        shutil.rmtree(dataset)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"id": 3}, "row 4, id: the dataset has no image 3"),  # refused for its license
        ({"id": 99}, "row 4, id: the dataset has no image 99"),
        ({"id": 10**15}, "row 4, id: the dataset has no image"),
        (
            {"x": 235, "w": 6},
            r"row 4: the box of 6 x 80 pixels at \(235, 10\) extends beyond image 1, which is 240 x 180 pixels",
        ),
        ({"y": 170, "h": 11}, r"row 4: the box of 60 x 11 pixels at \(90, 170\) extends beyond image 1"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_changed(
    dataset: Path, tmp_path: Path, row: dict[str, int], told: str
) -> None:
    before = digests(dataset)
    path = write(tmp_path / "regions.jsonl", [*WANTED, {**WANTED[0], **row}])
    with pytest.raises(UsageError, match=told):
        redact(location_of(dataset), location_of(path))
    assert digests(dataset) == before


def test_annotations_alone_have_nothing_to_redact(dataset: Path, tmp_path: Path, regions: str) -> None:
    manifest = json.loads((dataset / "dataset.json").read_bytes())
    manifest["config"]["release"]["format"] = "annotations"
    (dataset / "dataset.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="only contains annotations"):
        redact(location_of(dataset), location_of(regions))
    with pytest.raises(UsageError, match="is not a segmint dataset"):
        redact(location_of(tmp_path / "nowhere"), location_of(regions))
    write_dataset(location_of(tmp_path / "other"), shards=1)
    with pytest.raises(UsageError, match="doesn't say how images are released"):
        redact(location_of(tmp_path / "other"), location_of(regions))


@pytest.mark.long
@pytest.mark.s3
def test_no_older_version_of_the_picture_is_left_on_s3(
    small_dataset: Path,
    tmp_path: Path,
    regions: str,
    s3_server: S3Server,
    s3_bucket: str,
    s3_options: dict[str, dict[str, str]],
) -> None:
    versioning = {"Status": "Enabled"}
    s3_server.client().put_bucket_versioning(Bucket=s3_bucket, VersioningConfiguration=versioning)
    storage, uri = Storage(s3_options), f"s3://{s3_bucket}/some/dataset"
    upload(small_dataset, Location(storage, uri))
    redact(Location(storage, uri), location_of(regions))
    copy = download(Location(storage, uri), tmp_path / "copy")
    shutil.copytree(small_dataset, tmp_path / "local")
    redact(location_of(tmp_path / "local"), location_of(regions))
    assert digests(copy) == digests(tmp_path / "local")
    windows = old_windows(jpegs(small_dataset), jpegs(copy), ["sa_1.jpg", "sa_5.jpg"])
    versions = download_versions(s3_server, s3_bucket, tmp_path / "versions")
    assert len(list(versions.iterdir())) >= len(digests(copy))
    assert files_with_traces(windows, [versions]) == []
    assert files_with_traces(windows, [small_dataset])
