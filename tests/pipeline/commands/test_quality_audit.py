"""`segmint audit` as a user meets it: exit codes, lines, JSON, files."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from segmint.operators.prepare.release import ReleaseConfig, release
from segmint.pipeline.commands.cli import app
from tests.support.builds import photograph
from tests.support.committed import write_dataset
from tests.support.committed_shard import CommittedShard
from tests.support.foreign_data import loosen
from tests.support.locations import location_of
from tests.support.planting import ShardEdit
from tests.support.torchscript import FailingDetector, MagentaDetector, saved, spot


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    """Three committed shards of made-up rows, whose manifest has no configuration of masks and no catalog."""
    uri = str(tmp_path / "dataset")
    write_dataset(location_of(uri), shards=3)
    return uri


@pytest.fixture
def copy(small_dataset: Path, tmp_path: Path) -> Path:
    """A copy of the small real dataset."""
    return Path(shutil.copytree(small_dataset, tmp_path / "copy"))


@pytest.fixture
def dataset_with_a_spot(copy: Path) -> Path:
    """The copy, with a magenta spot in an image."""

    def mark(taken: CommittedShard) -> None:
        pixels = spot(np.fliplr(photograph("coffee", (240, 180))), 20, 120, side=12)
        taken.members[0] = taken.members[0][0], release(pixels, ReleaseConfig()).jpeg

    ShardEdit(1, mark)(copy)
    return copy


def run(*arguments: str):
    return CliRunner().invoke(app, ["audit", *arguments])


@pytest.mark.parametrize("option", ["-o", "--attributions", "--regions", "--pictures"])
def test_nothing_is_written_into_the_dataset(dataset: str, option: str) -> None:
    """A takedown would leave the names that it writes."""
    target = f"{dataset}/pages/a.jsonl"
    done = run(dataset, option, target)
    assert done.exit_code == 2
    assert f"{option}: {target} is inside the dataset" in done.output
    assert not Path(target).parent.exists()


def test_all_is_audited_without_options(small_dataset: Path) -> None:
    done = run(str(small_dataset))
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    verdict, own, _ = lines[0].split("; ")
    assert verdict == "verdict: no findings"
    assert own == "only the build's own face and plate detectors searched, and they repeat their own misses"
    areas = [line.split()[0] for line in lines[1:] if not line.startswith(" ")]
    assert areas == ["integrity", "licenses", "privacy", "duplicates", "statistics", "digest"]
    assert "faces found by mtcnn at score 0.7 or above in 0 of 6 images" in done.stdout


def test_the_whole_answer_as_json(small_dataset: Path) -> None:
    done = run(str(small_dataset), "--privacy-sample", "1", "--json")
    value = json.loads(done.stdout)
    assert value["scope"] == "all"
    assert {"licenses", "privacy", "duplicates", "statistics"} <= set(value)
    assert value["privacy"]["images_checked"] == 1


def test_what_another_detector_finds_is_exit_code_1(dataset_with_a_spot: Path, tmp_path: Path) -> None:
    detector = f"plate={saved(MagentaDetector(least=20), tmp_path / 'spot.pt')}"
    done = run(str(dataset_with_a_spot), "--privacy-sample", "all", "--detector", detector)
    assert done.exit_code == 1, done.output
    assert "a plate by spot.pt at score 0.95, and not by clp" in done.stdout
    verdict, other, own, _ = done.stdout.splitlines()[0].split("; ")
    assert verdict == "verdict: 1 finding (1 in privacy)"
    assert other.startswith("another plate detector searched: spot.pt (SHA-256 ")
    assert own == "only the build's own face detectors searched, and they repeat their own misses"
    assert run(str(dataset_with_a_spot), "--privacy-sample", "all").exit_code == 0


def test_images_that_a_detector_fails_on_are_not_checked_and_exit_code_3(small_dataset: Path, tmp_path: Path) -> None:
    detector = f"plate={saved(FailingDetector(), tmp_path / 'failing.pt')}"
    done = run(str(small_dataset), "--privacy-sample", "1", "--sample", "0", "--detector", detector)
    assert done.exit_code == 3, done.output
    assert "\nnot checked: plates by failing.pt in 1 of 6 images (it failed)\n" in done.stdout


def test_nothing_looked_at_is_exit_code_3_unless_it_was_left_out(small_dataset: Path, tmp_path: Path) -> None:
    folder = loosen(small_dataset, tmp_path / "loose")
    done = run(str(folder), "--sample", "0", "--privacy-sample", "1")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[0].startswith("verdict: no findings; only segmint's own face and plate detectors")
    assert run(str(folder), "--sample", "0", "--privacy-sample", "0").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "DATASET"),
        (["{folder}/nowhere"], "nowhere"),
        (["{folder}", "--privacy-sample", "some"], "expected a whole number from 0, or all"),
        (["{folder}", "--attributions", "a.txt"], ".csv, .jsonl, .md"),
        (["{folder}", "--integrity-only", "--regions", "a.jsonl"], "--regions can't be combined with --integrity-only"),
        (
            ["{folder}", "--integrity-only", "--detector", "face=mtcnn"],
            "--detector can't be combined with --integrity-only",
        ),
        (["{folder}", "--detector", "face"], "expected face=PATH or plate=PATH"),
        (["{folder}", "--privacy-sample", "0", "--regions", "f.jsonl"], "remove --privacy-sample 0"),
        (["{folder}", "--device", "tpu"], "expected auto, cpu, cuda or cuda:N"),
        (["{folder}/nowhere", "--integrity-only"], "is not a segmint dataset"),
        (["{folder}", "--integrity-only", "--sample", "-1"], "greater than or equal to 0|not in the range x>=0"),
        (["{folder}", "--integrity-only", "--config", "{folder}/absent.yaml"], "absent.yaml"),
    ],
)
@pytest.mark.usefixtures("weights")
def test_wrong_usage_is_exit_code_2(tmp_path: Path, arguments: list[str], told: str) -> None:
    done = run(*(argument.format(folder=tmp_path) for argument in arguments))
    assert done.exit_code == 2
    assert re.search(told, done.output)


def test_findings_are_exit_code_1_and_the_totals_come_first(dataset: str) -> None:
    done = run(dataset, "--integrity-only")
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert re.match(r"integrity: \d+ findings; checked 3 commits, 1 catalog part, 12 files \(", lines[0])
    assert any(line.startswith("  missing_catalog: catalog/part-0-") for line in lines)
    assert "not audited: licenses, privacy, duplicates, statistics" in lines
    assert "clean" not in done.stdout


@pytest.mark.parametrize("scope", [[], ["--integrity-only"]])
def test_a_deleted_commit_is_a_finding_where_the_dataset_must_be_complete(copy: Path, scope: list[str]) -> None:
    arguments = [str(copy), "--privacy-sample", "0", *scope]
    assert run(*arguments, "--complete").exit_code == 0
    (copy / "commits" / "000001.g1.json").unlink()
    (copy / "shards.json").unlink()  # else it lists a tar of no commit
    done = run(*arguments)
    assert done.exit_code == 0
    assert "not yet built: 1 of 3 shards (1)" in done.stdout
    done = run(*arguments, "--complete")
    assert done.exit_code == 1
    told = (
        "not_committed: shard 1: commits/000001.g1.json: expected a commit of each of 3 shards; found none of 1, 1 to 1"
    )
    assert told in done.stdout


def test_what_segmint_did_not_write_is_never_complete(small_dataset: Path, tmp_path: Path) -> None:
    done = run(str(loosen(small_dataset, tmp_path / "loose")), "--complete")
    assert (done.exit_code, "Remove --complete" in done.output) == (2, True)


def test_json_for_programs(dataset: str) -> None:
    done = run(dataset, "--integrity-only", "--json", "--sample", "2")
    assert done.exit_code == 1
    value = json.loads(done.stdout)
    assert value["scope"] == "integrity"
    assert value["findings_total"] == sum(value["findings_by_code"].values()) == len(value["findings"])
    assert value["findings_by_code"]["missing_catalog"] == 1
    assert set(value["findings"][0]) == {"code", "shard", "file", "where", "image", "mask", "expected", "found"}
    assert value["checked"]["jpegs_decoded"] == 2
    assert value["sample"] == 2


def test_the_answer_goes_to_a_file(dataset: str, tmp_path: Path) -> None:
    plain = run(dataset, "--integrity-only").stdout
    done = run(dataset, "--integrity-only", "-o", str(tmp_path / "audit.txt"))
    assert done.exit_code == 1
    part = next(line for line in plain.splitlines() if "missing_catalog: catalog/" in line).split(": ")[1]
    assert done.stdout == f"not checked: rows and license terms against {part}, which is missing or damaged\n"
    assert (tmp_path / "audit.txt").read_text() == plain
    assert "written to" in done.stderr


def test_evidence_is_written(copy: Path, tmp_path: Path) -> None:
    folder = str(tmp_path / "evidence")
    done = run(str(copy), "--privacy-sample", "0", "--sample", "1", "--evidence", folder)
    assert done.exit_code == 0, done.output
    assert done.stderr.startswith(f"evidence: {folder}; SHA256SUMS sha256:")
    sums = done.stderr.splitlines()[0].rpartition("sha256:")[2]
    assert hashlib.sha256((tmp_path / "evidence/SHA256SUMS").read_bytes()).hexdigest() == sums
    again = run(str(copy), "--evidence", folder)
    assert (again.exit_code, "already contains files" in again.stderr) == (2, True)
    done = CliRunner().invoke(app, ["verify", folder])
    assert (done.exit_code, "is not a segmint dataset" in done.stderr) == (2, True)
    assert run(str(copy), "--study", "score.json").exit_code == 2
    assert run(str(copy), "--integrity-only", "--evidence", folder).exit_code == 2
