"""What is changed from the command line, and what the rounds come to."""

import json
from pathlib import Path

import pytest

from benchmarks.training.textures import Trial, changed, described, gains, printed_rounds


def test_keys_of_the_trial_and_its_recipe_can_be_changed() -> None:
    values = {"replay": "0.25", "steps": "30", "decay_steps": "[20]", "iou_supervision": "all", "clicks": "2"}
    trial = changed(Trial(), values)
    assert (trial.replay, trial.recipe.steps, trial.recipe.decay_steps) == (0.25, 30, (20,))
    assert (trial.recipe.losses.iou_supervision, trial.recipe.sampling.clicks) == ("all", 2)
    with pytest.raises(TypeError, match="stepps"):
        changed(Trial(), {"stepps": "30"})


def test_gains_are_over_seeds_and_apart_for_shuffled_masks() -> None:
    def round_of(shuffled: bool, before: float, after: float) -> dict[str, object]:
        figures = ("one_click", "oracle_of_three", "three_clicks")
        return {
            "shuffled": shuffled,
            "before": {"guard": dict.fromkeys(figures, before)},
            "after": {"guard": dict.fromkeys(figures, after)},
        }

    found = gains([round_of(False, 0.5, 0.75), round_of(False, 0.5, 0.625), round_of(True, 0.5, 0.25)])
    assert found["trained"]["guard"]["one_click"] == {"mean": 0.1875, "least": 0.125, "most": 0.25}
    assert found["shuffled"]["guard"]["three_clicks"]["mean"] == -0.25


def test_rounds_of_a_run_that_did_not_end_are_taken_if_it_was_of_this_trial(tmp_path: Path) -> None:
    printed = tmp_path / "printed.txt"
    rounds = [{"seed": 0, "shuffled": shuffled, "seconds": 9} for shuffled in (False, True)]
    lines = [{"settings": described(Trial())}, *rounds]
    printed.write_text("\n".join([*map(json.dumps, lines), "{", '  "cut": 1']))
    assert printed_rounds([printed], described(Trial())) == {(0, False): rounds[0], (0, True): rounds[1]}
    with pytest.raises(SystemExit, match="same settings"):
        printed_rounds([printed], described(Trial(scenes=17)))
