"""Conversion of a catalog file's columns, prompts included, to those of `SOURCE`, with reports of invalid values."""

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import Annotated, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AfterValidator, ConfigDict, Field, ValidationError, model_validator

from segmint.catalogs.findings import CURATE_REASONS
from segmint.catalogs.frozen import Frozen
from segmint.catalogs.parquet import PROMPTS, REQUIRED, SOURCE
from segmint.infra.errors import UsageError
from segmint.infra.uris import redact

# No image has more pixels on a side.
_Number = Annotated[float, Field(ge=-1e9, le=1e9, allow_inf_nan=False)]
_Side = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
_Point = Annotated[list[_Number], Field(min_length=2, max_length=2)]


def _storable(text: str) -> str:
    text.encode()  # raises ValueError for lone surrogates, which Arrow can't store
    return text


class Prompt(Frozen):
    """Prompt of a catalog row, a value of `PROMPT`."""

    model_config = ConfigDict(strict=True)

    box: Annotated[list[_Number], Field(min_length=4, max_length=4)] | None = None
    points: list[_Point] | None = None
    point_labels: list[Annotated[int, Field(ge=0, le=1)]] | None = None
    label: Annotated[str, AfterValidator(_storable)] | None = None
    score: _Number | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.box is None and not self.points and not (self.label or "").strip():
            raise ValueError("a box, points, or a label")
        if self.box is not None and min(self.box[2:]) <= 0:
            raise ValueError("a box [x, y, width, height] with positive width and height")
        if self.point_labels is not None and len(self.point_labels) != len(self.points or ()):
            raise ValueError("point_labels with 1 or 0 for each point")
        return self


class Prompts(Frozen):
    """Prompts of a catalog row, a value of `PROMPTS`."""

    model_config = ConfigDict(strict=True)

    width: _Side
    height: _Side
    prompts: list[Prompt]


def check_prompts(value: Any) -> dict[str, Any]:
    """Return a row's prompts, given as a dictionary or as JSON, as a value of `PROMPTS`.

    Points without labels are inside the mask. Labels have no spaces around them, and credentials in them are redacted.
    Raises pydantic's `ValidationError` if the prompts are invalid.
    """
    if isinstance(value, str):
        checked = Prompts.model_validate_json(value)
    else:
        checked = Prompts.model_validate(value)
    found = checked.model_dump()
    for prompt in found["prompts"]:
        prompt["point_labels"] = prompt["point_labels"] or [1] * len(prompt["points"] or ()) or None
        prompt["points"] = prompt["points"] or None
        prompt["label"] = redact((prompt["label"] or "").strip()) or None
    return found


_OBJECT = "an object with width, height, and prompts; rename any other column"
_PROMPT_PROBLEMS = {"extra_forbidden": "no such key", "json_invalid": f"JSON of {_OBJECT}", "missing": _OBJECT}
"""Expected values by the type of pydantic's error, if its own message doesn't say it."""


def problem_of(error: ValidationError) -> tuple[Any, str, str]:
    """Return the first invalid value, its place, and what was expected there."""
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    if not place or first["type"] == "missing":  # only the keys of the whole value are required
        place = "the value"
    if first["type"] == "model_type":
        return first["input"], place, _OBJECT if place == "the value" else "an object"
    expected = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return first["input"], place, _PROMPT_PROBLEMS.get(first["type"], expected.replace("List should have", "a list of"))


_ISO_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_TRUTH = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}

_PARSED = 1024  # rows whose prompts are converted together, because Python's objects are large

_SEARCHED = 5000  # characters of a value that are searched for credentials; a row may contain four million
_COLUMNS = frozenset(SOURCE.names)
_STRIPPED = ("license", "redistributable", "valid_until", "sha256", "country", "refused_reason", "opt_out")
_PATTERNS = {
    "sha256": "^[0-9a-f]{64}$",
    "country": "^[A-Z]{2}$",
    "refused_reason": f"^({'|'.join(sorted(CURATE_REASONS))})$",
}

EXPECTED = {
    "redistributable": "true, false, or empty",
    "opt_out": "true, false, or empty",
    "valid_until": "a date as YYYY-MM-DD, or empty",
    "sha256": "64 hexadecimal digits, or empty",
    "country": "two letters (ISO 3166 alpha-2), or empty",
    "uri": "a URI or a path",
    "refused_reason": f"{', '.join(sorted(CURATE_REASONS))}, or empty",
}
"""Description of valid values by column, for messages. All other columns accept any text."""


@dataclass(frozen=True)
class InvalidValue:
    """Invalid value in a catalog. `row` is the number of its row, counted from 1 without a header."""

    catalog: str
    row: int
    column: str
    found: str
    expected: str

    def __str__(self) -> str:
        where = f"{self.catalog}, row {self.row}, column {self.column}"
        return f"{where}: found {self.found}; expected {self.expected}"


