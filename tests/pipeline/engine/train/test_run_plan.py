"""A dry run of training: its schedule and cost, what it refuses, and that nothing is written."""

import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from segmint.infra.errors import UsageError
from segmint.infra.wording import number
from segmint.model.sam import load
from segmint.model.sam.load import Architecture
from segmint.model.training.recipe import Recipe
from segmint.model.training.step import TrainingCost, training_cost
from segmint.pipeline.engine.train import run
from segmint.pipeline.engine.train.run import TrainPlan, TrainPlanOptions, plan_train
from tests.pipeline.engine.train.test_settings_presets import config_of
from tests.support.tiny_vit import TINY


@cache
def count_once(architecture: Architecture, decoder_layers: int, recipe: Recipe, recompute: bool) -> TrainingCost:
    """Count the cost of a recipe once for all tests: seconds for each."""
    return training_cost(architecture, decoder_layers, recipe, recompute)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "VIT_SHAPES", {"vit_b": TINY})
    monkeypatch.setattr(
        run,
        "training_cost",
        # The cost is that of an image and of a mask, however many there are.
        lambda architecture, layers, recipe, recompute: count_once(
            architecture, layers, replace(recipe, batch_images=1), recompute
        ),
    )


def planned(folder: Path, dataset: Path, options: TrainPlanOptions, **keys: Any) -> TrainPlan:
    keys = {"preset": "paper", "sampling": {"clicks": 1}, "steps": 180_000, "batch": {}, **keys}
    return plan_train(config_of(folder, dataset, folder / "run", **keys), options)


def test_a_dry_run_prints_the_schedule_and_the_cost_and_writes_nothing(trainable: Path, tmp_path: Path) -> None:
    # Other processes train on the shared dataset, which notes their outputs.
    dataset = Path(shutil.copytree(trainable, tmp_path / "dataset"))
    before = sorted((path, path.stat().st_mtime_ns) for path in dataset.rglob("*"))
    plan = planned(tmp_path, dataset, TrainPlanOptions(gpus=128, flops=1e15, price=2.5, share=0.4))
    lines = plan.lines()
    assert lines[1] == (
        "schedule: 180,000 steps of 128 images with up to 8,192 masks; rate 0.0008 after 250 steps of warm-up, "
        "divided by 10 at steps 120,000 and 173,332"
    )
    flop = 180_000 * (128 * plan.cost.image_flop + 8192 * plan.cost.mask_flop)
    assert plan.device_hours == pytest.approx(flop / 4e14 / 3600)
    assert f"{number(plan.device_hours)} GPU-hours, at 40% of 1e+15 FLOP/s each" in lines[4]
    assert " of tensors, of which " in lines[3]
    assert lines[5] == f"cost: {number(2.5 * plan.device_hours)} at 2.5 per GPU-hour"
    assert lines[-2].startswith("the process itself, evaluations, ")
    assert lines[-1] == "Nothing was changed."
    assert plan.to_dict()["activation_bytes"] == plan.cost.image_bytes + 64 * plan.cost.mask_bytes
    assert not (tmp_path / "run").exists()
    assert before == sorted((path, path.stat().st_mtime_ns) for path in dataset.rglob("*"))


def test_few_images_have_few_masks_and_an_uneven_share_makes_gpus_wait(trainable: Path, tmp_path: Path) -> None:
    plan = planned(tmp_path, trainable, TrainPlanOptions(gpus=5, flops=1e15, share=1), batch={"images": 8})
    assert plan.config.batch.masks == 8192  # the preset's, of which eight images have at most 64 each
    assert "180,000 steps of 8 images with up to 512 masks" in plan.lines()[1]
    assert plan.step_flop == 8 * plan.cost.image_flop + 512 * plan.cost.mask_flop
    assert plan.device_hours == pytest.approx(180_000 * plan.step_flop * 10 / 8 / 1e15 / 3600)  # 2 images on 4 of 5


def test_without_a_share_the_time_is_unknown(trainable: Path, tmp_path: Path) -> None:
    plan = planned(tmp_path, trainable, TrainPlanOptions(gpus=2, flops=1e15, price=3))
    assert plan.device_hours is None
    assert plan.to_dict()["cost"] is None
    assert "time: unknown without --share, because no training has been timed" in plan.lines()
    assert "cost: unknown at 3 per GPU-hour" in plan.lines()


@pytest.mark.usefixtures("weights")
def test_embeddings_of_a_frozen_encoder_count(trainable: Path, tmp_path: Path) -> None:
    frozen = {"encoder_weights": None, "preset": "finetune", "steps": 130, "batch": {"images": 2}}
    options = TrainPlanOptions(gpus=1, flops=1e15, share=1)
    plan, uncached = (planned(tmp_path, trainable, options, cache={"gb": gb}, **frozen) for gb in (1, 0))
    assert (plan.embedded, uncached.embedded) == (12, 260)
    flop = 130 * plan.step_flop + 260 * plan.cost.encode_flop
    assert uncached.device_hours == pytest.approx(flop / 1e15 / 3600)
    assert uncached.device_hours > plan.device_hours
    assert uncached.lines()[2].endswith(f"{260 * plan.cost.encode_flop:.3g} FLOP for embeddings")


def test_what_a_dry_run_refuses(trainable: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--gpus is 129 for 128 images per step"):
        planned(tmp_path, trainable, TrainPlanOptions(gpus=129, flops=1e15))
    with pytest.raises(UsageError, match="jitter needs encoder: trained"):
        planned(tmp_path, trainable, TrainPlanOptions(), encoder="frozen", jitter=[0.5, 1.0])
    with pytest.raises(UsageError, match="--gpus needs --flops"):
        TrainPlanOptions(gpus=8)
    with pytest.raises(UsageError, match=r"--share is 1\.5: expected a share above 0 and at most 1"):
        TrainPlanOptions(share=1.5)
