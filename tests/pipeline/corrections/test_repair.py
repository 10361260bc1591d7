"""Repairing a dataset: damaged files are restored byte for byte, or the answer says why not."""

import json
import random
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import pytest
from typer.testing import CliRunner

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.manifest import load_manifest
from segmint.catalogs.dataset.submissions import put_submission
from segmint.catalogs.dataset.tombstones import TakedownRequest
from segmint.catalogs.dataset.versions import name_now, put_version, version_numbers
from segmint.catalogs.findings import Code
from segmint.infra.errors import UsageError
from segmint.pipeline.commands.cli import app
from segmint.pipeline.config.config import load_config
from segmint.pipeline.corrections.redact import redact
from segmint.pipeline.corrections.repair import repair
from segmint.pipeline.corrections.takedown import takedown
from segmint.pipeline.quality.audit.integrity import audit_integrity
from tests.support.builds import digests
from tests.support.locations import location_of
from tests.support.planting import change_commit, edit_row, flip, rewrite_catalog
from tests.support.submissions import answer_to


def path_of(dataset: Path, shard: int, kind: str) -> Path:
    commit = CommitLog(location_of(dataset)).latest(shard)
    assert commit is not None
    return dataset / commit.file(kind).path


def test_a_whole_dataset_is_left_alone(dataset: Path, small_dataset: Path) -> None:
    done = repair(location_of(dataset))
    assert (done.shards, done.damages, done.repaired, done.not_repaired) == (3, [], [], {})
    assert digests(dataset) == digests(small_dataset)


def test_a_commit_that_counts_redactions_is_not_damaged(dataset: Path, tmp_path: Path) -> None:
    region = {"id": 1, "kind": "other", "x": 0, "y": 0, "w": 240, "h": 180}
    (tmp_path / "regions.jsonl").write_text(json.dumps(region) + "\n")
    redact(location_of(dataset), location_of(tmp_path / "regions.jsonl"))
    commit = CommitLog(location_of(dataset)).latest(0)
    assert commit is not None
    assert commit.counts["highly_redacted"] == 1
    before = digests(dataset)
    done = repair(location_of(dataset))
    assert (done.damages, done.repaired, done.not_repaired) == ([], [], {})
    assert digests(dataset) == before


def test_what_the_rest_of_a_shard_holds_is_restored(dataset: Path, small_dataset: Path) -> None:
    path_of(dataset, 0, "masks").unlink()
    path_of(dataset, 1, "rejects").write_bytes(b"x")
    done = repair(location_of(dataset))
    assert digests(dataset) == digests(small_dataset)
    assert (len(done.damages), len(done.repaired), done.not_repaired) == (2, 2, {})
    assert done.lines()[-2:] == [
        "3 shards, manifests, catalog, tombstones, versions, and submissions checked: 2 damaged files, 2 repaired",
        f"dataset digest: {name_now(location_of(dataset))}",
    ]


def test_what_it_does_not_hold_is_reported(dataset: Path) -> None:
    path_of(dataset, 2, "images").write_bytes(b"x")
    path_of(dataset, 0, "masks").unlink()
    done = repair(location_of(dataset))
    assert [path.partition("-")[0] for path in done.repaired] == ["masks/sa_000000"]
    assert list(done.not_repaired) == [2]
    assert "--config" in done.not_repaired[2]
    assert path_of(dataset, 2, "images").read_bytes() == b"x"
    assert done.version is None
    assert version_numbers(location_of(dataset)) == []


