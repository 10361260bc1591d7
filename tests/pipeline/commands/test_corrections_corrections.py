"""`segmint takedown`, `redact`, `amend` and `repair` as a user meets them: exit codes, lines, JSON."""

import json
import os
import pty
from pathlib import Path

import pytest
from typer.testing import CliRunner

from segmint.catalogs.dataset.digest import current_digest
from segmint.catalogs.dataset.manifest import load_manifest
from segmint.catalogs.dataset.outputs import OUTPUTS
from segmint.catalogs.dataset.tombstones import read_tombstones
from segmint.catalogs.source.files import read_rows
from segmint.pipeline.commands.cli import app
from tests.support.builds import digests
from tests.support.locations import location_of


def run(*arguments: object):
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_takedown(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("image-1\nsa_5\n")
    done = run("takedown", dataset, "--ids", tmp_path / "ids.txt", "--reason", "asked for", "--yes")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "2 rows taken down, 2 images removed from 2 shards" in done.stdout
    done = run("takedown", dataset, "--license", "CC-BY-NC-4.0", "--reason", "expired", "--yes", "--json")
    value = json.loads(done.stdout)
    assert (value["rows"], value["images"], value["taken_down"], len(value["tombstones"])) == (1, 0, 3, 2)


def test_changes_of_fingerprints_stand_alone(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("image-4\n")
    (tmp_path / "removed.txt").write_text("image-1\n")
    run("takedown", dataset, "--ids", tmp_path / "removed.txt", "--reason", "asked for", "--yes")
    (tombstone,) = read_tombstones(location_of(dataset))
    before = digests(dataset)
    forget = ["--forget-fingerprints", "image-1", "--yes"]
    other = ["--other-picture", "4", "--of", tombstone.name, "--reason", "another house"]
    for words in (forget, other):
        for more in (["--dry-run"], ["--ids", tmp_path / "ids.txt"], ["--license", "CC0-1.0"], ["--provider", "P"]):
            done = run("takedown", dataset, *words, *more)
            assert (done.exit_code, f"{words[0]} doesn't take down any images" in done.stderr) == (2, True)
    assert run("takedown", dataset, *forget, *other).exit_code == 2
    assert run("takedown", dataset, *forget, "--prove", "image-1").exit_code == 2
    assert digests(dataset) == before


@pytest.fixture
def removals(tmp_path: Path) -> dict[str, list[object]]:
    """The arguments of each command that removes for good."""
    (tmp_path / "ids.txt").write_text("image-1\nsa_5\n")
    region = {"id": 1, "kind": "face", "x": 90, "y": 10, "w": 60, "h": 80}
    (tmp_path / "regions.jsonl").write_text(json.dumps(region))
    return {
        "takedown": ["--ids", tmp_path / "ids.txt", "--reason", "asked for"],
        "redact": ["--regions", tmp_path / "regions.jsonl"],
    }


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("takedown", ["2 rows of {dataset} would be taken down, in 2 shards: 0, 1", "sa_2 image-1", "sa_5 image-4"]),
        (
            "redact",
            [
                "1 image of {dataset} would be redacted permanently where regions are new",
                "sa_1: 1 region",
            ],
        ),
    ],
)
def test_a_dry_run_lists_and_changes_nothing(
    dataset: Path, removals: dict[str, list[object]], command: str, told: list[str]
) -> None:
    before = digests(dataset)
    done = run(command, dataset, *removals[command], "--dry-run")
    assert done.exit_code == 0, done.output
    for line, expected in zip(done.stdout.splitlines(), [*told, "Nothing was changed."], strict=True):
        assert expected.format(dataset=dataset) in line
    value = json.loads(run(command, dataset, *removals[command], "--dry-run", "--json").stdout)
    assert value["shards"] == ([0, 1] if command == "takedown" else [0])
    assert digests(dataset) == before
    assert not (dataset / OUTPUTS).exists()


@pytest.mark.parametrize("command", ["takedown", "redact"])
def test_without_a_terminal_yes_is_needed(dataset: Path, removals: dict[str, list[object]], command: str) -> None:
    before = digests(dataset)
    done = run(command, dataset, *removals[command])
    assert done.exit_code == 2
    assert f"{command} permanently changes the dataset and needs confirmation" in done.output
    assert "--yes" in done.output
    assert digests(dataset) == before


