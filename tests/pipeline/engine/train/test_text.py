"""Training of a projection for text prompts: its file fits the weights, and a killed run ends with the same bytes."""

import json
from pathlib import Path

import pytest
import torch

from segmint.catalogs.lineage import TRAINING
from segmint.infra.assets.cache import sha256_of
from segmint.infra.errors import UsageError
from segmint.model.sam.load import load_sam
from segmint.operators.text.clip import ClipFolder
from segmint.operators.text.prompts import TextPrompts, load_projection
from segmint.pipeline.engine.train.record import TrainingRecord
from segmint.pipeline.engine.train.run import run_train
from segmint.pipeline.engine.train.settings import TrainConfig, load_train_config
from segmint.pipeline.engine.train.text import add_projection
from tests.support.clips import write_clip
from tests.support.locations import location_of
from tests.support.trainable import SHORTEST, train_yaml, write_three


class KilledError(Exception):
    """The run ends after a step."""


def config_of(folder: Path, name: str, **changes: object) -> TrainConfig:
    keys = {**SHORTEST, "text": {"clip": str(folder / "clip"), "min_mask_area": 300}, "overlays": {"every": 0}}
    keys |= {"checkpoints": {"every": 1}, "cache": {"folder": str(folder / "cache")}, **changes}
    path = train_yaml(folder / f"{name}.yaml", [folder / "dataset"], folder / name, masks="human", **keys)
    return load_train_config(str(path))


def test_a_killed_run_ends_with_the_projection_of_the_unbroken_one(
    one_thread: None, embedded_once: None, weights: None, tmp_path: Path
) -> None:
    write_three(location_of(tmp_path / "dataset"))
    clip = write_clip(tmp_path / "clip")
    lines: list[str] = []
    whole = run_train(config_of(tmp_path, "whole"), lines.append)
    record = whole.record
    output = tmp_path / "whole"
    file = output / record.trained["projection"]["file"]
    assert f"projection of texts: {file}" in whole.lines()
    assert sha256_of(file) == record.trained["projection"]["sha256"]
    projection, lineage = load_projection(file)
    sam, folder = load_sam(output / record.file), ClipFolder.open(clip)
    assert (lineage["clip_sha256"], lineage["sam_sha256"]) == (folder.sha256, record.weights)
    assert (lineage["steps"], lineage["seed"], lineage["datasets"][0]["name"]) == (2, 0, "small")
    assert TextPrompts.load(clip, file, sam_sha256=record.weights)(["red circle"]).shape == (1, 256)
    add_projection(sam, folder.load(), 0)
    before = sam.prompt_encoder.text_projection
    assert before is not None
    assert 1e-5 < (projection.weight - before.weight).abs().max() < 0.01  # two steps, the first in the warm-up
    assert record.config["text"] == {"clip": folder.sha256, "min_mask_area": 300}
    assert str(tmp_path) not in (output / TRAINING).read_text()

    def say(line: str) -> None:
        lines.append(line)
        if line.startswith("step 2"):
            raise KilledError

    with pytest.raises(KilledError):
        run_train(config_of(tmp_path, "broken"), say)
    again = run_train(config_of(tmp_path, "broken"), lines.append).record
    steps = [line for line in lines if line.startswith("step ")]
    assert len(steps) == 5
    assert len(set(steps)) == 2
    assert "resuming from the checkpoint of step 1" in lines
    assert again.trained == record.trained
    assert again.weights == record.weights
    with pytest.raises(UsageError, match=r"contains a run that differs in text\.min_mask_area"):
        run_train(config_of(tmp_path, "broken", text={"clip": str(clip), "min_mask_area": 301}), print)
    with pytest.raises(UsageError, match=r"contains no config\.json: expected a folder that CLIP's save_pretrained"):
        run_train(config_of(tmp_path, "none", text={"clip": str(output)}), print)
    with pytest.raises(UsageError, match=r"no images with masks to train on in .*; 3 masks under text\.min_mask_area"):
        run_train(config_of(tmp_path, "large", text={"clip": str(clip)}), print)
    assert not any((tmp_path / name / "run.json").exists() for name in ("none", "large"))
    assert TrainingRecord.model_validate(json.loads((output / TRAINING).read_bytes())) == record
    assert torch.isfinite(projection.weight).all()
