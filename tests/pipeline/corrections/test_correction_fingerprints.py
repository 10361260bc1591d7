"""Fingerprints on request: near copies that a proof finds, decisions about them, and hashes that are removed."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from segmint.catalogs.dataset.tombstones import Fingerprint, TakedownRequest, put_fingerprints, read_fingerprints
from segmint.catalogs.dataset.versions import name_now
from segmint.infra.errors import UsageError
from segmint.pipeline.commands.cli import app
from segmint.pipeline.corrections.correction import forget, tell_apart
from segmint.pipeline.corrections.proof import prove
from segmint.pipeline.corrections.takedown import takedown
from segmint.pipeline.quality.audit.integrity import audit_integrity
from segmint.pipeline.quality.verify import verify_dataset
from tests.support.committed_shard import CommittedShard
from tests.support.locations import location_of


@pytest.fixture
def dataset(small_dataset: Path, tmp_path: Path) -> Path:
    """A dataset without image-1, whose hashes are now those of image-4, except for four bits."""
    copy = tmp_path / "dataset"
    shutil.copytree(small_dataset, copy, ignore=shutil.ignore_patterns("outputs"))  # notes of other tests
    takedown(location_of(copy), TakedownRequest(ids=("image-1",)), "withdrawn")
    hashes = [value ^ 0b1111 for value in CommittedShard(copy, 1).rows["images"][1]["hashes"]]
    like = Fingerprint(hashes="".join(f"{value:016x}" for value in hashes))
    put_fingerprints(location_of(copy), 0, {2: like})
    return copy


def test_near_copies_are_found_until_a_person_tells_them_apart(dataset: Path) -> None:
    location = location_of(dataset)
    (tombstone,) = (dataset / "tombstones").iterdir()
    line = f"sa_5 image-4 looks like sa_2 (tombstones/{tombstone.name}): 4 of 64 bits differ"
    (found,) = prove(location, "image-1").found
    assert found.startswith(line)
    assert f"like pictures that were taken down: {line}" in audit_integrity(location).notes
    again = takedown(location, TakedownRequest(ids=("image-1",)), "withdrawn")
    assert (again.rows, again.similar) == (0, (line,))
    for wrong in ("image-77", "image-1"):
        with pytest.raises(UsageError, match=wrong):
            tell_apart(location, wrong, tombstone.name, "another")
    with pytest.raises(UsageError, match=tombstone.name):
        tell_apart(location, "image-4", "0123456789ab", "another")
    with pytest.raises(UsageError, match="--reason is empty"):
        tell_apart(location, "image-4", tombstone.name, " ")
    told = tell_apart(location, "image-4", f"tombstones/{tombstone.name}", "another cat")
    assert told.version == name_now(location)
    assert told.version.number is not None
    assert tell_apart(location, "sa_5", tombstone.stem, "again").version == told.version
    assert [each.reason for each in read_fingerprints(location)[1].others] == ["another cat"]
    assert prove(location, "image-1").found == ()
    assert not [note for note in audit_integrity(location).notes if "taken down" in note]
    assert takedown(location, TakedownRequest(ids=("image-1",)), "withdrawn").similar == ()


def test_near_copies_are_taken_down_on_request(dataset: Path) -> None:
    location = location_of(dataset)
    taken = takedown(location, TakedownRequest(ids=("image-1",), with_similar=True), "withdrawn")
    assert (taken.rows, taken.images, taken.similar) == (1, 1, ())
    assert prove(location, "image-1").found == ()
    assert prove(location, "image-4").found == ()
    assert verify_dataset(location).problems == ()


def test_fingerprints_that_are_forgotten_recognize_nothing(dataset: Path) -> None:
    location = location_of(dataset)
    result = forget(location, "image-1")
    assert result.version == name_now(location) == forget(location, "sa_2").version
    assert [path.name for path in (dataset / "fingerprints").glob("000000.*")] == ["000000.g3.json"]
    assert read_fingerprints(location)[0].images[2] == Fingerprint(forgotten=True)
    assert takedown(location, TakedownRequest(ids=("image-1",)), "withdrawn").rows == 0
    assert read_fingerprints(location)[0].images[2] == Fingerprint(forgotten=True)
    proof = prove(location, "image-1")
    assert (proof.found, proof.hashes) == ((), 0)
    assert proof.not_checked == ("copies of sa_2 with another name: its fingerprints aren't stored",)
    assert verify_dataset(location).problems == ()
    for wrong in ("image-0", "image-77"):
        with pytest.raises(UsageError, match="image-"):
            forget(location, wrong)


def test_a_takedown_without_fingerprints_keeps_none(small_dataset: Path, tmp_path: Path) -> None:
    copy = tmp_path / "dataset"
    shutil.copytree(small_dataset, copy, ignore=shutil.ignore_patterns("outputs"))  # notes of other tests
    row = CommittedShard(copy, 0).rows["images"][1]
    location = location_of(copy)
    put_fingerprints(location, 0, {2: Fingerprint(released=("0" * 64,))})  # as a redaction leaves it
    takedown(location, TakedownRequest(ids=("image-1",), fingerprints=False), "withdrawn")
    assert read_fingerprints(location)[0].images == {2: Fingerprint(forgotten=True)}
    every = b"".join(path.read_bytes() for path in copy.rglob("*") if path.is_file())
    for sha256 in ("0" * 63, row["pixels_sha256"], row["release_sha256"]):
        assert sha256.encode() not in every or sha256 == "0" * 63
    assert audit_integrity(location).findings.total == 0


def test_the_commands(dataset: Path, tmp_path: Path) -> None:
    def run(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["takedown", str(dataset), *words])
        return done.exit_code, done.output

    (tombstone,) = (dataset / "tombstones").iterdir()
    assert run("--prove", "image-1")[0] == 1
    assert run("--other-picture", "image-4", "--reason", "another")[0] == 2
    assert run("--other-picture", "image-4", "--of", tombstone.name)[0] == 2
    code, text = run("--other-picture", "image-4", "--of", tombstone.name, "--reason", "another")
    assert (code, "recorded as a different picture" in text) == (0, True)
    assert run("--prove", "image-1")[0] == 0
    assert run("--forget-fingerprints", "image-1")[0] == 2  # needs --yes without a terminal
    code, text = run("--forget-fingerprints", "image-1", "--yes")
    assert (code, "its fingerprints are removed" in text) == (0, True)
    assert run("--prove", "image-1")[0] == 3
