"""The long presets, scaled down, from an encoder's weights: their rates, and the same losses after ten kills."""

import json
import multiprocessing
import random
import signal
import tempfile
import time
from pathlib import Path

import pytest

from segmint.catalogs.lineage import TRAINING
from segmint.infra.assets import sha256_of
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.model.sam import load
from segmint.model.sam.load import inspect_checkpoint
from segmint.pipeline.engine.train.record import TrainingRecord
from segmint.pipeline.engine.train.run import begin_with_encoder, find_encoder, run_train
from segmint.pipeline.engine.train.session import RunLog
from segmint.pipeline.engine.train.settings import TrainConfig, identity_keys, load_train_config
from segmint.pipeline.engine.train.trainer import StepResult
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
        "checkpoints": {"every": 1},
        "resources": {"threads": 1, "device": "cpu"},
        **keys,
    }
    path = folder / "train.yaml"
    path.write_text(json.dumps(values))
    return load_train_config(str(path))


def train(folder: Path) -> None:
    """Run the configuration in a folder, and append the exact losses of each step to a file in it."""
    load.VIT_SHAPES = {"vit_b": TINY}  # this process is another one than the test's
    tempfile.tempdir = str(folder)
    log_step = RunLog.step

    def noted(log: RunLog, result: StepResult, steps: int) -> None:
        log_step(log, result, steps)
        exact = [each.hex() for each in (result.loss, result.focal, result.dice, result.iou_error, result.gradient)]
        with (folder / "losses").open("a") as file:
            file.write(f"{result.step} {result.rate:.1e} {' '.join(exact)}\n")

    RunLog.step = noted
    run_train(load_train_config(str(folder / "train.yaml")), print)


@pytest.mark.long
@pytest.mark.parametrize(("preset", "layers"), [("paper", 2), ("mask-making", 3)])
def test_a_run_killed_ten_times_has_the_losses_of_the_unbroken_one(
    trainable: Path, tmp_path: Path, preset: str, layers: int
) -> None:
    """The encoder is trained with jitter, and SIGKILL comes at random while a run starts, takes a step, or saves it."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__])
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
        config_of(folder, trainable, folder / "run", preset=preset, jitter=[0.1, 2.0], sampling={"clicks": 1})

    def lines(folder: Path) -> list[str]:
        return (folder / "losses").read_text().splitlines() if (folder / "losses").exists() else []

    def finish(folder: Path) -> None:
        process = processes.Process(target=train, args=(folder,))
        process.start()
        process.join()
        assert process.exitcode == 0

    began = time.monotonic()
    finish(whole)
    pace = (time.monotonic() - began) / STEPS
    expected = lines(whole)
    rates = [float(line.split()[1]) for line in expected]
    assert rates == [8e-4] * 10 + [8e-5] * 4 + [8e-6]  # all steps were taken, with a decay after 2/3 and 0.96 of them

    generator = random.Random(5)
    for number in range(10):
        before = lines(broken)
        process = processes.Process(target=train, args=(broken,))
        process.start()
        while number % 3 and lines(broken) == before and process.is_alive():
            time.sleep(0.01)
        if len(set(lines(broken))) < STEPS - 2:  # else it might come after the end
            time.sleep(generator.uniform(0, pace))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert not (broken / "run" / TRAINING).exists()
    finish(broken)
    assert list(dict.fromkeys(lines(broken))) == expected  # also of the steps that were taken again
    one, again = (
        TrainingRecord.model_validate_json((each / "run" / TRAINING).read_bytes()) for each in (whole, broken)
    )
    assert again.weights == one.weights
    assert again.evaluations == one.evaluations
    assert inspect_checkpoint(whole / "run" / one.file) == ("vit_b", layers)
    assert one.config["jitter"] == [0.1, 2.0]


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
