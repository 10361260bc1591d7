"""Plants one-line faults, one at a time, in a copy of the project, and names the test that catches each.

    make mutants [MUTANTS="nms rle"]

A mutant that no test catches survives, and the run fails. The tests named beside each fault are those that mirror the
file it is in: they alone must catch it.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.build_mutants import BUILD_MUTANTS
from tests.support.copies_mutants import COPIES_MUTANTS
from tests.support.custom_mutants import CUSTOM_MUTANTS
from tests.support.dataset_mutants import DATASET_MUTANTS
from tests.support.level_mutants import LEVEL_MUTANTS
from tests.support.masks_mutants import MASKS_MUTANTS
from tests.support.mutant import Mutant
from tests.support.page_mutants import PAGE_MUTANTS
from tests.support.reading_mutants import READING_MUTANTS
from tests.support.redaction_mutants import REDACTION_MUTANTS
from tests.support.segment_mutants import SEGMENT_MUTANTS
from tests.support.submission_mutants import ANSWER_MUTANTS

ROOT = Path(__file__).resolve().parents[1]

MUTANTS = (
    *BUILD_MUTANTS,
    *SEGMENT_MUTANTS,
    *DATASET_MUTANTS,
    *REDACTION_MUTANTS,
    *READING_MUTANTS,
    *PAGE_MUTANTS,
    *ANSWER_MUTANTS,
    *MASKS_MUTANTS,
    *COPIES_MUTANTS,
    *LEVEL_MUTANTS,
    *CUSTOM_MUTANTS,
)


def main() -> int:
    """Runs the mutants whose names contain one of the words given, or all; 1 when one survives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="run only mutants whose name contains one of these")
    words = parser.parse_args().words
    chosen = [mutant for mutant in MUTANTS if not words or any(word in mutant.name for word in words)]
    survivors = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder) / "project"
        ignored = shutil.ignore_patterns(".git", ".venv", "demo", "__pycache__", ".*_cache", "*.egg-info")
        shutil.copytree(ROOT, copy, symlinks=True, ignore=ignored)
        for mutant in chosen:
            started = time.monotonic()
            caught_by = run(mutant, copy)
            verdict = caught_by or "SURVIVED"
            print(f"{mutant.name:<34} {time.monotonic() - started:6.1f} s  {verdict}", flush=True)
            if not caught_by:
                survivors.append(mutant.name)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants were caught")
    if survivors:
        print("survivors: " + ", ".join(survivors))
    return 1 if survivors else 0


def run(mutant: Mutant, copy: Path) -> str:
    """The first test that fails with the mutant planted; empty when none does."""
    path = copy / mutant.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        raise SystemExit(
            f"{mutant.name}: {mutant.old!r} stands {text.count(mutant.old)} times in {mutant.file}, not once"
        )
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-x",
                "-q",
                "--no-header",
                "-m",
                "not long and not cuda",
                "-p",
                "no:cacheprovider",
                *mutant.tests.split(),
            ],
            cwd=copy,
            env={
                **os.environ,
                "PYTHONPATH": str(copy),
                "PYTHONDONTWRITEBYTECODE": "1",
                "HYPOTHESIS_PROFILE": "default",
            },
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
    finally:
        path.write_text(text, encoding="utf-8")
    if done.returncode == 0:
        return ""
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if done.returncode != 1 or not failed or failed[0].startswith("ERROR"):
        raise SystemExit(f"{mutant.name}: the tests did not run:\n{done.stdout[-3000:]}{done.stderr[-2000:]}")
    return failed[0].removeprefix("FAILED ").split(" - ")[0]


if __name__ == "__main__":
    sys.exit(main())
