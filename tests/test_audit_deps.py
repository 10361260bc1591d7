"""`make audit-deps` says what is known to be vulnerable, and never passes where nobody could be asked."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
WHOLE: dict[str, Any] = {"name": "whole", "version": "1.0", "vulns": []}
BROKEN: dict[str, Any] = {
    "name": "broken",
    "version": "2.0",
    "vulns": [{"id": "PYSEC-2026-1", "fix_versions": ["2.1"], "aliases": ["CVE-2026-1"], "description": "…"}],
}
UNKNOWN: dict[str, Any] = {"name": "unknown", "skip_reason": "not in the database"}


def audited(folder: Path, says: str) -> subprocess.CompletedProcess[str]:
    """The script's answer to a tool that prints this, as pip-audit prints its JSON."""
    tool = folder / "tool"
    tool.write_text(f"#!{sys.executable}\nprint({says!r})\n")
    tool.chmod(0o755)
    return subprocess.run(
        [sys.executable, ROOT / ".ci" / "audit_deps.py", tool], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("dependencies", "code", "line"),
    [
        ([WHOLE], 0, "1 packages audited, 0 known"),
        ([WHOLE, BROKEN], 1, "broken 2.0: PYSEC-2026-1, CVE-2026-1; fixed in 2.1"),
        ([WHOLE, UNKNOWN], 0, "unknown: not audited: not in the database"),
        ([UNKNOWN], 2, "0 packages audited"),
        ([], 2, "0 packages audited"),
    ],
)
def test_an_answer_is_reported(tmp_path: Path, dependencies: list[dict[str, Any]], code: int, line: str) -> None:
    done = audited(tmp_path, json.dumps({"dependencies": dependencies, "fixes": []}))
    assert done.returncode == code
    assert line in done.stdout


@pytest.mark.parametrize("says", ["", "Traceback", "[]", '{"fixes": []}'])
def test_no_answer_is_a_failure(tmp_path: Path, says: str) -> None:
    done = audited(tmp_path, says)
    assert done.returncode == 2
    assert "nothing is known" in done.stdout


def test_nothing_that_must_run_offline_asks_the_network() -> None:
    for target in ("check", "test", "demo"):
        plan = subprocess.run(
            ["make", "--dry-run", "--always-make", target], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        assert "pytest" in plan or target != "test"
        assert "audit" not in plan
