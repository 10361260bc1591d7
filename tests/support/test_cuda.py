"""The tests marked `cuda` need few of segmint's packages: those of a GPU machine, and those that are taken there."""

import os
import re
import subprocess
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, files, requires
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from benchmarks.gpu.bundle import ON_MACHINE, WHEELS

ROOT = Path(__file__).resolve().parents[2]
THERE = {canonicalize_name(name) for name in (*ON_MACHINE, *WHEELS, "fsspec", "psutil", "PyYAML", "setuptools")}
"""Packages of a GPU machine, with torch's fsspec, and those of the bundle."""


def top_names(distribution: str) -> set[str]:
    try:
        found = files(distribution) or ()
    except PackageNotFoundError:  # of an extra that is not installed
        return set()
    return {file.parts[0] for file in found}


@pytest.mark.long
def test_they_are_collected_without_other_packages_and_skipped_without_a_gpu(tmp_path: Path) -> None:
    wanted = {canonicalize_name(re.split(r"[^\w.-]", line)[0]) for line in requires("segmint") or ()}
    hidden = {name for package in wanted - THERE - {"segmint"} for name in top_names(package)}
    assert {"ray", "s3fs", "skimage", "duckdb", "pooch"} <= hidden
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if path.name not in hidden:
            (tmp_path / path.name).symlink_to(path)

    # Without site, what is installed is what the folder has.
    command = [sys.executable, "-S", "-m", "pytest", "-m", "cuda", "-q", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_ADDOPTS", "SEGMINT_TEST_NO_SKIPS"):
        environment.pop(name, None)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)

    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    summary = done.stdout.strip().splitlines()[-1]
    assert re.fullmatch(r"\d\d+ skipped, \d+ deselected in .*", summary)
