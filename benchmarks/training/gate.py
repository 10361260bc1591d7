"""Verdict of `segmint evaluate points --gate` on trained weights, from the command itself."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

CLICKS = "1,3"
PASSES, REFUSES, UNCHECKED = 0, 1, 3
"""Exit codes of `--require better`. `UNCHECKED` means that a guard set or some images couldn't be judged."""


def gate(folder: Path, old: str, new: Path, truths: Sequence[str], guard: str, threads: int) -> dict[str, Any]:
    """Evaluate whether the weights `new` may replace `old`. Return the verdict with its reasons and intervals.

    `truths` are datasets in a folder. They include the datasets that were trained on, because images that are similar
    to these don't count. `guard` is the dataset of ordinary photographs.
    """
    command = [sys.executable, "-m", "segmint", "evaluate", "points", *truths, "--weights", old, "--weights", str(new)]
    command += ["--guard", guard, "--require", "better", "--clicks", CLICKS, "--device", "cpu", "--no-ray", "--json"]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode not in (PASSES, REFUSES, UNCHECKED) or not done.stdout:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
    return summary(json.loads(done.stdout)["gate"], done.returncode)


def summary(found: dict[str, Any], code: int) -> dict[str, Any]:
    """Extract the part of a gate's result to record. Only the exit code `PASSES` passes."""
    if found["passes"] is not (code == PASSES) and code != UNCHECKED:
        raise SystemExit(f"the gate says passes: {found['passes']}, and the command ended with {code}")
    return {
        "verdict": found["verdict"],
        "passes": code == PASSES,
        "reasons": found["reasons"],
        "independent": found["independent"],
        "guards": found["guards"],
        "skipped": {each["name"]: each["trained"] for each in [*found["images"], *found["guard_images"]]},
    }
