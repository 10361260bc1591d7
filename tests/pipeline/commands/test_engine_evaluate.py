"""`segmint evaluate points` as a user meets it, with real weights on parts of photographs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from segmint.catalogs.dataset.digest import current_digest
from segmint.catalogs.dataset.outputs import read_notes
from segmint.catalogs.lineage import TRAINING
from segmint.infra.assets import sha256_of
from segmint.infra.errors import UsageError
from segmint.operators.annotations.image import encode_mask
from segmint.pipeline.commands.cli import app
from segmint.pipeline.commands.engine import parse_clicks
from tests.support.committed import write_dataset
from tests.support.html import parse_page
from tests.support.lineages import BASE
from tests.support.locations import location_of
from tests.support.trainable import SIZE, row_of, scene, write_trainable

pytestmark = pytest.mark.usefixtures("one_thread", "embedded_once")


def run(*arguments: object):
    return run_segmint("evaluate", "points", *arguments)


def run_segmint(*arguments: object):
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a label map of an image, which is in the folder `images` beside it."""
    folder = tmp_path_factory.mktemp("maps")
    image, masks = scene(0)
    for name, pixels in (("images", image), ("maps", masks[0].astype(np.uint8))):
        (folder / name).mkdir()
        Image.fromarray(pixels).save(folder / name / "photo.png")
    return folder / "maps"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images, each with a manual mask and two of the model's."""
    folder = tmp_path_factory.mktemp("evaluate") / "dataset"
    write_trainable(location_of(folder), shards=1)
    return folder


