"""Runs the cells of a notebook, or the examples of a page, one after another in one namespace, as a notebook does."""

import ast
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def cells_of(notebook: Path) -> list[str]:
    """The sources of a notebook's code cells."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def examples_of(page: Path) -> list[str]:
    """The blocks of Python on a page of Markdown, in order."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def run_cells(sources: Sequence[str], names: dict[str, Any] | None = None) -> tuple[dict[str, Any], list[Any]]:
    """Run cells; returns the namespace at the end, and the value that each cell would show (None: nothing)."""
    names = {"__name__": "__main__"} if names is None else names
    shown = []
    for number, source in enumerate(sources, 1):
        tree = ast.parse(source, f"cell {number}")
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f"cell {number}", "exec"), names)
        shown.append(eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names) if last else None)
    return names, shown
