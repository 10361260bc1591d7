"""Each claim of the README and of the page on guarantees names the tests or recorded results that show it.

`tests/claims.toml` has the text of both pages in order, in pieces, with what shows each piece, or why it isn't a claim.
"""

import ast
import re
import tomllib
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest

from segmint.catalogs.dataset.sweep import GRACE
from segmint.infra.storage import outages, retry, s3
from segmint.operators.prepare import detector_process, prepare, read_image, released_search
from segmint.operators.shards import revise, write
from segmint.pipeline import build
from segmint.pipeline.building.execution import quarantine, trials
from segmint.pipeline.config.config import Config, ResourcesConfig

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/guarantees.md")
CLAIMS: dict[str, list[dict[str, Any]]] = tomllib.loads((ROOT / "tests" / "claims.toml").read_text(encoding="utf-8"))


def statements(page: str) -> list[str]:
    """Words of a page without headings, code blocks, pictures, and the heads of tables."""
    page = re.sub(r"^```.*?^```\n", "", page, flags=re.DOTALL | re.MULTILINE)
    page = re.sub(r"^\|.*\n\|[-:| ]+\n", "", page, flags=re.MULTILINE)
    page = re.sub(r"^(?:#+ .*|!\[.*)\n", "", page, flags=re.MULTILINE)
    return re.sub(r"^\| | \|$|^- |^\d+\. ", "", page, flags=re.MULTILINE).split()


@cache
def functions(path: Path) -> set[str]:
    """Names of the tests in a file."""
    return {
        node.name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.FunctionDef)
    }


def fault_of(entry: dict[str, Any]) -> str | None:
    """Return what is wrong with an entry, if anything is."""
    if entry.keys() - {"text"} not in ({"shown_by"}, {"no_claim"}, {"not_shown"}) or not all(entry.values()):
        return "it needs a text and either `shown_by`, `no_claim`, or `not_shown`"
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
def test_the_table_has_every_word_of_the_page(page: str) -> None:
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
    assert sum("shown_by" in entry for entry in entries) > 150
    assert sum("not_shown" in entry for entry in entries) <= 3


def test_limits_on_the_page_are_the_codes() -> None:
    page = " ".join((ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8").split())
    policy, resources = retry.RetryPolicy(), ResourcesConfig()
    defaults = {name: field.default for name, field in Config.model_fields.items()}
    minutes = detector_process.DEATHS_WITHIN_S / 60
    expected = [
        f"redacted it {released_search.ROUNDS} more times.",
        f"In a shard of at least {write.MIN_ROWS_FOR_RATIO} rows",
        f"`max_reject_ratio` (default {defaults['max_reject_ratio']})",
        f"A window includes at most {quarantine.MOST_SINGLE_TRIALS} of these trials.",
        f"If a shard contains more than {write.MOST_FAULTED} such rows",
        f"processes up to {quarantine.MOST_WITNESSES} nearby rows",
        f"a search takes more than {detector_process._SEARCH_S:g} s",
        f"If {prepare.SEARCH_TRIES} attempts fail for an image",
        f"dies {detector_process.MOST_DEATHS + 1} times within {minutes:g} minutes",
        f"doesn't start within {detector_process._START_S:g} s",
        f"Makes up to {policy.attempts} attempts.",
        f"doubles from {policy.first_wait_s:g} s to at most {policy.max_wait_s:g} s.",
        f"`outage_timeout_s` (default {defaults['outage_timeout_s']:g} s)",
        f"up to {outages.BUSY_ROUNDS} rounds of attempts",
        f"Makes {retry._REFUSED_ATTEMPTS} attempts and then reports a fault",
        f"up to {read_image.MOST_READS} times in all",
        f"files over {s3.PART_BYTES >> 20} MiB",
        f"`resources.segment.timeout_s` (default {resources.segment.timeout_s:g} s)",
        f"responds to a probe within {trials.PROBE_S:g} s",
        f"up to {revise.ATTEMPTS} times",
        f"less than {GRACE.total_seconds() / 3600:g} h old",
    ]
    assert [text for text in expected if text not in page] == []
    words = {2: "two", 3: "three"}
    assert f"in {words[quarantine.FAULTY_ATTEMPTS]} attempts of a run" in page
    assert f"After {words[build.MOST_STALLED_WINDOWS]} such windows" in page
    assert f"{words[quarantine.DEATHS].capitalize()} workers die" in page
    assert outages.ROUNDS == 2, "a second round of attempts"


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ({"shown_by": ["tests/test_claims.py::test_what_shows_a_claim_exists"]}, None),
        ({"shown_by": ["benchmarks/results/privacy.json"]}, None),
        ({"no_claim": "introduces a table"}, None),
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
