"""The detector of objects from a dataset: its files, going on, and keys that are SAM's."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from segmint.catalogs.dataset.manifest import load_manifest
from segmint.catalogs.dataset.outputs import read_notes
from segmint.infra.errors import UsageError
from segmint.model.detectors.torchscript import TorchScriptDetector
from segmint.model.training.objects import ObjectImage
from segmint.pipeline.engine.train import objects
from segmint.pipeline.engine.train.images import TrainingDataset
from segmint.pipeline.engine.train.objects import OBJECTS, run_objects
from segmint.pipeline.engine.train.record import put_checkpoint
from segmint.pipeline.engine.train.settings import TrainConfig, load_train_config
from segmint.pipeline.engine.train.trainer import TrainingError
from tests.support.locations import location_of
from tests.support.trainable import scene

SMALL = {
    "backbone": "mobilenet_v3_large",
    "short_side": 64,
    "long_side": 64,
    "images": 1,
    "warmup": 0,
    "decay_steps": [],
}


def configured(folder: Path, dataset: Path, **changes: object) -> TrainConfig:
    keys = {**SMALL, "steps": 2}
    tree = {
        "task": "objects",
        "datasets": [{"uri": str(dataset)}],
        "output": str(folder / "run"),
        "objects": keys,
        "checkpoints": {"every": 1},
        "resources": {"device": "cpu", "threads": 1},
        **changes,
    }
    (folder / "train.yaml").write_text(yaml.safe_dump(tree))
    return load_train_config(str(folder / "train.yaml"))


def test_a_detector_comes_out_and_a_stopped_run_goes_on_to_the_same_one(trainable: Path, tmp_path: Path) -> None:
    printed: list[str] = []
    config = configured(tmp_path, trainable)
    trained = run_objects(config, printed.append)
    assert [line.partition(":")[0] for line in printed] == ["step 1/2", "step 2/2"]
    output = tmp_path / "run"
    record = json.loads((output / OBJECTS).read_bytes())
    assert record["file"] == trained.record.file == f"objects-{record['sha256'][:12]}.pt"
    assert record["trained"]["steps"] == 2
    assert record["trained"]["images"] < 12, "images that are held out are not trained on"
    detector = TorchScriptDetector(output / record["file"], "face", score=0.0)
    found = detector.detect(np.ascontiguousarray(scene(0)[0]))
    assert all(-1 <= d.box[0] < d.box[2] <= 161 for d in found)
    assert not run_objects(config, printed.append).new
    assert len(printed) == 2

    ended = json.loads((output / "checkpoints" / "step-000002.json").read_bytes())["sha256"]
    for file in (OBJECTS, record["file"]):
        (output / file).unlink()
    (damaged,) = (output / "checkpoints").glob("step-000002-*.pt")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    again = run_objects(config, printed.append)
    assert [line.partition(":")[0] for line in printed[2:]] == ["step 2/2"]
    assert json.loads((output / "checkpoints" / "step-000002.json").read_bytes())["sha256"] == ended
    assert again.record.trained == trained.record.trained
    assert again.record.skipped == trained.record.skipped
    checkpoint = json.loads((output / "checkpoints" / "step-000002.json").read_bytes())
    assert checkpoint["skipped"] == record["skipped"]["counts"] != {}


def test_a_gradient_that_is_no_number_ends_the_run_before_a_checkpoint(
    trainable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = objects.objects_step

    def overflown(detector: nn.Module, images: Sequence[ObjectImage], seed: int, number: int, total: int) -> object:
        losses = step(detector, images, seed, number, total)
        if number == 2:
            next(each.grad for each in detector.parameters() if each.grad is not None).fill_(float("inf"))
        return losses

    monkeypatch.setattr(objects, "objects_step", overflown)
    with pytest.raises(TrainingError, match=r"step 2: the gradient is not finite, on image \d+ of .*Lower"):
        run_objects(configured(tmp_path, trainable), print)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("*.json")] == ["step-000001.json"]


def test_a_cache_elsewhere_is_noted_and_one_in_the_dataset_is_refused(trainable: Path, tmp_path: Path) -> None:
    dataset, cache = tmp_path / "dataset", tmp_path / "cache"
    shutil.copytree(trainable, dataset, ignore=shutil.ignore_patterns("outputs"))
    keys = {**SMALL, "steps": 1}
    with pytest.raises(UsageError, match=r"cache\.folder: .* is inside the dataset"):
        run_objects(configured(tmp_path, dataset, objects=keys, cache={"folder": str(dataset / "cache")}), print)
    assert not (tmp_path / "run").exists()
    key = TrainingDataset(location_of(dataset), load_manifest(location_of(dataset)), "").key
    stale = cache / "scans" / key / f"{'0' * 64}.npz"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"thumbnails of a tar that a takedown removed")
    run_objects(configured(tmp_path, dataset, objects=keys, cache={"folder": str(cache)}), print)
    assert not stale.exists()
    assert {note.place for note in read_notes(location_of(dataset))} == {"../run", "../cache"}


def test_keys_of_sam_and_weights_that_do_not_fit_are_errors(trainable: Path, tmp_path: Path) -> None:
    keys = {"steps": 5, "batch": {"images": 2}, "jitter": [0.5, 1.0]}
    with pytest.raises(UsageError, match="task: objects doesn't train SAM, but steps, batch, jitter is set"):
        run_objects(configured(tmp_path, trainable, **keys), print)
    (tmp_path / "weights.pth").write_text("no weights")
    keys = {**SMALL, "weights": str(tmp_path / "weights.pth")}
    with pytest.raises(UsageError, match=r"objects\.weights: .*weights\.pth is not a PyTorch checkpoint"):
        run_objects(configured(tmp_path, trainable, objects=keys), print)
    keys["weights"] = str(tmp_path / "missing.pth")
    with pytest.raises(UsageError, match=r"objects\.weights: .*missing\.pth can't be read"):
        run_objects(configured(tmp_path, trainable, objects=keys), print)
    assert not (tmp_path / "run").exists(), "nothing is pinned"
    keys = {**SMALL, "steps": 2, "warmup": 2, "decay_steps": [2, 1]}
    with pytest.raises(UsageError, match=r"objects\.warmup is 2: expected fewer(.|\n)*decay_steps are \[2, 1\]"):
        run_objects(configured(tmp_path, trainable, objects=keys), print)
    with pytest.raises(UsageError, match="short_side is 10: expected 64 pixels or more"):
        configured(tmp_path, trainable, objects={"short_side": 10})


def test_a_state_that_does_not_fit_changes_no_weight(tmp_path: Path) -> None:
    """A run that starts over must start from its initial weights."""
    other = nn.Linear(1, 1)
    groups = torch.optim.SGD([{"params": [other.weight]}, {"params": [other.bias]}], lr=0.1)
    state = {"weights": other.state_dict(), "optimizer": groups.state_dict()}
    folder = location_of(tmp_path)
    put_checkpoint(folder, state, run="run", step=10, evaluations=(), skipped={}, listed=(), numerics=())
    detector = nn.Linear(1, 1)
    before = detector.weight.item()
    run = SimpleNamespace(fingerprint="run")
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.1)
    assert objects.restore(folder, run, detector, optimizer, SimpleNamespace()) == 0
    assert detector.weight.item() == before != other.weight.item()
