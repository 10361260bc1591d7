"""The gate as a user meets it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from segmint.catalogs.dataset.versions.digest import current_digest
from segmint.catalogs.lineage import TrainingDatasetRef
from segmint.pipeline.commands.cli import app
from segmint.pipeline.engine.evaluate.gate import gate
from segmint.pipeline.engine.evaluate.gate.gate import find_annotated_images
from tests.pipeline.engine.evaluate.gate.conftest import held_by_hash, put_lineage
from tests.support.committed import write_dataset
from tests.support.locations import location_of
from tests.support.trainable import row_of, scene, write_trainable

Make = Callable[[str], Path]

pytestmark = pytest.mark.usefixtures("one_thread", "embedded_once")


def run(*arguments: object):
    return CliRunner().invoke(app, ["evaluate", "points", *map(str, arguments), "--device", "cpu", "--no-ray"])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images with a manual mask each."""
    path = tmp_path_factory.mktemp("gate") / "small"
    write_trainable(location_of(path), 1)
    return path


def test_masks_of_people_are_found(dataset: Path) -> None:
    found = find_annotated_images(location_of(dataset))
    assert (found.images, found.models([1, 2, 3])) == ({1, 2, 3}, {})


@pytest.mark.parametrize("option", [["--gate"], ["--require", "better"]])
def test_without_held_out_masks_there_is_no_verdict(
    dataset: Path, weights_file: Make, tmp_path: Path, option: list[str]
) -> None:
    """All images were trained on; the weights are never loaded."""
    old, new = weights_file("old"), weights_file("new")
    put_lineage(new, [(TrainingDatasetRef(name="other", digest=current_digest(location_of(dataset))), 0.0)])
    out = tmp_path / "out"
    done = run(dataset, "--weights", old, "--weights", new, *option, "-o", out)
    assert done.exit_code == (1 if "--require" in option else 0), done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "gate: may new.pth replace old.pth? no independent truth"
    assert "3 images excluded because they were trained on" in done.stdout
    assert "what to do: annotate or correct masks" in done.stdout
    assert lines[-1] == f"written: open {out}/index.html"
    answer = json.loads((out / "evaluation.json").read_bytes())
    assert answer["gate"]["verdict"] == "no independent truth"
    assert answer["gate"]["images"][0]["trained"] == 3
    assert "no independent truth" in (out / "index.html").read_text()


@pytest.mark.parametrize("masks", ["none", "the model's"])
def test_datasets_without_masks_of_people_have_no_verdict(weights_file: Make, tmp_path: Path, masks: str) -> None:
    def without(ordinal: int, refused: bool) -> dict[str, Any]:
        row = row_of(ordinal, refused)
        return {**row, "masks": [] if masks == "none" else row["masks"][1:]}

    for name in ("truth", "guard"):
        write_dataset(location_of(tmp_path / name), 1, make_row=without if name == "truth" else row_without, refuse=0)
    weights = ("--weights", weights_file("old"), "--weights", weights_file("new"))
    done = run(tmp_path / "truth", *weights, "--guard", tmp_path / "guard", "--json")
    assert done.exit_code == 3, done.output
    gate = json.loads(done.stdout)["gate"]
    assert gate["verdict"] == "no independent truth"
    assert gate["reasons"][1:] == [f"the guard set {tmp_path / 'guard'} can't decide: it has 0 images, but needs 10"]


def row_without(ordinal: int, refused: bool) -> dict[str, Any]:
    return {**row_of(ordinal, refused), "masks": []}


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gate"], "--gate compares two sets of weights. Pass --weights twice"),
        (["--weights", "a", "--weights", "b", "--gate", "--truth", "all"], "Remove --truth all"),
        (["DATASET", "--weights", "a", "--weights", "b", "--gate"], "is given twice, so its images would count twice"),
        (["--weights", "mobile_sam", "--weights", "mobile_sam", "--gate"], "have the same content"),
        (["--guard-images", "x"], "--guard-images has no effect without --guard"),
        (["--images", "x"], "--images has no effect, because datasets contain their images"),
    ],
)
def test_wrong_options(dataset: Path, arguments: list[str], message: str) -> None:
    done = run(dataset, *(f"{dataset}/" if each == "DATASET" else each for each in arguments))
    assert done.exit_code == 2
    assert message in done.stderr


def test_a_guard_set_that_does_not_exist_is_known_before_the_evaluation(
    dataset: Path, weights_file: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "evaluate_points", lambda *_: pytest.fail("evaluated first"))
    weights = ("--weights", weights_file("old"), "--weights", weights_file("new"))
    done = run(dataset, *weights, "--guard", "missing.json")
    assert (done.exit_code, "missing.json: no such dataset" in done.stderr) == (2, True), done.output


