"""The stages of `segmint annotate`: options that mean nothing in a stage are refused before anything is read."""

import pytest
from typer.testing import CliRunner

from segmint.pipeline.commands.cli import app


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--masks", "10"], "--stage assisted takes no --masks: leave it out"),
        (["--prefill", "detector:x.pt"], "--stage assisted takes no --prefill: leave it out"),
        (["--stage", "semi", "--seed", "1"], "--stage semi takes no --seed: leave it out"),
        (["--stage", "rate", "--overlap", "0.1"], "--stage rate takes no --overlap: leave it out"),
        (["--stage", "rate", "--order", "fewest", "--weights", "vit_b"], "takes no --order, --weights: leave it out"),
        (["--stage", "semi", "--prefill", "x.pt"], "--prefill 'x.pt': expected detector:PATH"),
        (["--stage", "semi", "--prefill", "detector:"], "--prefill 'detector:': expected detector:PATH"),
    ],
)
def test_options_of_other_stages_are_refused(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["annotate", "nowhere", *arguments])
    assert done.exit_code == 2
    assert said in done.stderr
