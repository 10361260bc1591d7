"""Each sentence of the README and of three pages is listed, and the tests and recorded results of promises exist."""

import ast
import re
import tomllib
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/guarantees.md", "docs/privacy.md", "SECURITY.md")
CLAIMS: dict[str, list[dict[str, Any]]] = tomllib.loads((ROOT / ".ci" / "claims.toml").read_text(encoding="utf-8"))


def statements(page: str) -> list[str]:
    """Words of a page without headings, code blocks, and the heads of tables. Of a generated part, only its mark."""
    page = re.sub(r"^(<!-- (\w+): .*\n)(?:.*\n)*?<!-- end of \2 -->\n", r"\1", page, flags=re.MULTILINE)
    page = re.sub(r"^```.*?^```\n", "", page, flags=re.DOTALL | re.MULTILINE)
    page = re.sub(r"^\|.*\n\|[-:| ]+\n", "", page, flags=re.MULTILINE)
    page = re.sub(r"^#+ .*\n", "", page, flags=re.MULTILINE)
    return re.sub(r"^\| | \|$|^- |^\d+\. ", "", page, flags=re.MULTILINE).split()


@cache
def functions(path: Path) -> set[str]:
    """Names of the tests in a file."""
    return {
        node.name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.FunctionDef)
    }


def fault_of(entry: dict[str, Any]) -> str | None:
    """Return what is wrong with an entry, if anything is."""
    if entry.keys() - {"text"} not in ({"shown_by"}, {"not_shown"}, {"no_promise"}) or not all(entry.values()):
        return "it needs a text and either `shown_by`, `not_shown`, or `no_promise`"
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
def test_no_sentence_is_missing(page: str) -> None:
    listed = [(word, entry["text"]) for entry in CLAIMS[page] for word in entry["text"].split()]
    written = statements((ROOT / page).read_text(encoding="utf-8"))
    for (listed_word, text), word in zip_longest(listed, written, fillvalue=("", "")):
        assert listed_word == word, f"{page} has changed at {word!r}; check what shows it, and update {text!r}"


@pytest.mark.parametrize("page", PAGES)
def test_what_shows_a_claim_exists(page: str) -> None:
    assert [(entry["text"], fault) for entry in CLAIMS[page] if (fault := fault_of(entry))] == []


def test_all_but_a_few_claims_are_shown() -> None:
    assert set(CLAIMS) == set(PAGES)
    entries = [entry for page in PAGES for entry in CLAIMS[page]]
    assert sum("shown_by" in entry for entry in entries) > 250
    assert sum("not_shown" in entry for entry in entries) <= 4


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ({"shown_by": ["tests/test_claims.py::test_what_shows_a_claim_exists"]}, None),
        ({"shown_by": ["benchmarks/results/privacy.json"]}, None),
        ({"not_shown": "needs a GPU"}, None),
        ({"no_promise": "introduces a list"}, None),
        ({"no_promise": "a link", "not_shown": "needs a GPU"}, "it needs"),
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
