"""The detector of objects from a dataset: its files, going on, and keys that are SAM's."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from segmint.infra.errors import UsageError
from segmint.model.detectors.torchscript import TorchScriptDetector
from segmint.pipeline.train.objects import OBJECTS, run_objects
from segmint.pipeline.train.settings import TrainConfig, load_train_config
from tests.support.trainable import scene


def configured(folder: Path, dataset: Path, **changes: object) -> TrainConfig:
    keys = {"backbone": "mobilenet_v3_large", "short_side": 64, "long_side": 64, "steps": 2, "images": 1, "warmup": 0}
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
    for file in (OBJECTS, record["file"], "checkpoints/step-000002.json"):
        (output / file).unlink()
    again = run_objects(config, printed.append)
    assert [line.partition(":")[0] for line in printed[2:]] == ["step 2/2"]
    assert json.loads((output / "checkpoints" / "step-000002.json").read_bytes())["sha256"] == ended
    assert again.record.trained == trained.record.trained


def test_keys_of_sam_and_weights_that_do_not_fit_are_errors(trainable: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="task: objects does not train SAM, whose steps, batch it has"):
        run_objects(configured(tmp_path, trainable, steps=5, batch={"images": 2}), print)
    (tmp_path / "weights.pth").write_text("no weights")
    keys = {"backbone": "mobilenet_v3_large", "weights": str(tmp_path / "weights.pth")}
    with pytest.raises(UsageError, match=r"objects\.weights: .*weights\.pth is not a PyTorch checkpoint"):
        run_objects(configured(tmp_path, trainable, objects=keys), print)
    keys["weights"] = str(tmp_path / "missing.pth")
    with pytest.raises(UsageError, match=r"objects\.weights: .*missing\.pth cannot be read"):
        run_objects(configured(tmp_path, trainable, objects=keys), print)
    with pytest.raises(UsageError, match="short_side is 10: expected 64 pixels or more"):
        configured(tmp_path, trainable, objects={"short_side": 10})