OnProblem = Callable[[InvalidValue], None]
"""Callback for invalid values. If it returns, the value counts as missing, and reading continues."""

_Report = Callable[[int, str, str], None]  # for a value of a column: its index, what was found, and what was expected


def refuse(problem: InvalidValue) -> None:
    """Raise `UsageError` for the first invalid value. This is the default `OnProblem`."""
    raise UsageError(f"{problem}. Correct the catalog; `segmint catalog check` lists every such row.")


def shown(value: object) -> str:
    """Format a value for a message: quoted, shortened if it is long, and with apparent credentials redacted."""
    text = redact(repr(value[:_SEARCHED] if isinstance(value, str | bytes) else value)[:_SEARCHED])
    return text if len(text) <= 80 else f"{text[:77]}…"


class NoJsonObjectError(UsageError):
    """Raised for a text that isn't a JSON object."""


class _ColumnTwiceError(ValueError):
    pass


def json_object(data: bytes, where: str, expected: str) -> dict[str, Any]:
    """Parse a JSON object.

    Raises `NoJsonObjectError` with the location `where` and the `expected` content for any other text, and `UsageError`
    for an object that has a catalog's column twice or in another case.
    """
    try:
        value = json.loads(data, object_pairs_hook=_as_object)
    except (ValueError, RecursionError) as error:
        kind = UsageError if isinstance(error, _ColumnTwiceError) else NoJsonObjectError
        raise kind(f"{where} is not JSON ({error}): {shown(data[:60])}; expected {expected}") from error
    if not isinstance(value, dict):
        raise NoJsonObjectError(f"{where}: found {shown(value)}; expected {expected}")
    _refuse_other_case(where, value)
    return value


def _refuse_other_case(where: str, names: Iterable[str]) -> None:
    for name in names:
        if name not in _COLUMNS and name.lower() in _COLUMNS:
            raise UsageError(f"{where}: {name!r} would be ignored, because the column is {name.lower()!r}: rename it")


def _as_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    columns = [name for name, _ in pairs if name in _COLUMNS]
    if len(columns) > len(set(columns)):
        raise _ColumnTwiceError("a column occurs twice")
    return dict(pairs)


def require_columns(catalog: str, names: list[str]) -> None:
    """Raise `UsageError` if a required column is missing, or if one of `SOURCE` occurs twice or in another case.

    `names` contains the file's columns and those that its folders give it.
    """
    _refuse_other_case(catalog, names)
    for name in SOURCE.names:
        if names.count(name) > 1:
            raise UsageError(
                f"{catalog}: the column {name!r} occurs {names.count(name)} times, including folders named {name}=…"
            )
    for name in REQUIRED:
        if name not in names:
            there = ", ".join(names[:20]) or "none"
            raise UsageError(f"{catalog}: the column {name!r} is missing; it has: {there}")


def require_types(catalog: str, schema: pa.Schema, own: Collection[str] = ()) -> list[str]:
    """Return the columns of `SOURCE` in a Parquet file that are not in `own`.

    Raises `UsageError` if `conform` can't convert the type of one of them.
    """
    fitting = []
    for field in schema:
        if field.name not in SOURCE.names or field.name in own:
            continue
        fits, expected = is_text(field.type), "string"
        if pa.types.is_boolean(SOURCE.field(field.name).type):
            fits, expected = pa.types.is_boolean(field.type), "bool"
        elif field.name in _OTHER_TYPES:
            fits_too, expected = _OTHER_TYPES[field.name]
            fits = fits or fits_too(field.type)
        if not fits and not pa.types.is_null(field.type):
            raise UsageError(
                f"{catalog}, column {field.name}, from row 1: its type is {field.type}; expected {expected}"
            )
        fitting.append(field.name)
    return fitting


