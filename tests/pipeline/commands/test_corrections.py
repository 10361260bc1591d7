"""`segmint takedown`, `redact` and `repair` as a user meets them: exit codes, lines, JSON."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from segmint.pipeline.cli import app


def run(*arguments: object):
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_takedown(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("image-1\nsa_5\n")
    done = run("takedown", dataset, "--ids", tmp_path / "ids.txt", "--reason", "asked for")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "2 rows taken down, 2 images removed from 2 shards" in done.stdout
    done = run("takedown", dataset, "--license", "CC-BY-NC-4.0", "--reason", "expired", "--json")
    value = json.loads(done.stdout)
    assert (value["rows"], value["images"], value["taken_down"], len(value["tombstones"])) == (1, 0, 3, 2)


def test_redact(dataset: Path, tmp_path: Path) -> None:
    path = tmp_path / "regions.jsonl"
    path.write_text(json.dumps({"id": 1, "kind": "face", "x": 90, "y": 10, "w": 60, "h": 80}))
    done = run("redact", dataset, "--regions", path, "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout) == {
        "dataset": str(dataset),
        "regions": 1,
        "images": 1,
        "changed_images": 1,
        "changed_shards": [0],
        "removed_links": [],
    }
    done = run("redact", dataset, "--regions", path)
    assert "1 region in 1 image; changed: 0 images of 0 shards, the others had these regions already" in done.stdout


def test_repair_ends_with_1_where_something_is_left(dataset: Path) -> None:
    assert run("repair", dataset).stdout == "3 shards looked at: 0 damaged files, 0 repaired\n"
    next((dataset / "masks").glob("sa_000000-*")).unlink()
    done = run("repair", dataset, "--json")
    assert (done.exit_code, json.loads(done.stdout)["left"]) == (0, {})
    next((dataset / "images").glob("sa_000002-*")).unlink()
    done = run("repair", dataset)
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert lines[0].startswith("damaged: images/sa_000002-")
    assert lines[1].startswith("not repaired: shard 2: what is left of it is not enough")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["takedown", "{dataset}", "--reason", "x"], "exactly one of --ids FILE, --license L and --provider P"),
        (["takedown", "{dataset}", "--license", "L"], "--reason"),
        (["takedown", "{dataset}", "--ids", "{dataset}/absent", "--reason", "x"], "no such file of ids"),
        (["takedown", "{dataset}/none", "--license", "L", "--reason", "x"], "is not a segmint dataset"),
        (["redact", "{dataset}", "--regions", "{dataset}/absent"], "no such file of regions"),
        (["redact", "{dataset}"], "--regions"),
        (["repair", "{dataset}/none"], "is not a segmint dataset"),
        (["repair", "{dataset}", "--config", "{dataset}/absent.yaml"], "absent.yaml"),
    ],
)
def test_wrong_usage_is_exit_code_2(dataset: Path, arguments: list[str], told: str) -> None:
    done = run(*(argument.format(dataset=dataset) for argument in arguments))
    assert done.exit_code == 2
    assert told in done.output
