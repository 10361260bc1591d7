"""`segmint evaluate text`: the IoUs are those of single predictions, and only labels of people count."""

import itertools
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from segmint.catalogs.dataset.reader import Dataset
from segmint.infra.assets.cache import sha256_of
from segmint.model.sam.load import load_sam
from segmint.model.sam.predictor import Predictor
from segmint.operators.evaluate.clicks import center_click
from segmint.operators.text.clip import ClipFolder
from segmint.operators.text.prompts import TextPrompts, save_projection
from segmint.pipeline.commands.cli import app
from tests.support.clips import write_clip
from tests.support.committed import write_dataset
from tests.support.locations import location_of
from tests.support.trainable import row_of, scene

LABELS = ("red circle", "blue bar")


def labeled(ordinal: int, refused: bool, labels: tuple[str, str, str] = (*LABELS, "green")) -> dict[str, Any]:
    """Two images whose largest mask a person labeled, with labels that don't count; one image without labels."""
    row = row_of(ordinal, refused)
    first, second, largest = row["masks"]
    largest["source"] = "imported"
    if ordinal < 2:
        largest |= {"label": labels[ordinal], "label_source": "person"}
        first |= {"label": labels[2], "label_source": f"model:{'0' * 64}"}
        second |= {"label": labels[2], "label_source": "import"}  # on the model's own mask
    return row


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["evaluate", "text", *map(str, arguments), "--device", "cpu", "--no-ray"])


@pytest.mark.usefixtures("one_thread", "embedded_once")
def test_the_ious_are_those_of_single_predictions(mobile_sam_path: Path, tmp_path: Path) -> None:
    place = location_of(tmp_path / "dataset")
    write_dataset(place, 1, make_row=labeled, refuse=0)
    clip, file = write_clip(tmp_path / "clip"), tmp_path / "text.safetensors"
    torch.manual_seed(1)
    lineage = {"clip_sha256": ClipFolder.open(clip).sha256, "sam_sha256": sha256_of(mobile_sam_path)}
    save_projection(file, nn.Linear(16, 256), lineage)
    done = run(tmp_path / "dataset", "--clip", clip, "--projection", file, "--json")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert (answer["images"], answer["masks"], answer["labeled_images"]) == (3, 2, 2)
    assert (answer["clip_sha256"], answer["projection_sha256"]) == (lineage["clip_sha256"], sha256_of(file))
    means = {each["prompt"]: each["mean"] for each in answer["means"]}
    assert {each["interval"] for each in answer["means"]} == {None}  # of too few images

    predictor = Predictor(load_sam(mobile_sam_path), embed_texts=TextPrompts.load(clip, file))
    samples = list(itertools.islice(Dataset.open(place), 2))
    embeddings = [predictor.embed(sample.image) for sample in samples]
    truths = [scene(ordinal)[1][2] for ordinal in range(2)]

    def iou(ordinal: int, **prompt: object) -> float:
        found = predictor.predict(embeddings[ordinal], **prompt)  # type: ignore[arg-type]
        best = int(found.predicted_iou[0].argmax())
        mask = (predictor.upscale(found.low_res_logits[:, best : best + 1], embeddings[ordinal])[0, 0] > 0).numpy()
        return float((mask & truths[ordinal]).sum() / (mask | truths[ordinal]).sum())

    clicks = [center_click(truth) for truth in truths]
    points = [{"points": np.array([[click.x, click.y]]), "labels": np.array([1])} for click in clicks]
    expected = {
        "own label": [iou(ordinal, text=LABELS[ordinal]) for ordinal in range(2)],
        "empty text": [iou(ordinal, text="") for ordinal in range(2)],
        "one point": [iou(ordinal, **points[ordinal]) for ordinal in range(2)],
        "own label and point": [iou(ordinal, **points[ordinal], text=LABELS[ordinal]) for ordinal in range(2)],
    }
    for name, ious in expected.items():
        assert means[name] == pytest.approx(np.mean(ious), abs=1e-6), name
    others = [[iou(ordinal, text=text) for text in (LABELS[1 - ordinal], "green")] for ordinal in range(2)]
    possible = [np.mean(pair) for pair in itertools.product(*others)]
    assert min(abs(means["random other label"] - each) for each in possible) < 1e-6
    assert len({round(each, 6) for each in means.values()}) >= 4, "else exchanged prompts would not be noticed"

    printed = run(tmp_path / "dataset", "--clip", clip, "--projection", file).stdout.splitlines()
    assert printed[0].startswith("text: 2 masks of 3 images of ")
    assert printed[1].startswith("mean IoU with people's labeled masks, in percent, too few images")
    assert [line.split("  ")[1] for line in printed[2:7]] == list(means)
    assert all(line.endswith("n = 2 in 2 images") for line in printed[2:7])


def test_what_can_not_be_measured_is_refused(mobile_sam_path: Path, tmp_path: Path) -> None:
    clip, file = write_clip(tmp_path / "clip"), tmp_path / "text.safetensors"
    lineage = {"clip_sha256": ClipFolder.open(clip).sha256, "sam_sha256": "ab" * 32}
    save_projection(file, nn.Linear(16, 256), lineage)
    model = ("--clip", clip, "--projection", file)
    write_dataset(location_of(tmp_path / "dataset"), 1, make_row=labeled, refuse=0)
    done = run(tmp_path / "dataset", *model)
    assert done.exit_code == 2
    assert f"was trained with sam_sha256 {'ab' * 32}" in done.output.replace("\n", " ")
    done = run(tmp_path / "dataset", *model, "--weights", "mobile_sam", "--weights", mobile_sam_path)
    assert "expected once, because a projection belongs to one SAM" in done.output.replace("\n", " ")
    write_dataset(location_of(tmp_path / "bare"), 1, make_row=row_of, refuse=0)
    assert "the masks have 0 labels: expected at least 2" in run(tmp_path / "bare", *model).output
    cased = partial(labeled, labels=("red circle", "Red  circle", "RED CIRCLE"))
    write_dataset(location_of(tmp_path / "cased"), 1, make_row=cased, refuse=0)
    assert "the masks have 1 label: expected at least 2" in run(tmp_path / "cased", *model).output
    Image.fromarray(scene(0)[0]).save(tmp_path / "a.png")
    (tmp_path / "coco.json").write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    assert run(tmp_path / "coco.json", *model).exit_code == 2