def is_text(kind: pa.DataType) -> bool:
    """Return whether an Arrow type is text, either plain or dictionary-encoded.

    Binary columns of any length count as text, because some tools write text without saying that it's UTF-8.
    """
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    is_string = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return bool(is_string or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_day(kind: pa.DataType) -> bool:
    return bool(pa.types.is_date(kind) or pa.types.is_timestamp(kind))


_OTHER_TYPES: dict[str, tuple[Callable[[pa.DataType], bool], str]] = {
    "valid_until": (_is_day, "a date, a timestamp, or text as YYYY-MM-DD"),
    "image_id": (pa.types.is_integer, "string or an integer"),
    "prompts": (
        pa.types.is_struct,
        "a struct with width, height, and prompts, or string with JSON; rename any other column",
    ),
}
"""Types that a column of a Parquet file may have instead of text, and their description with text."""


def conform(
    catalog: str, columns: Mapping[str, pa.Array], rows: int, first_row: int, on_problem: OnProblem = refuse
) -> pa.RecordBatch:
    """Convert the columns of a catalog file to a batch of `SOURCE`. Missing columns become null.

    Empty values become null. `license` is stripped of surrounding spaces, `sha256` becomes lowercase, and `country`
    becomes uppercase. Other text stays the same. An integer becomes its decimal digits, and a timestamp its day in UTC.
    `first_row` is the number of the batch's first row, counted from 1.
    """
    arrays = []
    for field in SOURCE:
        report = partial(_report, on_problem, catalog, first_row, field.name)
        column = columns.get(field.name)
        if column is not None and is_text(column.type):
            column = _text(catalog, field.name, column, first_row)
        if column is None or pa.types.is_null(column.type):
            array = pa.nulls(rows, field.type)
        elif field.name == "prompts":
            array = _prompts(column, report)
        elif is_text(column.type):
            array = _from_text(field, column, report)
        elif _is_day(column.type):
            array = _days(column, report)
        else:
            array = column.cast(field.type)
        arrays.append(array)
    uris = arrays[0]
    for index in _where(pc.is_null(uris)):
        _report(on_problem, catalog, first_row, "uri", index, "nothing", EXPECTED["uri"])
    arrays[0] = uris.fill_null("")
    return pa.RecordBatch.from_arrays(arrays, schema=SOURCE)


def _report(
    on_problem: OnProblem, catalog: str, first_row: int, column: str, index: int, found: str, expected: str
) -> None:
    on_problem(InvalidValue(catalog, first_row + index, column, found, expected))


def _prompts(column: pa.Array, report: _Report) -> pa.Array:
    """Convert a column of structs, or of text with JSON, to `PROMPTS`."""
    pieces = []
    for start in range(0, len(column), _PARSED):
        values: list[Any] = column.slice(start, _PARSED).to_pylist()
        for place, value in enumerate(values):
            if value is None:
                continue
            try:
                values[place] = check_prompts(value)
            except ValidationError as error:
                found, where, expected = problem_of(error)
                report(start + place, f"{shown(found)} as {where}", expected)
                values[place] = None
        pieces.append(pa.array(values, PROMPTS))
    return pa.concat_arrays(pieces) if pieces else pa.nulls(0, PROMPTS)


def _days(column: pa.Array, report: _Report) -> pa.Array:
    """Convert a column of dates or timestamps to date32. Only the years 1 to 9999 are valid.

    Python and SQL support no other years. Databases write infinity as a date far outside this range.
    """
    days = column.to_numpy(zero_copy_only=False).astype("datetime64[D]")
    fits = (days >= np.datetime64(date.min)) & (days <= np.datetime64(date.max))
    for index in np.flatnonzero(~fits & ~np.isnat(days)):
        report(int(index), f"the date {days[index]}", f"a date from {date.min} to {date.max}, or empty")
    return pa.array(np.where(fits, days, np.datetime64("NaT")))


def _text(catalog: str, name: str, column: pa.Array, first_row: int) -> pa.Array:
    """Decode a text column, strip it if its values have no spaces, and let empty values be null."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        column = column.cast(pa.string())
        column.validate(full=True)
    except pa.ArrowInvalid as error:
        last = first_row + len(column) - 1
        raise UsageError(
            f"{catalog}, column {name}, rows {first_row} to {last}: the text is not UTF-8 ({error})"
        ) from error
    if name in _STRIPPED:
        column = pc.utf8_trim_whitespace(column)
    return pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)


def _from_text(field: pa.Field, column: pa.Array, report: _Report) -> pa.Array:
    name = field.name
    if name == "sha256":
        column = pc.utf8_lower(column)
    elif name == "country":
        column = pc.utf8_upper(column)
    if name in _PATTERNS:
        fits = pc.match_substring_regex(column, _PATTERNS[name])
        values = pc.if_else(fits, column, pa.scalar(None, pa.string()))
    elif name == "valid_until":
        values = _parsed(field, column, _day)
    elif pa.types.is_boolean(field.type):
        values = _parsed(field, column, lambda text: _TRUTH.get(text.lower()))
    else:
        return column
    for index in _where(pc.and_(pc.is_null(values), pc.is_valid(column))):
        report(index, shown(column[index].as_py()), EXPECTED[name])
    return values


def _parsed(field: pa.Field, column: pa.Array, parse: Callable[[str], Any]) -> pa.Array:
    # Such a column has few distinct values, so each is parsed once per batch.
    encoded = column.dictionary_encode()
    values = pa.array([parse(text) for text in encoded.dictionary.to_pylist()], field.type)
    return values.take(encoded.indices)


def _day(text: str) -> date | None:
    try:
        return date.fromisoformat(text) if _ISO_DATE.fullmatch(text) else None
    except ValueError:
        return None


def _where(mask: pa.Array) -> list[int]:
    indices: list[int] = pc.indices_nonzero(mask.fill_null(False)).to_pylist()
    return indices
