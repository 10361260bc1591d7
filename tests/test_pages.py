"""The pages stay few and short enough to be read."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

REFERENCE = {"code", "configuration", "dataset", "errors", "findings", "glossary", "metric"}
"""Pages of docs/ that people look things up in. All others are guides, which people read from start to finish."""

MOST_WORDS, MOST_PAGES, MOST_README_WORDS = 53_500, 41, 900


def prose(path: Path) -> str:
    """A page without its code blocks, and without the parts that `make tables` generates."""
    text = re.sub(r"<!-- ([^:>]*): made by .*?<!-- end of \1 -->", "", path.read_text("utf-8"), flags=re.DOTALL)
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def test_pages_are_few_and_guides_short() -> None:
    pages = sorted((ROOT / "docs").glob("*.md"))
    assert len(pages) <= MOST_PAGES
    guides = [page for page in pages if page.stem not in REFERENCE]
    assert len(pages) - len(guides) == len(REFERENCE)
    assert sum(len(re.findall(r"\S*\w\S*", prose(page))) for page in guides) <= MOST_WORDS
    assert len((ROOT / "README.md").read_text("utf-8").split()) < MOST_README_WORDS
