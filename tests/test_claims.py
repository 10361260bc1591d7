"""Each promise of the README and of the page on guarantees names tests or recorded results that exist."""

import ast
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/guarantees.md")
CLAIMS: dict[str, list[dict[str, Any]]] = tomllib.loads((ROOT / ".ci" / "claims.toml").read_text(encoding="utf-8"))


@cache
def functions(path: Path) -> set[str]:
    """Names of the tests in a file."""
    return {
        node.name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.FunctionDef)
    }


def fault_of(entry: dict[str, Any]) -> str | None:
    """Return what is wrong with an entry, if anything is."""
    if entry.keys() - {"text"} not in ({"shown_by"}, {"not_shown"}) or not all(entry.values()):
        return "it needs a text and either `shown_by` or `not_shown`"
    for name in entry.get("shown_by", ()):
        path, _, test = name.partition("::")
        if not (ROOT / path).is_file():
            return f"there is no {path}"
        if path.startswith("benchmarks/results/"):
            continue
        begins = "check_" if path.startswith("tests/interop/") else "test_"
        if not test.startswith(begins) or test not in functions(ROOT / path):
            return f"{path} has no test {test!r}"
    return None


@pytest.mark.parametrize("page", PAGES)
def test_what_shows_a_claim_exists(page: str) -> None:
    assert [(entry["text"], fault) for entry in CLAIMS[page] if (fault := fault_of(entry))] == []


def test_all_but_a_few_claims_are_shown() -> None:
    assert set(CLAIMS) == set(PAGES)
    entries = [entry for page in PAGES for entry in CLAIMS[page]]
    assert sum("shown_by" in entry for entry in entries) > 150
    assert sum("not_shown" in entry for entry in entries) <= 3


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ({"shown_by": ["tests/test_claims.py::test_what_shows_a_claim_exists"]}, None),
        ({"shown_by": ["benchmarks/results/privacy.json"]}, None),
        ({"not_shown": "needs a GPU"}, None),
        ({}, "it needs"),
        ({"shown_by": []}, "it needs"),
        ({"shown_by": ["tests/test_claims.py::test_gone"]}, "has no test 'test_gone'"),
        ({"shown_by": ["tests/test_claims.py"]}, "has no test ''"),
        ({"shown_by": ["tests/test_gone.py::test_gone"]}, "there is no tests/test_gone.py"),
        ({"shown_by": ["benchmarks/results/gone.json"]}, "there is no benchmarks/results/gone.json"),
    ],
)
def test_wrong_entries_are_found(entry: dict[str, Any], fault: str | None) -> None:
    found = fault_of({"text": "A claim.", **entry})
    assert found is None if fault is None else fault in (found or "")
