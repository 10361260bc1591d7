"""A dataset of another format is refused by every command in the same words, and nothing of it is touched."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import segmint
from segmint.infra.errors import UsageError
from segmint.infra.version import VERSION
from segmint.pipeline.commands.cli import app
from tests.support.builds import digests, write_catalog, write_config
from tests.support.committed import write_dataset
from tests.support.locations import location_of

SAID = f"dataset.json has schema_version 1, and segmint {VERSION} reads only 3 and 4: open the dataset with segmint 7.1"


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A small dataset whose manifest says schema_version 1."""
    folder = tmp_path / "dataset"
    write_dataset(location_of(folder), shards=2)
    manifest = json.loads((folder / "dataset.json").read_bytes())
    manifest |= {"schema_version": 1, "code_version": "7.1"}
    (folder / "dataset.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize(
    "command",
    [
        ("audit",),
        ("report",),
        ("status",),
        ("takedown", "--license", "CC0-1.0", "--reason", "they asked", "--yes"),
    ],
    ids=lambda command: command[0],
)
def test_a_command_refuses_another_format(dataset: Path, command: tuple[str, ...]) -> None:
    before = digests(dataset)
    done = CliRunner().invoke(app, [command[0], str(dataset), *command[1:]])
    assert done.exit_code == 2
    assert SAID in " ".join(done.output.split())
    assert digests(dataset) == before


@pytest.mark.usefixtures("weights")
def test_a_build_refuses_another_format(dataset: Path) -> None:
    catalog = write_catalog(dataset.parent / "catalog.jsonl", [{"uri": "a.jpg", "license": "CC0-1.0"}])
    before = digests(dataset)
    done = CliRunner().invoke(app, ["build", str(write_config(dataset.parent / "build.yaml", catalog, dataset))])
    assert done.exit_code == 2
    assert SAID in " ".join(done.output.split())
    assert digests(dataset) == before


def test_open_dataset_refuses_another_format(dataset: Path) -> None:
    with pytest.raises(UsageError) as caught:
        segmint.open_dataset(str(dataset))
    assert SAID in str(caught.value)