@pytest.mark.parametrize(
    "damaged", ["dataset.json", "dataset.g2.json", "catalog", "tombstones", "versions/1.json", "annotations"]
)
@pytest.mark.parametrize("change", ["missing", "changed"])
def test_damage_outside_of_the_shards_is_listed(dataset: Path, damaged: str, change: str) -> None:
    location = location_of(dataset)
    put_version(location, "build")
    takedown(location, TakedownRequest(ids=("sa_1",)), "asked")
    for n in (1, 2):
        assert put_submission(location, answer_to(location, 5, n=n))
    path = dataset / damaged
    if path.is_dir():
        path = min(each for each in path.rglob("*") if each.is_file())
    if change == "changed":
        flip(path)
    else:
        path.unlink()
    before = digests(dataset)
    done = CliRunner().invoke(app, ["repair", str(dataset)])
    assert done.exit_code == 1, done.output
    lost = [line for line in done.output.splitlines() if line.startswith("can't be restored: ")]
    assert any(str(path.relative_to(dataset)) in line for line in lost), done.output
    assert " 0 damaged files" not in done.output
    assert digests(dataset) == before


def test_files_without_any_manifest_and_a_shard_of_other_settings_are_listed(dataset: Path) -> None:
    change_commit(dataset, 1, build_sha256="ab" * 32)
    done = repair(location_of(dataset))
    assert done.lost == ["commits/000001.g1.json: its build_sha256 isn't the manifest's"]
    (dataset / "dataset.json").unlink()
    done = repair(location_of(dataset))
    (line,) = done.lost
    assert done.lines()[-1] == "0 shards checked: 1 damaged file, 0 repaired"
    assert line.startswith("dataset.json: missing. ")
    assert "commits/000000.g1.json" in line


def test_a_commit_with_other_numerics_is_reported_and_never_written_again(dataset: Path) -> None:
    """Even if it differs from the dataset's in one digit, or isn't a fingerprint at all."""
    location = location_of(dataset)
    own = load_manifest(location).numerics_fingerprint
    for shard, numerics in enumerate((own[:-1] + f"{int(own[-1], 16) ^ 1:x}", "0123456789ab", "another machine")):
        change_commit(dataset, shard, numerics=numerics)
    before = digests(dataset)
    done = CliRunner().invoke(app, ["repair", str(dataset), "--json"])
    value = json.loads(done.stdout)
    assert (done.exit_code, value["damages"], value["repaired"], value["lost"]) == (0, [], [], [])
    assert value["other_numerics"] == [f"commits/00000{shard}.g1.json" for shard in range(3)]
    assert {path: digest for path, digest in digests(dataset).items() if path in before} == before
    (line,) = (line for line in repair(location).lines() if "other numerics" in line)
    assert line.startswith("intact, but with other numerics: commits/000000.g1.json, commits/000001.g1.json")
    assert audit_integrity(location, sample=0).findings.counts == {Code.OTHER_NUMERICS: 3}


def test_a_damaged_file_of_a_shard_with_other_numerics_is_restored_and_its_commit_stays(dataset: Path) -> None:
    change_commit(dataset, 0, numerics="0123456789ab")
    before = digests(dataset)
    masks = path_of(dataset, 0, "masks")
    masks.unlink()
    assert repair(location_of(dataset)).repaired == [str(masks.relative_to(dataset))]
    assert {path: digest for path, digest in digests(dataset).items() if path in before} == before


def test_credits_that_cannot_be_updated_are_not_passed_over(dataset: Path, tmp_path: Path) -> None:
    rewrite_catalog(dataset, lambda rows: [{**row, "attribution": "Zoë"} for row in rows])
    (dataset / "rejects").rename(tmp_path / "elsewhere")
    (dataset / "rejects").symlink_to(tmp_path / "elsewhere")
    found = repair(location_of(dataset))
    (lost,) = found.lost
    assert lost.startswith("the credits that an amendment changed in the catalog: ")
    assert (found.version, "is a link to" in lost) == (None, True)


def test_a_damaged_commit_is_made_again(dataset: Path, small_dataset: Path) -> None:
    (dataset / "commits" / "000001.g1.json").write_bytes(b"{")
    done = repair(location_of(dataset))
    assert done.repaired == ["commits/000001.g1.json"]
    assert digests(dataset) == digests(small_dataset)