@pytest.fixture(scope="module")
def other_weights(mobile_sam_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MobileSAM that always ranks the third of three masks first."""
    weights = torch.load(mobile_sam_path, weights_only=True)
    weights["mask_decoder.iou_prediction_head.layers.2.bias"][3] += 5
    path = tmp_path_factory.mktemp("weights") / "other.pt"
    torch.save(weights, path)
    return path


def test_two_weights_with_groups_on_a_page(dataset: Path, other_weights: Path, tmp_path: Path) -> None:
    (tmp_path / "groups.csv").write_text("image_id,kind\nimage-0,a\nimage-1,b\nimage-2,a\n")
    out = tmp_path / "out"
    arguments = (dataset, "--weights", "mobile_sam", "--weights", other_weights, "--device", "cpu", "--no-ray")
    done = run(*arguments, "--clicks", "1,2", "--groups", tmp_path / "groups.csv", "--seed", 3, "-o", out)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == f"points: 3 masks of 3 images of {dataset}"
    assert lines[1].startswith("first click: a random pixel")
    assert lines[-1] == f"written: open {out}/index.html"
    assert "\nDifferences are other.pt minus mobile_sam. " in done.stdout
    assert "\nother.pt compared with mobile_sam, 3 masks of 3 images  " in done.stdout
    assert "\nPairs by kind  " in done.stdout
    pair = "a (2 masks of 2 images) minus b (1 mask of 1 image)"
    assert f"\n  {pair}, mobile_sam, 3 clicks  " in done.stdout
    assert "\np comes from permuting the labels over images" in done.stdout
    tables = (out / "tables.md").read_text().splitlines()
    assert tables[0] == lines[0]
    assert "other.pt compared with mobile_sam, 3 masks of 3 images" in tables
    assert sum(line.endswith(" | too few images |") for line in tables) == 6
    assert any(line.startswith("| a (2 masks of 2 images) | ") for line in tables)

    answer = json.loads((out / "evaluation.json").read_bytes())
    verdicts = [each["verdict"] for each in answer["differences"] if "verdict" in each]
    assert verdicts == ["too few images"] * 6
    assert sum(line.endswith(f"  {verdicts[0]}") for line in lines) == 6
    assert answer["settings"] == {"clicks": [1, 2, 3], "first_click": "random", "several_clicks": "single", "seed": 3}
    assert answer["truth"][0]["truth"] == "human"
    assert (answer["computed_on"], answer["images"], answer["skipped"]["count"]) == ("cpu, fp32", 3, 0)
    rows = pq.read_table(out / "results.parquet").to_pylist()
    found = [(row["image_id"], row["mask"], row["weights"], row["group"], row["source"]) for row in rows]
    assert found == [
        (f"image-{image}", 10_000 * (image + 1), weights, "aba"[image], "manual")
        for image in range(3)
        for weights in range(2)
    ]
    for weights in range(2):
        mean = sum(row["iou_1"] for row in rows if row["weights"] == weights) / 3
        (listed,) = (
            each
            for each in answer["means"]
            if (each["weights"], each["measure"], each["over"]) == (weights, "iou_1", "masks")
        )
        assert listed["mean"] == pytest.approx(mean)
    # The same clicks: other weights choose another of the same three masks.
    for one, other in zip(rows[::2], rows[1::2], strict=True):
        assert one["oracle_1"] == pytest.approx(other["oracle_1"], abs=1e-6)
        assert one["clicks"][0] == other["clicks"][0]
        assert len(one["clicks"]) <= 3
        assert one["area"] > 0
    assert [note.command for note in read_notes(location_of(dataset))] == ["evaluate"]

    page = parse_page((out / "index.html").read_text(encoding="utf-8"))
    assert all(image.attributes["src"].startswith("data:image/jpeg") for image in page.all("img"))
    assert len(page.all("img")) == 2 * 2 * 3
    assert not page.all("script")
    for text in (
        "By kind",
        "Comparison",
        "Corrected p Verdict",
        "other.pt",
        pair,
        "CC0-1.0",
    ):
        assert text in page.text

    again = run(*arguments, "-o", out)
    assert again.exit_code == 2
    assert "results.parquet already exists" in again.output


@pytest.mark.usefixtures("weights")
def test_json_without_a_folder_and_what_was_left_out(dataset: Path, tmp_path: Path) -> None:
    image, masks = scene(0)
    Image.fromarray(image).save(tmp_path / "a.png")
    annotations = []
    for number, mask in enumerate((masks[0], masks[1], np.zeros(SIZE, bool))):
        rle = encode_mask(mask)
        segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
        annotations.append({"id": number, "image_id": 1, "segmentation": segmentation, "iscrowd": int(number == 1)})
    images = [{"id": 1, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}]
    (tmp_path / "coco.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    done = run(tmp_path / "coco.json", "--images", tmp_path, "--clicks", "1", "--json", "--device", "cpu")
    assert done.exit_code == 3, done.output
    answer = json.loads(done.stdout)
    assert (answer["images"], answer["masks"]) == (1, 1)
    assert [each["why"] for each in answer["skipped"]["first"]] == ["mask 2: it has no pixels"]
    assert answer["truth"][0]["kind"] == "coco"


def test_numbers_of_clicks() -> None:
    assert parse_clicks("1, 3,9") == (1, 3, 9)
    for text in ("", "2,3", "1,1", "1,3,2", "1,x", "1,1000000"):
        with pytest.raises(UsageError, match="ascending numbers that begin with 1"):
            parse_clicks(text)


COMPARED = ("--weights", "mobile_sam", "--weights")


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize(
    ("command", "valid"),
    [
        ("points", "iou_1, iou_3, oracle_1, oracle_3"),
        ("proposals", "ar_10, ar_10_small, ar_10_medium, ar_10_large, ar_100, "),
        ("edges", "ods, ois, ap, r50"),
        ("instances", "masks, images"),
    ],
)
def test_an_unknown_measure_is_an_error_before_anything_is_computed(
    command: str, valid: str, maps: Path, other_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segmint.pipeline.engine.evaluate.run.run_measure", lambda *_: pytest.fail("computed"))
    clicks = ("--clicks", "1,3") if command == "points" else ()
    arguments = ("evaluate", command, maps, "--images", maps.parent / "images", *clicks)
    done = run_segmint(*arguments, *COMPARED, other_weights, "--fail-if-worse", "miou")
    assert done.exit_code == 2, done.output
    assert f"--fail-if-worse miou: expected {valid}" in done.stderr
    done = run_segmint(*arguments, "--fail-if-worse", valid.partition(",")[0])
    assert done.exit_code == 2, done.output
    assert "--fail-if-worse compares two sets of weights: pass --weights twice" in done.stderr


@pytest.mark.parametrize(
    ("command", "measure", "options"),
    [
        ("points", "oracle_1", ("--clicks", "1")),
        ("proposals", "ar_100_large", ("--points-per-side", "2")),
        ("edges", "ois", ("--points-per-side", "2")),
        ("instances", "images", ()),
    ],
)
def test_with_one_image_the_second_weights_are_neither_worse_nor_not(
    command: str, measure: str, options: tuple[str, ...], maps: Path, other_weights: Path
) -> None:
    arguments = ("evaluate", command, maps, "--images", maps.parent / "images", *options, *COMPARED, other_weights)
    done = run_segmint(*arguments, "--fail-if-worse", measure, "--device", "cpu", "--no-ray", "--json")
    assert done.exit_code == 3, done.output
    answer = json.loads(done.stdout)
    found = answer["fail_if_worse"]
    assert (found["measure"], found["interval"], found["worse"]) == (measure, None, None)
    assert found["difference"] == reported(command, answer["differences"])


def reported(command: str, differences: Any) -> float:
    """The difference in an answer by the measures of the test above."""
    if command == "points":
        (one,) = [each for each in differences if (each["measure"], each["over"]) == ("oracle_1", "masks")]
    elif command == "proposals":
        keys = ("all", 100, "large")
        (one,) = [each for each in differences if (each["kind"], each["limit"], each["area"]) == keys]
    else:
        one = differences["ois" if command == "edges" else "images"]
    value: float = one["mean" if command == "points" else "value"]
    return value


def test_weights_that_are_worse_fail_and_better_ones_do_not(mobile_sam_path: Path, tmp_path: Path) -> None:
    write_trainable(location_of(tmp_path / "dataset"), 4)
    weights = torch.load(mobile_sam_path, weights_only=True)
    generator = torch.Generator().manual_seed(0)
    for name, value in weights.items():
        if name.startswith("mask_decoder"):
            weights[name] = value + 0.5 * value.std(correction=0) * torch.randn(value.shape, generator=generator)
    disturbed = tmp_path / "disturbed.pth"
    torch.save(weights, disturbed)
    arguments = (tmp_path / "dataset", "--clicks", "1", "--fail-if-worse", "iou_1", "--device", "cpu", "--no-ray")
    done = run(*arguments, "--weights", "mobile_sam", "--weights", disturbed)
    assert done.exit_code == 1, done.output
    assert done.stdout.splitlines()[-1].startswith("--fail-if-worse iou_1: the second weights are worse, -")
    done = run(*arguments, "--weights", disturbed, "--weights", "mobile_sam")
    assert done.exit_code == 0, done.output
    assert "--fail-if-worse iou_1: the second weights aren't shown to be worse, +" in done.stdout


def test_weights_that_answer_with_no_number_do_not_lose_images(mobile_sam_path: Path, tmp_path: Path) -> None:
    """Else the images on which the second weights fail would leave the comparison."""
    dataset = tmp_path / "one"
    write_dataset(location_of(dataset), 1, make_row=row_of, refuse=2)
    state = torch.load(mobile_sam_path, weights_only=True)
    name = next(name for name in state if name.startswith("mask_decoder.iou_prediction_head"))
    state[name] = torch.full_like(state[name], 3e38)
    broken = tmp_path / "broken.pth"
    torch.save(state, broken)
    done = run(dataset, *COMPARED, broken, "--clicks", "1", "--json", "--device", "cpu", "--no-ray")
    assert done.exit_code == 3, done.output
    answer = json.loads(done.stdout)
    assert (answer["images"], answer["skipped"]["count"]) == (1, 1)
    assert "counted with scores of 0 for the second weights" in answer["skipped"]["first"][0]["why"]
    first, second = (
        each for each in answer["means"] if (each["measure"], each["truth"], each["over"]) == ("iou_1", None, "masks")
    )
    assert (second["images"], second["mean"]) == (1, 0.0)
    assert first["mean"] > 0


@pytest.mark.parametrize("trained", [True, False])
def test_weights_that_were_trained_on_the_dataset_are_named(dataset: Path, other_weights: Path, trained: bool) -> None:
    digest = current_digest(location_of(dataset)) if trained else "d" * 64
    datasets = [{"name": "street", "digest": digest}]
    lineage = [
        {"weights": BASE, "name": "mobile_sam", "datasets": []},
        {"weights": "2" * 64, "name": "sam-1.pth", "datasets": datasets},
        {"weights": sha256_of(other_weights), "name": "other.pt", "datasets": [{"name": "shop", "digest": "e" * 64}]},
    ]
    record = {"weights": sha256_of(other_weights), "lineage": lineage}
    file = other_weights.parent / TRAINING
    file.write_text(json.dumps(record))
    try:
        done = run(dataset, *COMPARED, other_weights, "--clicks", "1", "--device", "cpu", "--no-ray")
    finally:
        file.unlink()
    assert done.exit_code == 0, done.output
    warnings = [line for line in done.stderr.splitlines() if "trained_on_truth" in line]
    assert len(warnings) == trained
    for warning in warnings:
        assert "other.pt" in warning
        assert str(dataset) in warning


@pytest.mark.usefixtures("weights")
def test_images_of_datasets_are_not_named(dataset: Path) -> None:
    done = run(dataset, "--images", "x")
    assert done.exit_code == 2
    assert "--images has no effect, because datasets contain their images" in done.stderr
