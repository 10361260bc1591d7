"""The comparison with the reference package on a GPU, at reduced sizes on a CPU, and the summary of its sides."""

import argparse
import gc
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.gpu import against_reference, both, bundle
from benchmarks.gpu.against_reference import Comparison, Side, measure_side, measure_sides, prepare_comparison, summary
from benchmarks.gpu.run import PartRun
from segmint.model.automatic.rle import encode
from segmint.model.sam.load import build_sam

CPU = torch.device("cpu")


@pytest.fixture
def bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: None) -> None:
    """A bundle of its own with scikit-image's photographs only, for files of tests that run beside each other."""
    monkeypatch.delenv("SEGMINT_TEST_PHOTOS", raising=False)
    folder = tmp_path / "bundle"
    (folder / "photos").mkdir(parents=True)
    bundle.copy_weights(folder)
    bundle.copy_photographs(folder)
    monkeypatch.setattr(both, "BUNDLE", folder)


def rectangle(height: int) -> dict[str, Any]:
    """A mask of 100 x `height` pixels in COCO's compressed form."""
    mask = np.zeros((100, 100), dtype=np.bool_)
    mask[:height] = True
    return {"size": [100, 100], "counts": encode(mask).counts}


def small_run(folder: Path) -> PartRun:
    sizes = replace(against_reference.QUICK_SIZES, points_per_side=2, photographs=1)
    return PartRun(CPU, sizes, folder / "result.json", 500.0)


@pytest.mark.long
@pytest.mark.usefixtures("bundled", "one_thread")
def test_segmint_finds_all_masks_of_the_package_on_three_photographs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fewer = replace(against_reference.QUICK_SIZES, points_per_side=4)
    monkeypatch.setattr(against_reference, "QUICK_SIZES", fewer)
    run = against_reference.run_sides(CPU, True, 500.0, tmp_path)
    written = json.loads((tmp_path / "gpu_against_reference-cpu-quick.json").read_text())
    assert written["measurements"] == json.loads(json.dumps(run.found))
    assert written["verdict"] == "passed", run.found
    assert written["settings"]["encoder"] == "vit_h"
    assert written["settings"]["photographs"].keys() == {"astronaut", "chelsea", "coffee"}
    shipped, segmint = run.found["as shipped"], run.found["segmint fp32"]
    assert segmint["masks"] == shipped["masks"] >= 30
    assert segmint["agreement"]["matched"]["0.99"] == segmint["agreement"]["reference"] == shipped["masks"]
    assert segmint["same"]
    assert segmint["ratio to as shipped"]["median"] > 0
    for name in ("tuned", "autocast", "segmint bf16"):
        assert run.found[name]["skipped"] == "not on a CPU"


