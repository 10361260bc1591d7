"""`segmint import` on the command line: what it asks for, lists and prints."""

import json
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from segmint.pipeline.commands.cli import app
from tests.support.imported import FIRST, write_coco
from tests.support.protocol import Place, contents, two_shards

APART = (22, 5, 28, 30)


@pytest.fixture
def place() -> Iterator[Place]:
    with two_shards() as place:
        yield place


def run(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["import", *map(str, words)])
    assert result.exit_code == code, result.output
    return result.output


def test_it_lists_and_then_imports(place: Place) -> None:
    file = write_coco(place, {1: [(FIRST, None), (APART, None)]})
    before = contents(place)
    listed = json.loads(run("coco", file, "--into", place.uri, "--replace", "--dry-run", "--json"))
    assert (listed["images"], listed["masks"]["added"], listed["masks"]["deleted"]) == (1, 1, 1)
    assert contents(place) == before
    assert "1 image changed in 1 shard" in run("coco", file, "--into", place.uri, "--replace", "--yes")
    assert "nothing to import" in run("coco", file, "--into", place.uri, "--replace", "--yes")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["coco", "FILE", "--into", "SET", "--yes"], "name one of --replace and --add"),
        (["coco", "FILE", "--into", "SET", "--replace", "--add"], "name one of --replace and --add"),
        (["coco", "FILE", "--add"], "--into is missing"),
        (["yolo", "FILE", "--into", "SET", "--add"], "FORMAT one of coco, label-studio, folder"),
        (["coco", "--into", "SET", "--add"], "expected `segmint import FORMAT FILE --into DATASET`"),
        (["--from", "SET", "--into", "SET", "--add", "--license", "CC0-1.0"], "--license with --from"),
        (["--from", "SET", "--into", "SET", "--add", "--match", "uri"], "--match uri with --from"),
        (["coco", "FILE", "--into", "SET", "--add", "--match", "name"], "--match 'name': expected one of number,"),
        (["coco", "FILE", "--into", "SET", "--add"], "give --yes"),
        (["folder", "SET/claims", "--into", "SET", "--add", "--yes"], "has no masks: expected a folder"),
    ],
)
def test_what_is_missing_is_named(place: Place, words: list[str], message: str) -> None:
    file = str(write_coco(place, {1: []}))
    output = run(*(word.replace("FILE", file).replace("SET", place.uri) for word in words), code=2)
    assert message in " ".join(output.split())


def test_a_folder_and_another_dataset(place: Place, tmp_path_factory: pytest.TempPathFactory) -> None:
    import tarfile

    tar = place.log.latest(1)
    assert tar is not None
    folder = tmp_path_factory.mktemp("json")
    with tarfile.open(f"{place.uri}/{tar.file('shards').path}") as archive:
        archive.extractall(folder, filter="data")
    assert "nothing to import" in run("folder", folder, "--into", place.uri, "--replace", "--yes")
    with two_shards() as other:
        run("coco", write_coco(other, {1: [(APART, None)]}), "--into", other.uri, "--add", "--yes")
        done = json.loads(run("--from", other.uri, "--into", place.uri, "--add", "--yes", "--json"))
        assert (done["images"], done["masks"]["added"], done["changed_shards"]) == (1, 1, [0])
