"""`segmint train` as a user calls it: a wrong configuration ends it before anything starts."""

from pathlib import Path

import pytest

from tests.support.builds import segmint_here


@pytest.mark.usefixtures("weights")
def test_a_wrong_configuration_ends_the_command_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text("datasets: [{uri: nowhere}]\noutput: out\nstep: 3\n")
    printed = segmint_here("train", path, check=2)
    assert "train.yaml:3: step is not a configuration key: did you mean steps?" in printed
    path.write_text(f"datasets: [{{uri: {tmp_path}/nowhere}}]\noutput: {tmp_path}/out\n")
    assert "nowhere is not a segmint dataset" in segmint_here("train", path, check=2)
    assert not (tmp_path / "out").exists()
    printed = segmint_here("train", path, "--gpus", "2", check=2)
    assert "--gpus, --flops, --price, and --share only have an effect with --dry-run" in printed
