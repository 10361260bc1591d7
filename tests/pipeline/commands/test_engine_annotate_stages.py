"""The stages of `segmint annotate`: options that mean nothing in a stage are refused before anything is read."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from segmint.pipeline.commands.cli import app


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--masks", "10"], "--masks can't be used with --stage assisted"),
        (["--prefill", "detector:x.pt"], "--prefill can't be used with --stage assisted"),
        (["--stage", "semi", "--seed", "1"], "--seed can't be used with --stage semi"),
        (["--stage", "rate", "--overlap", "0.1"], "--overlap can't be used with --stage rate"),
        (["--stage", "rate", "--study", "s", "--seed", "1"], "--study sets the masks to rate: remove --masks, --seed"),
        (
            ["--stage", "rate", "--order", "fewest", "--weights", "vit_b"],
            "--order, --weights can't be used with --stage rate",
        ),
        (["--stage", "semi", "--prefill", "x.pt"], "--prefill 'x.pt': expected detector:PATH"),
        (["--stage", "semi", "--prefill", "detector:"], "--prefill 'detector:': expected detector:PATH"),
    ],
)
def test_options_of_other_stages_are_refused(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["annotate", str(tmp_path), *arguments])
    assert done.exit_code == 2
    assert said in done.stderr