@pytest.mark.parametrize("damage", ["commit", "masks"])
def test_a_shard_whose_commit_is_not_the_one_of_a_version_is_never_written(dataset: Path, damage: str) -> None:
    location = location_of(dataset)
    put_version(location, "build")
    edit_row("images", 1, 0, attribution="somebody else")(dataset)
    path = dataset / "commits/000001.g1.json"
    if damage == "commit":
        assert path.read_bytes().endswith(b"\n")
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path_of(dataset, 1, "masks").unlink()
    before = digests(dataset)
    done = repair(location)
    assert digests(dataset) == before
    assert (done.repaired, done.version) == ([], None)
    assert "isn't the commit that the dataset's versions record" in done.not_repaired[1]
    assert any("commits/000001.g1.json" in line for line in done.lost)


def test_a_damaged_commit_that_a_version_records_is_made_again(dataset: Path) -> None:
    put_version(location_of(dataset), "build")
    before = digests(dataset)
    path = dataset / "commits/000001.g1.json"
    path.write_bytes(path.read_bytes()[:-1])
    done = repair(location_of(dataset))
    assert (done.repaired, done.not_repaired) == (["commits/000001.g1.json"], {})
    assert digests(dataset) == before


def test_a_damaged_commit_without_its_files_is_reported(dataset: Path) -> None:
    path_of(dataset, 1, "images").unlink()
    (dataset / "commits" / "000001.g1.json").write_bytes(b"{")
    before = digests(dataset)
    done = repair(location_of(dataset))
    assert "images: none" in done.not_repaired[1]
    assert digests(dataset) == before


def test_a_damaged_commit_of_a_dataset_with_several_numerics_is_reported(dataset: Path) -> None:
    change_commit(dataset, 0, numerics="0123456789ab")
    (dataset / "commits" / "000001.g1.json").write_bytes(b"{")
    assert "2 different numerics" in repair(location_of(dataset)).not_repaired[1]


def test_the_configuration_must_be_the_dataset_s_own(dataset: Path, small_dataset: Path) -> None:
    config = load_config(str(small_dataset.parent / "build.yaml"))
    with pytest.raises(UsageError, match="the configuration's output is"):
        repair(location_of(dataset), config)
    with pytest.raises(UsageError, match="is not a segmint dataset"):
        repair(location_of(dataset / "nowhere"))


def test_a_damaged_commit_that_says_the_numerics_of_others_is_made_again(dataset: Path) -> None:
    change_commit(dataset, 0, numerics="0123456789ab")
    change_commit(dataset, 2, numerics="0123456789ab")
    before = digests(dataset)
    path = dataset / "commits" / "000002.g1.json"
    path.write_bytes(path.read_bytes()[:-2])
    assert repair(location_of(dataset)).repaired == ["commits/000002.g1.json"]
    assert digests(dataset) == before


@pytest.mark.parametrize("kind", ["shards", "images", "masks", "rejects"])
def test_a_commit_is_not_made_from_files_that_are_damaged_too(dataset: Path, kind: str) -> None:
    flip(path_of(dataset, 1, kind))
    path = dataset / "commits" / "000001.g1.json"
    path.write_bytes(path.read_bytes().replace(b'"counts"', b'"cnunts"'))
    before = digests(dataset)
    done = repair(location_of(dataset))
    assert "is damaged too" in done.not_repaired[1]
    assert (len(done.damages), digests(dataset)) == (1, before)


def one_shard(small_dataset: Path, folder: Path, shard: int) -> tuple[Path, Path]:
    """A copy of the small real dataset with only this shard, and its commit."""
    dataset = Path(shutil.copytree(small_dataset, folder / "one"))
    for path in dataset.rglob("*"):
        number = path.name.removeprefix("sa_")[:6]
        if path.is_file() and number.isdecimal() and int(number) != shard:
            path.unlink()
    (dataset / "shards.json").unlink()  # it is written when all shards are committed
    return dataset, dataset / "commits" / f"00000{shard}.g1.json"


