"""Write docs/code.md from the docstrings of packages and modules; with `--check`, fail if it is out of date."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "code.md"
LAYERS = ("pipeline", "operators", "model", "catalogs", "infra")
INTRODUCTION = ROOT / ".ci" / "code_page.md"
"""The handwritten part of the page."""


def first_sentence(path: Path) -> str:
    """Return the first paragraph's first sentence of a module's docstring, on one line."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    if not docstring:
        raise SystemExit(f"{path.relative_to(ROOT)} has no docstring: docs/code.md lists its first sentence")
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    sentence = re.split(r"(?<!\bal\.)(?<!\bApp\.)(?<=\.) ", paragraph, maxsplit=1)[0]
    return sentence.replace("|", "\\|")


def page() -> str:
    """Return the whole page: the introduction, then a section per package with a table of its files."""
    lines = [INTRODUCTION.read_text(encoding="utf-8").rstrip()]
    for layer in LAYERS:
        for package in sorted((ROOT / layer).rglob("__init__.py")):
            lines.extend(_section(package))
    return "\n".join(lines) + "\n"


def _section(package: Path) -> Iterator[str]:
    folder = package.parent.relative_to(ROOT).as_posix()
    yield f"\n{'##' if '/' not in folder else '###'} `{folder}/`\n\n{first_sentence(package)}"
    files = sorted(path for path in package.parent.glob("*.py") if path != package)
    if files:
        yield "\n| file | contents |\n|---|---|"
        yield from (f"| `{folder}/{path.name}` | {first_sentence(path)} |" for path in files)


if __name__ == "__main__":
    if "--check" not in sys.argv:
        PAGE.write_text(page(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page():
        raise SystemExit("docs/code.md is out of date: run `python .ci/code_page.py`, which writes it again")
