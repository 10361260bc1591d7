"""The long presets, scaled down, from an encoder's weights: their rates, and the same weights after ten kills."""

import json
import random
import re
from pathlib import Path

import pytest

from segmint.catalogs.lineage import TRAINING
from segmint.infra.assets.cache import sha256_of
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.model.sam import load
from segmint.model.sam.load import inspect_checkpoint
from segmint.pipeline.engine.train.run import begin_with_encoder, find_encoder, run_train
from segmint.pipeline.engine.train.settings import TrainConfig, identity_keys, load_train_config
from tests.support.tiny_vit import TINY, mae, saved

STEPS = 15


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "VIT_SHAPES", {"vit_b": TINY})


def config_of(folder: Path, dataset: Path, output: Path, **keys: object) -> TrainConfig:
    values = {
        "datasets": [{"uri": str(dataset), "masks": "human"}],
        "output": str(output),
        "encoder_weights": str(saved(folder, {"model": mae()})),
        "preset": "mask-making",
        "steps": STEPS,
        "batch": {"images": 1, "masks": 1, "masks_per_image": 1},
        "losses": {"resolution": 256},
        "held_out": {"share": 0.1, "every": 5},
        "overlays": {"every": 0},
        "checkpoints": {"every": 1},
        "resources": {"threads": 1, "device": "cpu"},
        **keys,
    }
    path = folder / "train.yaml"
    path.write_text(json.dumps(values))
    return load_train_config(str(path))


class KilledError(Exception):
    """The run ends in the middle of a step."""


@pytest.mark.long
def test_a_run_killed_ten_times_has_the_weights_of_the_unbroken_one(trainable: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    whole = run_train(config_of(tmp_path, trainable, tmp_path / "whole"), lines.append).record
    rates = [float(found[1]) for line in lines if (found := re.search(r"rate ([0-9.e-]+)", line))]
    assert rates == [8e-4] * 10 + [8e-5] * 4 + [8e-6]  # all steps were taken, with a decay after 2/3 and 0.96 of them
    assert inspect_checkpoint(tmp_path / "whole" / whole.file) == ("vit_b", 3)
    assert whole.config["jitter"] == [0.1, 2.0]

    broken = config_of(tmp_path, trainable, tmp_path / "broken")
    generator = random.Random(5)
    printed: list[str] = []
    for _ in range(10):
        left = generator.randint(1, 4)

        def say(line: str) -> None:
            nonlocal left
            printed.append(line)
            left -= line.startswith("step ")
            if not left:
                raise KilledError

        with pytest.raises(KilledError):
            run_train(broken, say)
        if "step 13/15" in " ".join(printed):
            break
    again = run_train(broken, printed.append).record
    losses = {line.partition(",")[0] for line in lines if line.startswith("step ")}
    assert losses == {line.partition(",")[0] for line in printed if line.startswith("step ")}
    assert again.weights == whole.weights
    assert again.evaluations == whole.evaluations


def test_a_run_names_its_encoder_by_its_hash(tmp_path: Path) -> None:
    """Another machine may have the file elsewhere, and the record is published with the weights."""
    storage, output = Storage(), Location(Storage(), str(tmp_path / "run"))
    keys = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        config, encoder, _ = find_encoder(config_of(tmp_path / name, tmp_path, tmp_path / "run"), storage)
        config, weights = begin_with_encoder(config, encoder, output, storage)
        keys.append({**identity_keys(config), "weights": sha256_of(weights)})
    assert keys[0] == keys[1]
    assert keys[0]["encoder_weights"] == sha256_of(encoder)


def test_an_encoder_is_refused_beside_weights_or_if_frozen(trainable: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="weights and encoder_weights are both set"):
        run_train(config_of(tmp_path, trainable, tmp_path / "run", weights="mobile_sam"), print)
    with pytest.raises(UsageError, match="encoder_weights needs encoder: trained"):
        run_train(config_of(tmp_path, trainable, tmp_path / "run", encoder="frozen", jitter=None), print)
    assert not (tmp_path / "run" / TRAINING).exists()
