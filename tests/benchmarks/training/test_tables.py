"""The trial's table has the figures of the result: changes, and spreads over seeds."""

import json
from typing import Any

from benchmarks.measuring import RESULTS
from benchmarks.page import read_results
from benchmarks.training.tables import trial_part
from benchmarks.training.textures import Trial, described, gains

SETS = ("held_out_scenes", "new_textures", "guard")
FIGURES = ("one_click", "oracle_of_three", "three_clicks")
MACHINE = {
    "cpu": "A CPU",
    "cores_usable": 2,
    "capability": "AVX2",
    "threads": 1,
    "load_average_before": 0.5,
    "torch": "2.15.0+cpu",
    "python": "3.11.7",
}


def measured(value: float) -> dict[str, Any]:
    return {name: dict.fromkeys(FIGURES, value) for name in SETS}


def a_round(seed: int, shuffled: bool, after: float) -> dict[str, Any]:
    figures = {"before": measured(0.5), "after": measured(after), "cpu_seconds": 512}
    return {"seed": seed, "shuffled": shuffled, **figures}


def test_the_table_has_each_round_and_the_spread() -> None:
    rounds = [a_round(0, False, 0.75), a_round(0, True, 0.25), a_round(1, False, 0.875)]
    result = {"date": "2026-01-02", "machine": MACHINE, "settings": described(Trial()), "rounds": rounds}
    made = trial_part({"textures": {**result, "gains": gains(rounds), "peak_mib": 2231}})
    lines, text = made.splitlines(), " ".join(made.splitlines())
    assert f"| 0 |{' 0.500 → 0.750 |' * 5} 512 |" in lines
    assert f"| 0 (control) |{' 0.500 → 0.250 |' * 5} 512 |" in lines
    assert f"| gain, 2 seeds |{' +0.312 (+0.250 to +0.375) |' * 5}  |" in lines
    assert f"| gain (control), 1 seed |{' -0.250 |' * 5}  |" in lines
    assert "48 scenes for 130 steps of 2 images with up to 2 masks each, at a learning rate of 0.0002." in text
    assert "the peak memory was 2,231 MiB. Measured on 2026-01-02 using 1 thread on 2 CPU cores (A CPU, AVX2)" in text


def test_without_a_result_there_is_no_table() -> None:
    assert trial_part({}) == ""


def test_the_recorded_trial_is_of_the_preset_and_only_true_masks_taught_anything() -> None:
    """A preset that changes needs another run of `make bench-training`."""
    recorded = read_results(RESULTS)["textures"]
    assert recorded["settings"] == json.loads(json.dumps(described(Trial())))
    gained = {kind: found["held_out_scenes"]["one_click"] for kind, found in recorded["gains"].items()}
    assert gained["trained"]["least"] > 0.3
    assert gained["shuffled"]["most"] < 0
