"""Texts that people read use today's words: in code, messages and pages, none of the phrases below."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.prose import passages

ROOT = Path(__file__).parents[1]

INSTEAD = {
    r"anew": "again, or new",
    r"(?:stands?|stood)(?! for\b| in for\b| alone\b|-)": "is, or has",
    r"whoever": "who; for code, its name",
    r"in the manner of": "-style, or like",
    r"of (?:one's|its|their|our|his|her|your|my) own": "own, or separate",
    r"told": "given, printed, or reported",
    r"tells? of": "describes",
    r"(?<!there\s)(?:is|are|was|were) (?-i:none)": "is not, or no",
    r"obliterat\w*": "redact, or blur",
    r"be it": "even if, or whether",
    r"what is more": "also",
    r"(?:comes?|came) by": "gets",
    r"for it (?:has|is|was|had)": "because it",
    r"honestly": "nothing",
}
"""What to write instead of a banned phrase, by its pattern."""

ALLOWED: dict[str, dict[str, str]] = {}
"""Phrases that a file keeps, and why."""

READ = ("benchmarks", "infra", "model", ".ci", "Makefile")

_SUFFIXES = (".py", ".md", ".yaml", ".sbatch", "run", "Makefile", "Dockerfile")


def _files() -> Iterator[Path]:
    for name in READ:
        path = ROOT / name
        yield from sorted(path.rglob("*")) if path.is_dir() else [path]


def _hits(path: Path) -> Iterator[str]:
    allowed = ALLOWED.get(path.relative_to(ROOT).as_posix(), {})
    for line, text in passages(path):
        for pattern, instead in INSTEAD.items():
            for match in re.finditer(rf"\b(?:{pattern})\b".replace(" ", r"\s+"), text, re.IGNORECASE):
                phrase = " ".join(match.group().lower().split())
                if phrase not in allowed:
                    number = line + text[: match.start()].count("\n")
                    yield f"{number}: {phrase!r}: write {instead}"


@pytest.mark.parametrize(
    "path", [p for p in _files() if p.name.endswith(_SUFFIXES)], ids=lambda p: str(p.relative_to(ROOT))
)
def test_texts_use_todays_words(path: Path) -> None:
    assert list(_hits(path)) == []
