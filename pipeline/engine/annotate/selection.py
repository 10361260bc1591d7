"""SQL conditions of `--select`: one boolean expression over the columns of `images`."""

import json
from typing import Any

import duckdb

from segmint.catalogs.dataset.tables import DatasetTables
from segmint.infra.errors import UsageError

_ALLOWED = frozenset(
    {"COLUMN_REF", "CONSTANT", "COMPARISON", "CONJUNCTION", "OPERATOR", "BETWEEN", "CASE", "CAST", "TYPE"}
)
_OPERATORS = {"+", "-", "*", "/", "//", "%", "^", "**", "~~", "!~~", "~~*", "!~~*"}
_PLAIN = {"abs", "ceil", "floor", "round", "sqrt", "greatest", "least", "isfinite", "isnan"}
_TEXT = {"lower", "upper", "length", "contains", "starts_with", "ends_with", "prefix", "suffix"}
_PATTERNS = {"regexp_matches", "regexp_full_match"}
_NESTED = {"list_contains", "len", "struct_extract", "array_extract", "list_value", "element_at"}
_FUNCTIONS = frozenset(_OPERATORS | _PLAIN | _TEXT | _PATTERNS | _NESTED)
_SHOWN = 200  # maximum length of a condition in an error
_EXAMPLE = "as in --select 'masks < 10' or --select \"country = 'FR' AND faces = 0\""


def check_selection(tables: DatasetTables, text: str) -> str:
    """Return a condition if it is safe to embed in a query of `images`.

    A safe condition is a boolean expression of columns, constants, operators, and plain functions, without queries.
    Raises `UsageError` for anything else.
    """
    if not text.strip():
        raise UsageError(f"--select {text!r}: expected a condition, {_EXAMPLE}")
    with tables.connection.cursor() as cursor:
        try:
            # Parse the text between SELECT and FROM, where it can only be an expression.
            found = cursor.execute("SELECT json_serialize_sql($1)", [f"SELECT ({text}\n) FROM images"]).fetchone()
            parsed = json.loads(found[0]) if found else {}
            _check(parsed, text)
            described = cursor.execute(f"DESCRIBE SELECT ({text}\n) AS condition FROM images").fetchall()
        except RecursionError as error:
            raise UsageError(
                f"--select {text[:_SHOWN]!r}…: nested too deeply; list values, as in id IN (1, 2, 3)"
            ) from error
        except duckdb.Error as error:
            raise UsageError(f"--select {text!r}: {str(error).splitlines()[0]}; {_EXAMPLE}") from error
    if described[0][1] != "BOOLEAN":
        raise UsageError(f"--select {text!r}: its type is {described[0][1]}, expected BOOLEAN; {_EXAMPLE}")
    return f"({text}\n)"


def _check(parsed: dict[str, Any], text: str) -> None:
    if parsed.get("error"):
        raise UsageError(f"--select {text!r}: {parsed.get('error_message')}; {_EXAMPLE}")
    statements = parsed["statements"]
    node = statements[0]["node"] if len(statements) == 1 else {}
    plain = (
        node.get("type") == "SELECT_NODE"
        and len(node["select_list"]) == 1
        and node["from_table"].get("table_name") == "images"
        and node["where_clause"] is None
        and not node["modifiers"]
        and not node["cte_map"]["map"]
    )
    if not plain:
        raise UsageError(f"--select {text!r}: expected one condition; {_EXAMPLE}")
    _check_expression(node["select_list"][0], text)


def _check_expression(expression: Any, text: str) -> None:
    """Reject queries, windows, parameters, and any function that could read more than the current row."""
    waiting = [expression]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
            continue
        if not isinstance(value, dict):
            continue
        kind = value.get("class")
        if kind == "FUNCTION":
            name = str(value.get("function_name")).lower()
            if name not in _FUNCTIONS:
                raise UsageError(f"--select {text!r}: the function {name} isn't allowed in a condition")
        elif kind is not None and kind not in _ALLOWED:
            raise UsageError(f"--select {text!r}: {kind.lower()} isn't allowed in a condition; {_EXAMPLE}")
        waiting += value.values()
