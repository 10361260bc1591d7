"""`segmint import` on the command line: what it asks for, lists and prints."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from segmint.pipeline.commands.cli import app
from tests.support.imported import FIRST, write_coco
from tests.support.protocol import DatasetPath, contents, two_shards

APART = (22, 5, 28, 30)


@pytest.fixture
def place() -> Iterator[DatasetPath]:
    with two_shards() as place:
        yield place


def run(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["import", *map(str, words)])
    assert result.exit_code == code, result.output
    return result.output


def test_it_lists_and_then_imports(place: DatasetPath) -> None:
    file = write_coco(place, {1: [(FIRST, None), (APART, None)]})
    before = contents(place)
    listed = json.loads(run(place.uri, file, "--replace", "--dry-run", "--json"))
    assert (listed["images"], listed["masks"]["added"], listed["masks"]["deleted"]) == (1, 1, 1)
    assert contents(place) == before
    assert "1 image changed in 1 shard" in run(place.uri, file, "--replace", "--yes")
    assert "nothing to import" in run(place.uri, file, "--replace", "--yes")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["SET", "FILE", "--yes"], "pass either --replace or --add"),
        (["SET", "FILE", "--replace", "--add"], "pass either --replace or --add"),
        (["SET", "--add"], "Missing argument 'FILE'"),
        (["SET", "FILE", "--format", "voc"], "--format 'voc': expected one of coco, label-studio, hf, yolo, folder"),
        (["SET", "SET-other", "--add"], "does not exist: expected a file or folder with masks, or another dataset"),
        (
            ["SET", "SET/dataset.json", "--add"],
            "Pass its format with --format, one of coco, label-studio, hf, yolo,",
        ),
        (["SET", "SET", "--add", "--license", "CC0-1.0"], "--license can't be combined with another dataset"),
        (["SET", "SET", "--add", "--mask-source", "manual"], "--mask-source can't be combined with another dataset"),
        (["SET", "SET", "--add", "--match", "uri"], "--match uri can't be combined with another dataset"),
        (["SET", "SET", "--add", "--yes"], "is the dataset itself. Pass the dataset that contains the masks."),
        (["SET", "FILE", "--add", "--match", "name"], "--match 'name': expected one of number,"),
        (["SET", "FILE", "--add", "--yes", "--ignore", "255"], "--ignore only applies to label maps"),
        (["SET", "FILE", "--add"], "pass --yes"),
        (["SET", "SET/reservations", "--format", "folder", "--add", "--yes"], "has no masks: expected a folder"),
        (["SET", "FILE", "--format", "label-studio", "--add", "--yes"], "can't be read as Label Studio tasks"),
    ],
)
def test_what_is_missing_is_named(place: DatasetPath, words: list[str], message: str) -> None:
    file = str(write_coco(place, {1: []}))
    output = run(*(word.replace("FILE", file).replace("SET", place.uri) for word in words), code=2)
    assert message in " ".join(output.split())


def test_a_label_map_with_soft_edges_deletes_nothing_until_its_numbers_are_ignored(
    place: DatasetPath, tmp_path: Path
) -> None:
    labels = np.zeros((30, 40), np.uint8)
    labels[10:20, 10:30] = 255
    soft = Image.fromarray(labels).resize((20, 15)).resize((40, 30), Image.Resampling.BILINEAR)
    soft.save(tmp_path / "sa_1.png")
    before = contents(place)
    assert "sa_1.png, the label map: its edges are soft" in run(place.uri, tmp_path, "--replace", "--yes", code=3)
    assert contents(place) == before
    edges = [word for number in set(np.asarray(soft).ravel().tolist()) - {255} for word in ("--ignore", number)]
    done = json.loads(run(place.uri, tmp_path, "--replace", "--yes", "--json", *edges))
    assert (done["masks"]["added"] + done["masks"]["corrected"], done["images"]) == (1, 1)


def test_a_folder_and_another_dataset(place: DatasetPath, tmp_path_factory: pytest.TempPathFactory) -> None:
    import tarfile

    tar = place.log.latest(1)
    assert tar is not None
    folder = tmp_path_factory.mktemp("json")
    with tarfile.open(f"{place.uri}/{tar.file('shards').path}") as archive:
        archive.extractall(folder, filter="data")
    assert "nothing to import" in run(place.uri, folder, "--replace", "--yes")
    with two_shards() as other:
        run(other.uri, write_coco(other, {1: [(APART, None)]}), "--add", "--yes")
        done = json.loads(run(place.uri, other.uri, "--add", "--yes", "--json"))
        assert (done["images"], done["masks"]["added"], done["changed_shards"]) == (1, 1, [0])
