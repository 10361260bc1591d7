"""What people read in a source file or a page: strings, comments and paragraphs, without quotations and code."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_QUOTED = re.compile(r"``.*?``|`[^`]*`|\"[^\"\n]*\"|“[^”]*”|\(https?://[^)]*\)", re.DOTALL)
_FENCED = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)


class Passage(NamedTuple):
    """A piece of text and the number of its first line."""

    line: int
    text: str


def passages(path: Path) -> Iterator[Passage]:
    """The texts of a Python file, of a Markdown page, or of the comments of any other file."""
    content = path.read_text()
    if path.suffix == ".py":
        found = [*_strings(content), *_comments(_python_comments(content))]
    elif path.suffix == ".md":
        found = [Passage(1, _FENCED.sub(_blank, content))]
    else:
        lines = enumerate(content.splitlines(), 1)
        found = list(_comments((number, line.partition("#")[2]) for number, line in lines if "#" in line))
    return (Passage(line, _QUOTED.sub(_blank, text)) for line, text in found)


def _strings(source: str) -> Iterator[Passage]:
    tree = ast.parse(source)
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
            yield Passage(node.lineno, "".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield Passage(node.lineno, node.value)


def _python_comments(source: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.removeprefix("#")


def _comments(lines: Iterator[tuple[int, str]]) -> Iterator[Passage]:
    """Comments of adjacent lines as one text: a phrase may go on in the next line."""
    start, block = 0, list[str]()
    for number, text in lines:
        if block and number != start + len(block):
            yield Passage(start, "\n".join(block))
            block = []
        if not block:
            start = number
        block.append(text)
    if block:
        yield Passage(start, "\n".join(block))


def _blank(quoted: re.Match[str]) -> str:
    """Newlines alone, so that the lines after it keep their numbers."""
    return "…" + "\n" * quoted.group().count("\n")
