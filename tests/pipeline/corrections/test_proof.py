"""Proof that an image that was taken down is nowhere: each place where it may be left is found when it is there."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from segmint.catalogs.dataset.outputs import OUTPUTS
from segmint.catalogs.dataset.reading.torch_dataset import open_dataset
from segmint.catalogs.dataset.tombstones import TakedownRequest, read_tombstones
from segmint.catalogs.dataset.versions.digest import current_digest
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.pipeline.commands.cli import app
from segmint.pipeline.corrections.proof import prove
from segmint.pipeline.corrections.takedown import takedown
from segmint.pipeline.export.export import ExportOptions, export_dataset
from segmint.pipeline.export.formats import Format
from tests.support.builds import digests
from tests.support.committed_shard import CommittedShard
from tests.support.everything import upload
from tests.support.locations import location_of
from tests.support.s3_server import S3Server


@pytest.fixture
def taken(dataset: Path) -> Path:
    """The small real dataset without image 2."""
    takedown(location_of(dataset), TakedownRequest(ids=("image-1",)), "asked for")
    return dataset


def found(dataset: Path) -> list[str]:
    return list(prove(location_of(dataset), "image-1").found)


def test_nothing_is_found_and_nothing_is_changed(taken: Path) -> None:
    before = digests(taken)
    for name in ("image-1", "2", "sa_2"):
        proof = prove(location_of(taken), name)
        assert (proof.found, proof.unsearched, proof.shards, proof.reasons) == ((), (), 3, ("asked for",))
        assert proof.lines()[-1] == "not found"
    assert digests(taken) == before
    assert not (taken / OUTPUTS).exists()
    for other in ("image-4", "5", "image-77"):
        with pytest.raises(UsageError, match=r"no tombstone of .* lists"):
            prove(location_of(taken), other)


def test_the_tombstone_names_the_version_before(dataset: Path) -> None:
    before = current_digest(location_of(dataset))
    takedown(location_of(dataset), TakedownRequest(ids=("image-1",)), "asked for")
    (tombstone,) = read_tombstones(location_of(dataset))
    assert tombstone.version_before == before != current_digest(location_of(dataset))
    assert prove(location_of(dataset), "2").versions_before == (before,)


def test_its_row_and_its_bytes_are_found_in_committed_files(taken: Path, small_dataset: Path) -> None:
    shard = CommittedShard(taken, 1)
    shard.rows["images"][0]["source_sha256"] = next(
        sample.row["source_sha256"] for sample in open_dataset(str(small_dataset)) if sample.id == 2
    )
    shard.write()
    (line,) = found(taken)
    assert line.startswith("images/sa_000001-")
    assert line.endswith("ordinal 3")
    whole = CommittedShard(small_dataset, 0)
    shutil.rmtree(taken / "commits")
    for kind in ("shards", "images", "masks", "rejects", "commits"):
        shutil.copytree(small_dataset / kind, taken / kind, dirs_exist_ok=True)
    lines = found(taken)
    for kind in ("shards", "images", "masks"):
        assert any(line.startswith(whole.commit.file(kind).path) for line in lines), kind
    assert any(line.endswith(", sa_2.jpg") for line in lines)


def test_left_overs_reports_and_other_files_are_found(taken: Path, small_dataset: Path) -> None:
    leftover = next((small_dataset / "masks").glob("sa_000000-*"))
    shutil.copy(leftover, taken / "masks")
    part = next((small_dataset / "catalog").iterdir())
    shutil.copy(part, taken / "catalog")
    for path, text in (("report/index.html", "<p>sa_2.jpg</p>"), ("pages/a.html", "image-1"), ("b.txt", "image-11")):
        (taken / path).parent.mkdir(exist_ok=True)
        (taken / path).write_text(text)
    assert [line.partition(":")[0] for line in found(taken)] == [
        f"masks/{leftover.name}",
        f"catalog/{part.name}",
        f"{taken}/report/index.html mentions it",
        "pages/a.html mentions it",
    ]


@pytest.mark.parametrize("format", [Format.COCO, Format.LABEL_STUDIO])
def test_an_export_from_before_is_listed_and_found(dataset: Path, tmp_path: Path, format: Format) -> None:
    location = location_of(dataset)
    export_dataset(location, ExportOptions(format), location_of(tmp_path / "exports" / "old"))
    done = takedown(location, TakedownRequest(ids=("image-1",)), "asked for")
    (output,) = done.outputs
    assert output.startswith(f"../exports/old (segmint export --format {format}")
    assert any("created from this dataset" in line and "../exports/old" in line for line in done.lines())
    assert sorted(line.removeprefix(f"{tmp_path}/exports/old/").partition(" ")[0] for line in found(dataset)) == sorted(
        ["images/sa_2.jpg", *(path.name for path in (tmp_path / "exports" / "old").glob("*.json"))]
    )
    shutil.rmtree(tmp_path / "exports")
    proof = prove(location, "2")
    assert (proof.found, len(proof.unsearched)) == ((), 1)
    assert proof.lines()[-1] == "not found, except possibly in what wasn't searched"
    export_dataset(location, ExportOptions(format), location_of(tmp_path / "exports" / "old"))
    assert found(dataset) == []


def test_the_command_ends_with_1_if_it_is_found(taken: Path) -> None:
    def run(*more: str):
        return CliRunner().invoke(app, ["takedown", str(taken), "--prove", "image-1", *more])

    assert run().exit_code == 0
    assert json.loads(run("--json").stdout)["found"] == []
    (taken / "notes.txt").write_text("image-1")
    done = run()
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (1, "found in 1 place")


@pytest.mark.s3
def test_an_older_version_in_a_bucket_is_found(
    small_dataset: Path, s3_server: S3Server, s3_bucket: str, s3_options: dict[str, dict[str, str]]
) -> None:
    s3_server.client().put_bucket_versioning(Bucket=s3_bucket, VersioningConfiguration={"Status": "Enabled"})
    location = Location(Storage(s3_options), f"s3://{s3_bucket}/some/dataset")
    upload(small_dataset, location)
    takedown(location, TakedownRequest(ids=("image-1",)), "asked for")
    assert prove(location, "2").found == ()
    old = next((small_dataset / "shards").glob("sa_000000-*"))
    (location / "shards" / old.name).put(old.read_bytes())
    (location / "shards" / old.name).delete()
    (line,) = prove(location, "2").found
    assert line.startswith(f"shards/{old.name}")
