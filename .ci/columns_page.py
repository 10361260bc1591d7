"""Write the tables of columns in docs/dataset.md from the schemas; with `--check`, fail if they are out of date.

Names, types, order, and "Never null" come from the schemas. The meanings are handwritten in the page, where a rewritten
table finds them by the column's name.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from segmint.operators.rows import SCHEMAS  # noqa: E402

PAGE = ROOT / "docs" / "dataset.md"
HEAD = "| column | type | meaning |\n|---|---|---|\n"
NEVER_NULL = " Never null."


def page(text: str) -> str:
    """Return the text of the page with its tables written again."""
    for kind, schema in SCHEMAS.items():
        start = text.index(HEAD, text.index(f"\n## `{kind}`\n")) + len(HEAD)
        end = text.index("\n\n", start) + 1
        meanings = dict(re.findall(r"^\| `([^`]+)` \| `[^`]+` \| (.*) \|$", text[start:end], re.MULTILINE))
        text = text[:start] + "".join(_rows(kind, schema, meanings)) + text[end:]
    return text


def _rows(kind: str, schema: pa.Schema, meanings: dict[str, str]) -> Iterator[str]:
    for column in schema:
        for name, spelled in _values(column):
            if name not in meanings:
                raise SystemExit(f"docs/dataset.md: add a row for `{name}` of `{kind}` that says what it means")
            never = NEVER_NULL if name == column.name and not column.nullable else ""
            yield f"| `{name}` | `{spelled}` | {meanings[name].removesuffix(NEVER_NULL)}{never} |\n"


def _values(field: pa.Field, above: str = "") -> Iterator[tuple[str, str]]:
    """Yield the name and type of a column, and of the values inside it."""
    name, kind = above + field.name, field.type
    yield name, _spelled(kind)
    while pa.types.is_list(kind):
        name, kind = f"{name}[]", kind.value_type
    if pa.types.is_struct(kind):
        for inner in kind:
            yield from _values(inner, f"{name}.")


def _spelled(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"list<{_spelled(kind.value_type)}>"
    return "struct" if pa.types.is_struct(kind) else str(kind)


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    if "--check" not in sys.argv:
        PAGE.write_text(page(text), encoding="utf-8")
    elif text != page(text):
        raise SystemExit(
            "docs/dataset.md is out of date: run `python .ci/columns_page.py`, which writes its tables again"
        )