def flips_are_found_and_undone(dataset: Path, commit: Path, bits: Iterable[int]) -> None:
    """Turn each of these bits of a commit: the audit finds it, and the repair restores every byte.

    If the commit then only has other numerics or another `build_sha256`, the repair lists it and doesn't change it.
    """
    path, whole, before = f"commits/{commit.name}", commit.read_bytes(), digests(dataset)
    assert audit_integrity(location_of(dataset), sample=0).findings.total == 0
    for bit in bits:
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        commit.write_bytes(data)
        told = f"bit {bit % 8} of byte {bit // 8}: {bytes(data[max(0, bit // 8 - 20) :][:40])!r}"
        findings = audit_integrity(location_of(dataset), sample=0).findings
        assert {finding.shard for finding in findings} == {int(commit.name[:6])}, told
        damaged = digests(dataset)
        done = repair(location_of(dataset))
        if any(code in findings for code in (Code.OTHER_NUMERICS, Code.OTHER_BUILD)):
            assert any(path in line for line in (*done.other_numerics, *done.lost)), told
            assert (done.repaired, done.not_repaired, digests(dataset)) == ([], {}, damaged), told
            shutil.rmtree(dataset / "versions", ignore_errors=True)
            commit.write_bytes(whole)
            continue
        assert (done.repaired, done.not_repaired) == ([path], {}), told
        assert len(done.damages) == 1, told
        assert digests(dataset) == before, told


@pytest.mark.parametrize("shard", [0, *(pytest.param(each, marks=pytest.mark.long) for each in (1, 2))])
def test_any_bit_of_a_commit_is_found_and_restored(small_dataset: Path, tmp_path: Path, shard: int) -> None:
    dataset, commit = one_shard(small_dataset, tmp_path, shard)
    bits = range(len(commit.read_bytes()) * 8)
    flips_are_found_and_undone(dataset, commit, random.Random(shard).sample(bits, 8))


@pytest.mark.long
@pytest.mark.parametrize("shard", range(3))
@pytest.mark.parametrize("bit", range(8))
def test_every_bit_of_every_commit_is_found_and_restored(
    small_dataset: Path, tmp_path: Path, shard: int, bit: int
) -> None:
    dataset, commit = one_shard(small_dataset, tmp_path, shard)
    flips_are_found_and_undone(dataset, commit, range(bit, len(commit.read_bytes()) * 8, 8))


@pytest.mark.ray
@pytest.mark.long
def test_the_rest_is_built_again_from_the_catalog(small_dataset: Path, tmp_path: Path) -> None:
    """Shards 0 and 1 come out the same; a photograph of shard 2 has changed since."""
    folder = tmp_path / "copy"
    shutil.copytree(small_dataset.parent, folder)
    dataset = folder / "dataset"
    text = (folder / "build.yaml").read_text().replace(str(small_dataset.parent), str(folder))
    (folder / "build.yaml").write_text(text)
    shutil.copy(folder / "photos" / "photo_000.jpg", folder / "photos" / "photo_006.jpg")
    for shard, kind in ((0, "images"), (0, "rejects"), (1, "shards"), (2, "images")):
        path_of(dataset, shard, kind).unlink()
    done = repair(location_of(dataset), load_config(str(folder / "build.yaml")))
    not_repaired = path_of(small_dataset, 2, "images").relative_to(small_dataset)
    assert list(done.not_repaired) == [2]
    assert f"{not_repaired}: the rebuilt file has" in done.not_repaired[2]
    assert len(done.repaired) == 3
    assert digests(small_dataset).items() - digests(dataset).items() == {
        (str(not_repaired), digests(small_dataset)[str(not_repaired)])
    }
    assert json.loads(json.dumps(asdict(done)))["not_repaired"]["2"] == done.not_repaired[2]
