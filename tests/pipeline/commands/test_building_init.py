"""`segmint init`: a file that is a configuration, and never one that was there."""

from pathlib import Path

from typer.testing import CliRunner

from segmint.pipeline.commands.cli import app
from segmint.pipeline.config.config import load_config


def test_it_writes_once_and_refuses_what_is_wrong(tmp_path: Path) -> None:
    file, other = tmp_path / "build.yaml", tmp_path / "other.yaml"
    run = CliRunner().invoke
    made = run(app, ["init", str(file), "--name", "street", "--license", "CC0-1.0"])
    assert made.exit_code == 0, made.output
    assert f"written to {file}" in made.stdout
    assert f"segmint plan {file}" in made.stderr
    assert load_config(str(file)).name == "street"

    again = run(app, ["init", str(file), "--name", "other"])
    assert again.exit_code == 2
    assert "exists and is not overwritten" in again.stderr
    assert load_config(str(file)).name == "street"

    wrong = run(app, ["init", str(other), "--license", "free"])
    assert wrong.exit_code == 2
    assert "license.allow" in wrong.stderr
    assert not other.exists()
    nowhere = run(app, ["init", str(tmp_path / "no" / "build.yaml")])
    assert nowhere.exit_code == 2
    assert "cannot be written" in nowhere.stderr