@pytest.mark.long
@pytest.mark.usefixtures("bundled", "one_thread")
def test_the_package_runs_in_bfloat16_and_finds_most_masks(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    comparison = prepare_comparison(run)
    sides: dict[str, Callable[..., Side]] = {
        "as shipped": against_reference.reference_as_shipped,
        "tuned": against_reference.reference_tuned,
        "autocast": against_reference.reference_autocast,
    }
    for name, make in sides.items():
        run.measure(name, measure_side, comparison, name, make)
    assert not run.failures(), run.found
    assert run.found["as shipped"]["masks"] > 5
    for name in ("tuned", "autocast"):
        found = run.found[name]["agreement"]
        assert found["matched"]["0.9"] >= 0.8 * found["reference"]
        assert found["least_iou"] < 1, "it computes in bfloat16"
    assert run.found["autocast"]["ratio to tuned"]["median"] > 0


@pytest.mark.long
@pytest.mark.usefixtures("bundled", "one_thread")
def test_with_a_checkpoint_both_packages_run_its_encoder_and_decoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    checkpoint = tmp_path / "vit_b.pth"
    torch.save(build_sam("vit_b").state_dict(), checkpoint)
    run = small_run(tmp_path)
    comparison = prepare_comparison(run, checkpoint)
    # With random weights, no mask would pass.
    comparison.settings = replace(comparison.settings, pred_iou_thresh=0.0, stability_score_thresh=0.0)
    found = against_reference.describe(run, comparison)
    assert (found["encoder"], found["weights"], len(found["sha256"])) == ("vit_b", "vit_b.pth", 64)
    run.measure("as shipped", measure_side, comparison, "as shipped", against_reference.reference_as_shipped)
    run.measure("segmint fp32", measure_side, comparison, "segmint fp32", against_reference.segmint_fp32)
    assert not run.failures(), run.found
    agreement = run.found["segmint fp32"]["agreement"]
    assert agreement["matched"]["0.99"] == agreement["reference"] > 0
    measured = run.found["as shipped"]["masks"]

    comparison.checkpoint = None
    run.measure("stand-in", measure_side, comparison, "stand-in", against_reference.segmint_fp32)
    assert run.found["stand-in"]["agreement"]["matched"]["0.9"] < measured, "another model has other masks"


def test_a_checkpoint_that_the_package_cannot_load_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    mobile = tmp_path / "mobile_sam.pt"
    torch.save(build_sam("mobile_sam").state_dict(), mobile)
    (tmp_path / "text.pth").write_text("no weights")
    for name, message in {
        "mobile_sam.pt": "contains mobile_sam: expected one of vit_b, vit_l, vit_h",
        "text.pth": "is not a PyTorch checkpoint",
        "missing.pth": "No such file",
    }.items():
        with pytest.raises(SystemExit) as ended:
            against_reference.check_checkpoint(parser, tmp_path / name)
        assert ended.value.code == 2
        assert message in capsys.readouterr().err


def test_a_summary_has_ratios_by_photograph_and_round_and_counts_the_matched_masks() -> None:
    comparison = Comparison({"dog": None, "truck": None}, None)
    comparison.seconds = {
        "as shipped": {"dog": [8.0, 10.0], "truck": [20.0, 40.0]},
        "tuned": {"dog": [2.0, 4.0], "truck": [10.0]},
        "segmint bf16": {"dog": [1.0, 1.0], "truck": [2.0, 4.0]},
    }
    comparison.masks = {
        "as shipped": {"dog": [rectangle(50), rectangle(20)], "truck": [rectangle(100)]},
        "tuned": {"dog": [rectangle(50)], "truck": []},
        "segmint bf16": {"dog": [rectangle(48), rectangle(20)], "truck": [rectangle(100), rectangle(7)]},
    }
    found = summary(comparison, "segmint bf16")
    assert (found["median_s"], found["least_s"], found["most_s"], found["images_s"]) == (1.5, 1.0, 4.0, 1 / 1.5)
    assert found["ratio to as shipped"] == {"median": 10.0, "least": 8.0, "most": 10.0}
    assert found["ratio to tuned"] == {"median": 4.0, "least": 2.0, "most": 5.0}
    assert found["masks"] == 4
    agreement = found["agreement"]
    assert (agreement["reference"], agreement["least_iou"]) == (3, 0.96)
    assert agreement["matched"] == {"0.99": 2, "0.95": 3, "0.9": 3}
    assert summary(comparison, "tuned")["agreement"]["matched"]["0.9"] == 1
    assert not {"agreement", "ratio to as shipped"} & summary(comparison, "as shipped").keys()


def test_a_missed_mask_fails_and_a_side_that_fails_is_recorded_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files: list[set[str]] = []
    run = small_run(tmp_path)

    def side(*heights: int) -> Callable[..., Side]:
        def make(_: PartRun, __: Comparison) -> Side:
            files.append(set(json.loads(run.output.read_text())["measurements"]))
            return Side(lambda _: None, lambda _: [rectangle(height) for height in heights], lambda masks: masks)

        return make

    def failing(_: PartRun, __: Comparison) -> Side:
        raise TypeError("Got unsupported ScalarType BFloat16")

    monkeypatch.setattr(gc, "collect", lambda: 0)  # sides without a model leave nothing behind
    monkeypatch.setattr(PartRun, "need_cuda", lambda _: None)
    monkeypatch.setattr(against_reference, "reference_as_shipped", side(50, 20))
    monkeypatch.setattr(against_reference, "reference_tuned", failing)
    for name in ("reference_autocast", "segmint_bf16"):
        monkeypatch.setattr(against_reference, name, side(50, 19))
    monkeypatch.setattr(against_reference, "segmint_fp32", side(50, 19))
    measure_sides(run, Comparison({"dog": None}, None))
    assert run.failures() == ["tuned", "segmint fp32"]
    assert "BFloat16" in run.found["tuned"]["failed"]
    assert run.found["segmint bf16"]["agreement"]["matched"] == {"0.99": 1, "0.95": 2, "0.9": 2}
    assert "ratio to tuned" not in run.found["segmint bf16"]
    assert [len(names) for names in files] == [1, 3, 4, 5], "the file has all sides so far"

    monkeypatch.setattr(against_reference, "segmint_fp32", side(50, 20))
    measure_sides(run, Comparison({"dog": None}, None))
    assert run.failures() == ["tuned"]
    assert json.loads(run.output.read_text())["measurements"]["segmint fp32"]["same"]
