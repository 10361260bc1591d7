"""`segmint evaluate points` as a user meets it, with real weights on parts of photographs."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from segmint.catalogs.dataset.outputs import read_notes
from segmint.infra.errors import UsageError
from segmint.operators.annotations.image import encode_mask
from segmint.pipeline.commands.cli import app
from segmint.pipeline.commands.engine.evaluate import parse_clicks
from tests.support.html import parse_page
from tests.support.locations import location_of
from tests.support.trainable import SIZE, scene, write_trainable

pytestmark = pytest.mark.usefixtures("one_thread", "embedded_once")


def run(*arguments: object):
    return CliRunner().invoke(app, ["evaluate", "points", *map(str, arguments)])


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
    assert "difference: other.pt minus mobile_sam" in done.stdout
    assert "by kind; pairs" in done.stdout
    assert "over the same 3 masks of 3 images; p by" in done.stdout
    assert "3 clicks, a minus b (2 masks of 2 images and 1 mask of 1 image): " in done.stdout
    tables = (out / "tables.md").read_text().splitlines()
    assert tables[0] == lines[0]
    assert "other.pt compared with mobile_sam, 3 masks of 3 images" in tables
    assert sum(line.endswith(" | too few images for an interval |") for line in tables) == 6
    assert any(line.startswith("| a (2 masks of 2 images) | ") for line in tables)

    answer = json.loads((out / "evaluation.json").read_bytes())
    verdicts = [each["verdict"] for each in answer["differences"] if "verdict" in each]
    assert verdicts == ["too few images for an interval"] * 6
    assert sum(line.endswith(f": {verdicts[0]}") for line in lines) == 6
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
        "a (2 masks of 2 images) minus b (1 mask of 1 image)",
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
