"""`segmint label` as a user meets it, with a CLIP of random weights and a TorchScript module."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner, Result

from segmint.operators.text import MaskLabels
from segmint.pipeline.commands.cli import app
from tests.support.clips import write_clip
from tests.support.imported import masks_of
from tests.support.labeled import write_labeled
from tests.support.protocol import DatasetPath, contents, two_shards


@pytest.fixture
def place() -> Iterator[DatasetPath]:
    """Images 1, 2, 4 and 5 with two masks each; a person has labeled the first masks of images 1 and 4."""
    with two_shards(committed=0) as place:
        write_labeled(place, 0)
        write_labeled(place, 1)
        yield place


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    (tmp_path / "labels.txt").write_text("red circle\nblue square\ngrün\n", "utf-8")
    return tmp_path / "labels.txt"


def run(place: DatasetPath, *arguments: object) -> Result:
    return CliRunner().invoke(app, ["label", place.uri, *map(str, arguments)])


class AlwaysLast(nn.Module):
    def forward(self, crops: Tensor, masks: Tensor) -> Tensor:
        return torch.tensor([0.1, 0.2, 0.7]).expand(len(crops), 3)


def test_a_clip_labels_masks_and_its_labels_can_be_removed(
    place: DatasetPath, vocabulary: Path, tmp_path: Path
) -> None:
    clip = write_clip(tmp_path / "clip")
    before = contents(place)
    listed = run(place, "--vocabulary", vocabulary, "--model", clip, "--dry-run")
    assert listed.exit_code == 0, listed.output
    assert "labels of 4 images of" in listed.stdout
    assert "masks: 6 labeled, 2 kept" in listed.stdout.replace(" and ", ", ")
    assert contents(place) == before
    done = run(place, "--vocabulary", vocabulary, "--model", clip, "--yes", "--json")
    assert done.exit_code == 0, done.output
    value = json.loads(done.stdout)
    version = MaskLabels.version(str(clip), ["red circle", "blue square", "grün"])
    assert (value["masks"], value["changed_shards"], value["sha256"]) == ({"labeled": 6, "kept": 2}, [0, 1], version)
    masks = masks_of(place, 0) + masks_of(place, 1)
    assert [mask["label_source"] for mask in masks] == ["person", *3 * [f"model:{version}"]]
    assert {mask["label"] for mask in masks[1:]} <= {"red circle", "blue square", "grün"}
    removed = run(place, "--remove", "--yes")
    assert removed.exit_code == 0, removed.output
    after = contents(place)
    assert {name: digest for name, digest in after.items() if not name.startswith("commits/")} == {
        name: digest for name, digest in before.items() if not name.startswith("commits/")
    }
    assert "no label to change" in run(place, "--remove", "--yes").stdout


def test_a_torchscript_module_labels_masks(place: DatasetPath, vocabulary: Path, tmp_path: Path) -> None:
    torch.jit.script(AlwaysLast()).save(tmp_path / "module.pt")
    done = run(place, "--vocabulary", vocabulary, "--model", tmp_path / "module.pt", "--yes")
    assert done.exit_code == 0, done.output
    labels = [(mask["label"], mask["label_score"]) for mask in masks_of(place, 4)]
    assert labels == 2 * [("grün", 0.7)]


def test_invalid_arguments_change_nothing(place: DatasetPath, vocabulary: Path, tmp_path: Path) -> None:
    before = contents(place)
    empty, repeated = tmp_path / "empty.txt", tmp_path / "repeated.txt"
    empty.write_text("")
    repeated.write_text("a\nb\na\n")
    clip = write_clip(tmp_path / "clip")
    no_weights = write_clip(tmp_path / "bare")
    (no_weights / "model.safetensors").rename(no_weights / "pytorch_model.bin")
    expected = "expected --vocabulary FILE and --model PATH, or --remove"
    for arguments, message in (
        ([], expected),
        (["--vocabulary", vocabulary], expected),
        (["--remove", "--model", clip], expected),
        (["--vocabulary", empty, "--model", clip], "is empty: expected one label per line"),
        (["--vocabulary", repeated, "--model", clip], "line 3: 'a' is already on line 1"),
        (["--vocabulary", vocabulary, "--model", no_weights], "contains no safetensors file"),
        (["--vocabulary", vocabulary, "--model", tmp_path / "absent"], "does not exist: expected the folder of a CLIP"),
        (["--vocabulary", vocabulary, "--model", clip], "label permanently changes the dataset and needs confirmation"),
    ):
        done = run(place, *arguments)
        assert done.exit_code == 2
        assert message in " ".join(done.output.split())
    assert contents(place) == before


def test_a_missing_extra_is_named(
    place: DatasetPath, vocabulary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = write_clip(tmp_path / "clip")
    monkeypatch.setattr("segmint.operators.text.PACKAGES", ("no_such_package",))
    done = run(place, "--vocabulary", vocabulary, "--model", clip, "--yes")
    assert done.exit_code == 2
    assert "missing packages: no_such_package. Run `pip install 'segmint[text]'`." in done.output
