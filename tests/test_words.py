"""Docstrings, comments, messages and pages use plain words: none of the phrases below."""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.prose import passages

ROOT = Path(__file__).parents[1]

INSTEAD = {
    r"anew": "again, or new",
    r"(?:stands?|stood)(?! for\b| in for\b| out\b| alone\b|-)": "is, or has",
    r"whoever": "who; for code, its name",
    r"in the manner of": "-style, or like",
    r"of (?:one's|its|their|our|his|her|your|my) own": "own, or separate",
    r"told(?! apart\b)": "given, printed, or reported",
    r"tells? of": "describes",
    r"(?<!there\s)(?:is|are|was|were) (?-i:none)": "is not, or no",
    r"obliterat\w*": "redact, or blur",
    r"be it": "even if, or whether",
    r"what is more": "also",
    r"(?:comes?|came) by": "gets",
    r"(?<=,\s)for it (?:has|is|was|had)": "because it",
    r"honestly": "nothing",
    r"heeds?|heeded|heeding": "apply, or obey",
    r"so many (?:bytes|files|images|masks|objects|pixels|points|rows|seconds|shards)": "the number",
    r"(?<!there\s)(?:is|are|was|were) (?-i:no)(?! (?:better|longer|more|weaker|worse)\b)": "is not",
}
"""What to write instead of a banned phrase, by its pattern."""

ALLOWED: dict[str, dict[str, str]] = {
    "docs/glossary.md": {"heed": "a word that a term replaces"},
    "catalogs/source/demo.py": {"stood": "the demo's catalog, whose hash its dataset stores"},
    "infra/uris.py": {
        "come by": "datasets store this message as the detail of a rejected row",
        "is no": "datasets store this message as the detail of a rejected row",
    },
}
"""Phrases that a file keeps, and why."""

READ = (
    "benchmarks",
    "catalogs",
    "infra",
    "model",
    "operators",
    "pipeline",
    "segmint/__init__.py",
    "segmint/compat",
    ".ci",
    "Makefile",
    "README.md",
    "SECURITY.md",
    "CONTRIBUTING.md",
    "docs",
)
"""Files and folders without any of the phrases."""

_SUFFIXES = (".py", ".md", ".yaml", ".sbatch", "run", "Makefile", "Dockerfile")


def _files() -> Iterator[Path]:
    for name in READ:
        path = ROOT / name
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        yield from found


_PATTERNS = {
    re.compile(rf"\b(?:{pattern})\b".replace(" ", r"\s+"), re.IGNORECASE): instead
    for pattern, instead in INSTEAD.items()
}
_ANY = re.compile("|".join(pattern.pattern for pattern in _PATTERNS), re.IGNORECASE)


def _hits(path: Path, allowed: Mapping[str, str]) -> Iterator[str]:
    for line, text in passages(path):
        for pattern, instead in _PATTERNS.items() if _ANY.search(text) else ():
            for match in pattern.finditer(text):
                phrase = " ".join(match.group().lower().split())
                if phrase not in allowed:
                    number = line + text[: match.start()].count("\n")
                    yield f"{number}: {phrase!r}: write {instead}"


@pytest.mark.parametrize(
    "path", [p for p in _files() if p.name.endswith(_SUFFIXES)], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_texts_use_plain_words(path: Path) -> None:
    allowed = ALLOWED.get(path.relative_to(ROOT).as_posix(), {})
    assert list(_hits(path, allowed)) == []


QUESTIONS = re.compile(r"(?:What|How|Which|Whether|Where|Who|When)\b")
"""Words that a docstring must not open with: it starts with a verb or a noun."""

_MAY_OPEN_SO = re.compile(rf"[\"'](?:\\\n)?\s*{QUESTIONS.pattern}")
"""In the source of every file with such a docstring; only these are parsed."""


def test_no_docstring_opens_with_a_question_word() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in _files()
        if path.suffix == ".py" and _MAY_OPEN_SO.search(source := path.read_text(encoding="utf-8"))
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        if QUESTIONS.match(node.value.value)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("The file stands there", 1),
        ("it is written\nanew", 1),
        ("a process of\n    its own", 1),
        ("a stand-in, and what it stands for", 0),
        ("None if there is none, and `told` in code", 0),
        ("x is None", 0),
        ("A is no B; there is no C, and it is no longer D", 1),
    ],
)
def test_a_phrase_is_found_across_lines_and_not_in_code(tmp_path: Path, text: str, count: int) -> None:
    (tmp_path / "page.md").write_text(text)
    (tmp_path / "code.py").write_text(f'def f():\n    """{text}"""\n')
    assert [len(list(_hits(tmp_path / name, {}))) for name in ("page.md", "code.py")] == [count, count]


def test_every_exception_is_still_needed() -> None:
    for name, phrases in ALLOWED.items():
        found = " ".join(_hits(ROOT / name, {}))
        assert [phrase for phrase in phrases if repr(phrase) not in found] == []
