"""`segmint study` as a user meets it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from segmint.catalogs.dataset.digest import current_digest
from segmint.catalogs.dataset.versions import put_version
from segmint.pipeline.commands.cli import app
from tests.support.committed import write_dataset
from tests.support.locations import location_of


def run(*arguments: object):
    return CliRunner().invoke(app, ["study", *map(str, arguments)])


def test_a_study_from_sample_to_score(tmp_path: Path) -> None:
    write_dataset(location_of(tmp_path / "small"), shards=2)
    version = put_version(location_of(tmp_path / "small"), "build")
    done = run("sample", tmp_path / "small", "-n", 3, "-o", tmp_path / "study", "--seed", 1)
    small, study = tmp_path / "small", tmp_path / "study"
    steps = [f"annotate {small} --study {study}", f"study score {study} --corrected {small}"]
    assert (done.exit_code, done.stderr) == (0, "".join(f"next: segmint {step}\n" for step in steps))
    assert done.stdout.startswith("3 images with 6 masks, drawn from 4 in 1 strata")
    done = run("score", tmp_path / "study")
    assert done.exit_code == 2
    assert "--corrected" in done.stderr

    (tmp_path / "study/corrected.json").write_bytes((tmp_path / "study/instances.json").read_bytes())
    done = run("score", tmp_path / "study")
    assert (done.exit_code, done.stderr) == (0, "")
    last, digest = done.stdout.splitlines()[-2:]
    assert digest == version.line() == f"dataset digest: sha256:{version.digest[:12]} (version 1)"
    few = "too few images for an interval (3, expected 10 or more)"
    assert f"mean IoU 1.0000 of 6 pairs in 3 images, {few}" in done.stdout
    assert last.startswith("over 0.75 IoU: 100.0% of 6 pairs; 100.0% of 6 masks with deleted ones as failures")
    assert last.endswith("SA-1B in the paper: 97%")
    done = run("score", tmp_path / "study", "--corrected", tmp_path / "study/instances.json", "--json")
    value = json.loads(done.stdout)
    assert (value["by_id"], value["mean_iou"], value["shares"][0]["paper"]) == (6, 1.0, 0.94)
    assert value["version"] == {"digest": version.digest, "number": 1}


def test_the_sample_as_json(tmp_path: Path) -> None:
    write_dataset(location_of(tmp_path / "small"), shards=1)
    done = run("sample", tmp_path / "small", "-o", tmp_path / "study", "--json")
    assert json.loads(done.stdout) == {
        "output": f"{tmp_path}/study",
        "images": 2,
        "masks": 4,
        "population": 2,
        "without_masks": 0,
        "strata": 1,
        "masks_of_people": 0,
        "version": {"digest": current_digest(location_of(tmp_path / "small")), "number": None},
    }


@pytest.mark.parametrize(
    "arguments", [["sample", "nowhere", "-o", "out"], ["score", "nowhere"], ["sample", "x", "-n", "0", "-o", "out"]]
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments).exit_code == 2


def test_a_privacy_study_from_sample_to_redaction(dataset: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    few = run("sample", dataset, "--kind", "privacy", "-n", 8, "-o", tmp_path / "few")
    assert few.stderr.startswith("only 6 of 8 could be drawn\nnext: ")
    done = run("sample", dataset, "--kind", "privacy", "-n", 3, "-o", study)
    assert (done.exit_code, done.stderr) == (0, f"next: segmint study score {study} --corrected FILE\n")
    assert done.stdout.startswith("3 images, drawn from 6\n")
    done = run("score", study)
    assert done.exit_code == 2
    assert "--corrected" in done.stderr
    tasks = json.loads((study / "tasks.json").read_text())
    box = {"x": 10, "y": 10, "width": 10, "height": 10, "rotation": 0, "rectanglelabels": ["face"]}
    first = json.loads((study / "manifest.json").read_text())["images"][0]
    size = {"original_width": first["width"], "original_height": first["height"]}
    region = {"id": "a", "type": "rectanglelabels", **size, "value": box}
    answers = [{**task, "annotations": [{"result": [region] if n == 0 else []}]} for n, task in enumerate(tasks)]
    (tmp_path / "export.json").write_text(json.dumps(answers))
    done = run("score", study, "--corrected", tmp_path / "export.json", "--regions", tmp_path / "missed.jsonl")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "face   1 mark, in 1 of 3 images: at most 87% of all images" in done.stdout
    assert "plate  0 marks, in 0 of 3 images: at most 64% of all images" in done.stdout
    arguments = ["redact", str(dataset), "--regions", f"{tmp_path}/missed.jsonl", "--dry-run", "--json"]
    planned = CliRunner().invoke(app, arguments)
    assert planned.exit_code == 0, planned.output
    assert json.loads(planned.stdout)["images"] == {str(tasks[0]["id"]): 1}


def test_a_study_of_masks_has_no_regions(tmp_path: Path) -> None:
    write_dataset(location_of(tmp_path / "small"), shards=1)
    run("sample", tmp_path / "small", "-o", tmp_path / "study")
    done = run("score", tmp_path / "study", "--regions", tmp_path / "missed.jsonl")
    assert done.exit_code == 2
    assert "remove --regions" in done.stderr


def test_the_number_of_masks_to_rate_is_printed() -> None:
    done = run("plan", "--difference", 0.3)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith("665 masks, each from a different image. If differences between ratings")
    more = run("plan", "--difference", 0.3, "--comparisons", 3)
    assert int(more.stdout.split()[0]) > 665
    for wrong in (0, 10, "inf", "nan"):  # no two means differ by more than 9
        done = run("plan", "--difference", wrong)
        assert done.exit_code == 2
        assert "expected --difference from 0.001 to 9" in done.stderr


def test_options_of_other_kinds_are_refused(tmp_path: Path) -> None:
    done = run("sample", tmp_path / "small", "-o", tmp_path / "study", "--predictions", tmp_path / "a.json")
    assert done.exit_code == 2
    assert "--predictions needs --kind ratings" in done.stderr
