"""The benchmark beside the reference package, on a grid of 4 x 4 points: it runs, and both sides agree."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.masks.generator_vs_reference import AVX2, TORCH_AVX2, agreement, compared
from segmint.model.automatic.rle import encode

ROOT = Path(__file__).resolve().parents[3]


def rectangle(height: int) -> dict[str, Any]:
    """A mask of 100 x `height` pixels in COCO's compressed form."""
    mask = np.zeros((100, 100), dtype=np.bool_)
    mask[:height] = True
    return {"size": [100, 100], "counts": encode(mask).counts}


def measured(seconds: float, peak_mib: int, *heights: int) -> dict[str, Any]:
    masks = [rectangle(height) for height in heights]
    return {"seconds": seconds, "setup_s": 1.0, "peak_mib": peak_mib, "masks": masks, "size": [100, 100]}


def test_agreement_counts_the_references_masks_that_are_found() -> None:
    reference = [rectangle(height) for height in (100, 97, 50, 20)]
    found = agreement([rectangle(height) for height in (50, 91, 100)], reference)
    assert found == {"masks": 3, "matched": {"0.99": 2, "0.95": 3, "0.9": 3}, "least_iou": 0.4}


def test_without_masks_on_either_side_nothing_is_found() -> None:
    assert agreement([], [rectangle(5)]) == {"masks": 0, "matched": {"0.99": 0, "0.95": 0, "0.9": 0}, "least_iou": 0.0}
    assert agreement([rectangle(5)], [])["least_iou"] == 1.0


def test_a_row_has_medians_of_seconds_and_of_ratios_the_largest_memory_and_the_worst_agreement() -> None:
    rounds = [
        {"fp32": measured(2, 900, 60, 30), "torch": measured(4, 900, 60, 31), "reference": measured(10, 1000, 60, 30)},
        {"fp32": measured(1, 950, 60), "torch": measured(3, 900, 60), "reference": measured(20, 1200, 60, 30)},
        {"fp32": measured(4, 800, 60, 30), "torch": measured(4, 900, 60, 30), "reference": measured(12, 1100, 60, 30)},
    ]
    row = compared("photo", rounds, ["fp32"])
    assert row["reference"] == {"seconds": 12, "setup_s": 1.0, "peak_mib": 1200, "masks": 2}
    ours = row["ours"]["fp32"]
    assert (ours["seconds"], ours["peak_mib"]) == (2, 950)
    assert ours["ratio"] == {"median": 5.0, "least": 3.0, "most": 20.0}
    assert ours["ratio_to_torch"] == {"median": 2.0, "least": 1.0, "most": 3.0}
    assert (ours["same_as_torch"], row["torch"]["seconds"], row["torch"]["masks"]) == (1, 4, 2)
    assert (ours["masks"], ours["matched"]["0.9"], ours["least_iou"]) == (1, 1, 0.5)
    assert [one["fp32"]["seconds"] for one in row["rounds"]] == [2, 1, 4]


@pytest.mark.long
def test_both_sides_are_measured_in_every_round(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    options = ["--only=coffee", "--crops=1", "--rounds=2", "--threads=1"]
    script = ROOT / "benchmarks" / "masks" / "generator_vs_reference.py"
    subprocess.run([sys.executable, script, *options, "--points-per-side=4", f"--output={output}"], check=True)
    result = json.loads(output.read_text())
    (row,) = result["photographs"]
    assert result["settings"]["crop_n_points_downscale_factor"] == 2
    assert (row["height"], row["width"]) == (400, 600)
    first, second = ([side for side in each if side not in (AVX2, TORCH_AVX2)] for each in row["rounds"])
    assert (first, second) == (["fp32", "torch", "reference"], ["reference", "torch", "fp32"])
    fp32 = row["ours"]["fp32"]
    assert fp32["masks"] == fp32["matched"]["0.99"] == row["reference"]["masks"] > 0
    assert fp32["same_as_torch"] == fp32["masks"]
    for side in (fp32, row["torch"], row["reference"]):
        assert min(side["seconds"], side["setup_s"]) > 0
        assert side["peak_mib"] > 300
