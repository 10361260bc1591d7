"""`docs/errors.md` against the code: each message quoted is one that segmint says, and each reason has its remedy."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from segmint.catalogs.findings import Reason

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
FOLDERS = ("pipeline", "operators", "model", "catalogs", "infra")


def first_cells(heading: str) -> list[str]:
    """First cells, without their backticks, of the tables whose first column has this heading."""
    tables = re.findall(rf"^\| {heading} \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    cells = [line.split(" | ")[0].removeprefix("| ") for table in tables for line in table.splitlines()]
    assert all(cell.startswith("`") and cell.endswith("`") for cell in cells)
    return [cell.strip("`") for cell in cells]


@cache
def said() -> list[str]:
    """Every text in the code, with a blank for each value that is put in."""
    texts = []
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    for path in sorted([*files, *(ROOT / "segmint").glob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else " " for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts


@pytest.mark.parametrize("message", first_cells("message"))
def test_every_message_is_one_that_segmint_says(message: str) -> None:
    pattern = re.compile(".*".join(re.escape(words.strip()) for words in message.split("…")), re.DOTALL)
    assert any(pattern.search(text) for text in said()), message


def test_messages_are_quoted_from_all_over() -> None:
    assert len(first_cells("message")) > 50


def test_every_reason_has_its_remedy_and_none_is_invented() -> None:
    assert sorted(first_cells("reason")) == sorted(Reason)