@pytest.mark.parametrize(
    ("command", "typed"), [("takedown", "2"), ("takedown", "{name}"), ("redact", "1"), ("redact", "{name}")]
)
def test_on_a_terminal_the_number_or_the_name_is_typed(
    dataset: Path,
    removals: dict[str, list[object]],
    command: str,
    typed: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def on_a_terminal(line: str) -> tuple[object, str]:
        ours, theirs = pty.openpty()
        os.write(ours, f"{line}\n".encode())
        with os.fdopen(ours, "rb"), os.fdopen(theirs) as terminal:
            monkeypatch.setattr("sys.stdin", terminal)
            with pytest.raises(SystemExit) as end:
                app([command, *map(str, (dataset, *removals[command]))])
        return end.value.code, capsys.readouterr().err

    name = load_manifest(location_of(dataset)).name
    before = digests(dataset)
    for wrong in ("", "yes", "3"):
        status, said = on_a_terminal(wrong)
        assert status == 2, said
        assert "This permanently changes the dataset. Type " in said
        assert f"or {name} to continue" in said
        assert "not confirmed" in said
        assert digests(dataset) == before
    status, said = on_a_terminal(typed.format(name=name))
    assert status == 0, said
    assert digests(dataset) != before


def test_amend(dataset: Path, tmp_path: Path) -> None:
    path = tmp_path / "right.jsonl"
    uri = read_rows(location_of(dataset) / load_manifest(location_of(dataset)).catalog[0].path, 0, 1)["uri"][0].as_py()
    path.write_text(json.dumps({"uri": uri, "license": "", "image_id": "image-0", "attribution": "Jo"}))
    before = digests(dataset)
    assert run("amend", dataset, path).exit_code == 2
    listed = run("amend", dataset, path, "--dry-run")
    assert listed.exit_code == 0, listed.output
    assert f"1 row of {dataset} would be amended: attribution of 1" in listed.stdout
    assert digests(dataset) == before
    done = run("amend", dataset, path, "--yes", "--json", "--reason", "asked by Jo")
    assert done.exit_code == 0, done.output
    value = json.loads(done.stdout)
    assert (value["rows"], value["images"], value["changed_shards"]) == (1, 1, [0])
    absent = run("amend", dataset, tmp_path / "absent.jsonl", "--yes")
    assert (absent.exit_code, "does not exist: expected Parquet" in absent.stderr) == (2, True)


def test_redact(dataset: Path, tmp_path: Path) -> None:
    path = tmp_path / "regions.jsonl"
    path.write_text(json.dumps({"id": 1, "kind": "face", "x": 90, "y": 10, "w": 60, "h": 80}))
    done = run("redact", dataset, "--regions", path, "--yes", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout) == {
        "dataset": str(dataset),
        "regions": 1,
        "images": 1,
        "changed_images": 1,
        "changed_shards": [0],
        "outputs": [],
        "removed_links": [],
        "caches": [],
        "unknown_files": [],
        "version": {"digest": current_digest(location_of(dataset)), "number": 1},
    }
    done = run("redact", dataset, "--regions", path, "--yes")
    assert "1 region in 1 image; changed: 0 images in 0 shards; 1 image already had these regions" in done.stdout


def test_repair_ends_with_1_where_something_is_left(dataset: Path) -> None:
    lines = run("repair", dataset).stdout.splitlines()
    records = "manifests, catalog, tombstones, versions, and submissions"
    assert lines[0] == f"3 shards, {records} checked: 0 damaged files, 0 repaired"
    assert lines[1:] == [f"dataset digest: sha256:{current_digest(location_of(dataset))[:12]} (version 1)"]
    next((dataset / "masks").glob("sa_000000-*")).unlink()
    done = run("repair", dataset, "--json")
    assert (done.exit_code, json.loads(done.stdout)["not_repaired"]) == (0, {})
    next((dataset / "images").glob("sa_000002-*")).unlink()
    done = run("repair", dataset)
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert lines[0].startswith("damaged: images/sa_000002-")
    assert lines[1].startswith("not repaired: shard 2: the rest of the shard isn't enough")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["takedown", "{dataset}", "--reason", "x"], "exactly one of --ids FILE, --license L, and --provider P"),
        (["takedown", "{dataset}", "--license", "L"], "--reason"),
        (["takedown", "{dataset}", "--ids", "{dataset}/absent", "--reason", "x"], "no such ids file"),
        (["takedown", "{dataset}/none", "--license", "L", "--reason", "x", "--yes"], "is not a segmint dataset"),
        (["redact", "{dataset}", "--regions", "{dataset}/absent", "--yes"], "no such regions file"),
        (["redact", "{dataset}"], "--regions"),
        (["repair", "{dataset}/none"], "is not a segmint dataset"),
        (["repair", "{dataset}", "--config", "{dataset}/absent.yaml"], "absent.yaml"),
    ],
)
def test_wrong_usage_is_exit_code_2(dataset: Path, arguments: list[str], told: str) -> None:
    done = run(*(argument.format(dataset=dataset) for argument in arguments))
    assert done.exit_code == 2
    assert told in done.output
