"""`segmint export` as a user meets it."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from segmint.catalogs.dataset.digest import current_digest
from segmint.pipeline.commands.cli import app
from tests.support.committed import write_dataset
from tests.support.locations import location_of


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Two shards of two images each."""
    write_dataset(location_of(tmp_path / "small"), shards=2)
    return tmp_path / "small"


def run(*arguments: object):
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


def test_a_line_for_people_and_json_for_programs(small: Path, tmp_path: Path) -> None:
    done = run(small, "--format", "coco", "-o", tmp_path / "coco")
    assert (done.exit_code, done.stderr) == (0, "")
    digest = current_digest(location_of(small))
    assert done.stdout.splitlines() == [
        f"4 images, 8 masks, 4 pictures → {tmp_path}/coco/instances.json",
        f"dataset digest: sha256:{digest[:12]} (not recorded as a version)",
        "the files weren't checked against this digest. To check them, run `segmint verify`",
    ]
    done = run(small, "--format", "cvat", "-o", tmp_path / "cvat", "--shards", "1:2", "--no-images", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout) == {
        "output": f"{tmp_path}/cvat",
        "file": f"{tmp_path}/cvat/annotations/instances_default.json",
        "images": 2,
        "masks": 4,
        "pictures": 0,
        "version": {"digest": digest, "number": None},
        "notes": [],
    }
    done = run(small, "--format", "label-studio", "-o", tmp_path / "tasks", "--sample", 1, "--seed", 7)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith("1 image, 2 masks, 1 picture")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--format", "voc", "-o", "out"], "'voc' is not one of"),
        (["--format", "coco"], "--output"),
        (["--format", "coco", "-o", "out", "--level", "whole"], "--level only applies to the formats label-maps and"),
        (["--format", "coco", "-o", "out", "--shards", "2"], "expected A:B"),
        (["--format", "coco", "-o", "out", "--sample", "0"], "greater than or equal to 1|not in the range x>=1"),
    ],
)
def test_wrong_usage_is_exit_code_2(small: Path, arguments: list[str], told: str) -> None:
    done = run(small, *arguments)
    assert done.exit_code == 2
    assert re.search(told, done.output)


def test_no_dataset_is_exit_code_2(tmp_path: Path) -> None:
    done = run(tmp_path, "--format", "coco", "-o", tmp_path / "out")
    assert done.exit_code == 2
    assert "is not a segmint dataset" in done.stderr
