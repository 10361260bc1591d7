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
        tree = ast.parse(content)
        found = [*_strings(tree), *_comments(_python_comments(content, tree))]
    elif path.suffix == ".md":
        found = [Passage(1, _FENCED.sub(_blank, content))]
    else:
        lines = enumerate(content.splitlines(), 1)
        found = list(_comments((number, line.partition("#")[2]) for number, line in lines if "#" in line))
    return (Passage(line, _QUOTED.sub(_blank, text)) for line, text in found)


def _strings(tree: ast.Module) -> Iterator[Passage]:
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
            yield Passage(node.lineno, "".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield Passage(node.lineno, node.value)


def _python_comments(source: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The comments of a source by line; only strings in several lines are tokenized, which is slow."""
    lines = source.split("\n")
    found = set[tuple[int, str]]()
    strings: dict[int, list[tuple[int, int]]] = {}  # their columns, in bytes, by line
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)):
            first, last, end = node.lineno, node.end_lineno or 0, node.end_col_offset or 0
            for number in range(first, last + 1):
                columns = node.col_offset if number == first else 0, end if number == last else len(source)
                strings.setdefault(number, []).append(columns)
            if first < last and any("#" in line for line in lines[first - 1 : last]):
                text = [line.encode() for line in lines[first - 1 : last]]
                text[0], text[-1] = text[0][node.col_offset :], text[-1][:end]
                found |= _tokenized(b"(" + b"\n".join(text) + b")", first)  # a comment may be between two strings
    for number, line in enumerate(lines, 1):
        if "#" in line:
            data = line.encode()
            for place in (match.start() for match in re.finditer(b"#", data)):
                if not any(start <= place < end for start, end in strings.get(number, ())):
                    found.add((number, data[place + 1 :].decode()))
                    break
    return iter(sorted(found))


def _tokenized(source: bytes, first: int) -> set[tuple[int, str]]:
    """The comments of a part of a source that begins in a line."""
    tokens = tokenize.generate_tokens(io.StringIO(source.decode()).readline)
    return {(first - 1 + t.start[0], t.string.removeprefix("#")) for t in tokens if t.type == tokenize.COMMENT}


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