@pytest.mark.long  # a turn of the engine has it with weights that it trained
def test_only_what_is_held_out_counts(dataset: Path, mobile_sam_path: Path, tmp_path: Path) -> None:
    """MobileSAM against the same weights in another file, which are said to be trained on two of the three images."""
    again = tmp_path / "again" / "again.pth"
    again.parent.mkdir()
    torch.save(torch.load(mobile_sam_path, weights_only=True), again)
    share = next(share / 20 for share in range(1, 20) if len(held_by_hash(3, share / 20)) == 1)
    put_lineage(again, [(TrainingDatasetRef(name="other", digest=current_digest(location_of(dataset))), share)])
    weights = ("--weights", "mobile_sam", "--weights", again)
    done = run(dataset, *weights, "--gate", "--clicks", "1", "--seed", "3", "--json")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert answer["settings"]["clicks"] == [1, 3]
    gate = answer["gate"]
    assert gate["verdict"] == "no difference shown"
    few = "only 1 image with independent masks, but an interval needs 10"
    assert gate["reasons"] == [few, "not the defaults: --seed 3"]
    assert (gate["images"][0]["trained"], answer["images"]) == (2, 1)
    assert [each["difference"] for each in gate["independent"]] == [0.0, 0.0, 0.0]


def test_weights_that_answer_with_no_number_do_not_lose_images(mobile_sam_path: Path, tmp_path: Path) -> None:
    """Else the images on which the second weights fail would leave the comparison."""
    dataset = tmp_path / "one"
    write_dataset(location_of(dataset), 1, make_row=row_of, refuse=2)
    state = torch.load(mobile_sam_path, weights_only=True)
    name = next(name for name in state if name.startswith("mask_decoder.iou_prediction_head"))
    state[name] = torch.full_like(state[name], 3e38)
    broken = tmp_path / "broken.pth"
    torch.save(state, broken)
    done = run(dataset, "--weights", "mobile_sam", "--weights", broken, "--gate", "--clicks", "1", "--json")
    assert done.exit_code == 3, done.output
    answer = json.loads(done.stdout)
    assert (answer["images"], answer["skipped"]["count"]) == (1, 1)
    assert "counted with scores of 0 for the second weights" in answer["skipped"]["first"][0]["why"]
    (compared, *_) = answer["gate"]["independent"]
    assert (compared["images"], compared["second"]) == (1, 0.0)
    assert compared["first"] > 0


def test_corrected_masks_are_found_with_the_model_that_made_them(tmp_path: Path) -> None:
    def corrected(ordinal: int, refused: bool) -> dict[str, Any]:
        row = row_of(ordinal, refused)
        row["masks"][0] |= {"source": "corrected", "model": "7" * 64 if ordinal else None}
        return row

    write_dataset(location_of(tmp_path / "small"), 1, make_row=corrected, refuse=0)
    assert list(find_annotated_images(location_of(tmp_path / "small")).corrected.values()) == [
        "0" * 64,
        *["7" * 64] * 2,
    ]


@pytest.mark.long
def test_disturbed_weights_are_worse_and_equal_ones_no_different(tmp_path: Path, mobile_sam_path: Path) -> None:
    path = tmp_path / "small"
    write_trainable(location_of(path), 4)
    weights = torch.load(mobile_sam_path, weights_only=True)
    generator = torch.Generator().manual_seed(0)
    for name, value in weights.items():
        if name.startswith("mask_decoder"):
            weights[name] = value + 0.5 * value.std(correction=0) * torch.randn(value.shape, generator=generator)
    disturbed = tmp_path / "disturbed.pth"
    torch.save(weights, disturbed)

    done = run(path, "--weights", "mobile_sam", "--weights", disturbed, "--require", "better", "--json")
    assert done.exit_code == 1, done.output
    gate = json.loads(done.stdout)["gate"]
    assert gate["verdict"] == "worse"
    assert gate["independent"][0]["images"] == 12
    assert gate["independent"][0]["interval"][1] < -0.5

    image, masks = scene(5)
    for folder, pixels in (("images", image), ("maps", masks[0].astype(np.uint8))):
        (tmp_path / folder).mkdir()
        Image.fromarray(pixels).save(tmp_path / folder / "photo.png")
    guard = ["--guard", tmp_path / "maps", "--guard-images", tmp_path / "images"]
    again = tmp_path / "again.pth"
    torch.save(torch.load(mobile_sam_path, weights_only=True), again)
    done = run(path, "--weights", "mobile_sam", "--weights", again, "--require", "better", *guard, "--json")
    assert done.exit_code == 1, done.output
    gate = json.loads(done.stdout)["gate"]
    assert gate["verdict"] == "no difference shown"
    assert [each["interval"] for each in gate["independent"]] == [[0.0, 0.0]] * 3
    assert gate["reasons"][1:] == [f"the guard set {tmp_path / 'maps'} can't decide: it has 1 image, but needs 10"]
    assert [each["second"] > 0.5 for each in gate["guards"][0]["compared"]] == [True, True, True]
    assert gate["guard_images"][0]["why"].startswith("a file: ")

    done = run(path, "--weights", disturbed, "--weights", "mobile_sam", "--require", "better", "--guard", path)
    assert done.exit_code == 0, done.output
    assert "gate: may mobile_sam replace disturbed.pth? better" in done.stdout
