"""Parsed configuration documents, and validation problems as readable messages with key, location, and example."""

import datetime
import difflib
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from segmint.infra.uris import redact
from segmint.infra.wording import listed, number

Key = tuple[str | int, ...]


SHOWN = 100
"""Maximum number of problems that a report lists."""


@dataclass(frozen=True)
class ConfigProblem:
    """Problem with a key: its dotted name, its location ("build.yaml:12"), and the expected value."""

    key: str
    where: str
    message: str


@dataclass
class Document:
    """A parsed configuration: plain values, and the location of each key."""

    data: dict[str, Any]
    places: dict[Key, str]
    source: str

    def place(self, key: Key) -> str:
        """Return the location of a key. If the key is absent, return the location of its nearest enclosing key."""
        while key and key not in self.places:
            key = key[:-1]
        return self.places.get(key, self.source)


def dotted(key: Key) -> str:
    """Format a key as for `--set`, such as masks.points_per_side.

    Quote parts that contain dots; format indexes as [0].
    """
    text = ""
    for part in key:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (f'"{part}"' if "." in part else part)
    return text or "the configuration"


_EXAMPLES = {
    "name": "the dataset's name, such as street-2026",
    "catalog": "the path or URI of a Parquet, JSON Lines, or CSV file, or of a folder/ of Parquet files",
    "output": "the path or URI of a folder",
    "license": "such as {allow: [CC0-1.0, CC-BY-4.0]}",
    "license.allow": "a list of SPDX identifiers or LicenseRef-…",
}
"""Descriptions of required keys, shown if they are missing."""

_LISTS = {
    "license.allow": "[CC-BY-4.0]",
    "curate.scorers": "[{name: sharpness, file: sharpness.pt, sha256: …, min: 0.5}]",
    "stages": "[{stage: blur.Blur, after: prepare}]",
    "datasets": "[{uri: out/street}]",
}
"""Example values of keys that take a list."""

_KINDS = {
    "bool": "true or false",
    "date": "a date, such as 2026-03-31",
    "float": "a number",
    "int": "a whole number",
}
"""Expected values, by the prefix of pydantic's error type."""

_BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
_EMPTY = {"string_too_short": "non-empty text", "too_short": "a non-empty list"}
_BELOW = ("dataclass_type", "dict_type", "mapping_type", "model_attributes_type", "model_type")


def problems_of(error: ValidationError, document: Document, model: type[BaseModel]) -> list[ConfigProblem]:
    """Return the problems that pydantic found, one per key."""
    found: dict[str, ConfigProblem] = {}
    for detail in error.errors(include_url=False):
        if detail["type"] == "too_short" and detail["input"] and not detail["ctx"]["actual_length"]:
            continue  # pydantic reports each item separately
        key = _existing(detail["loc"], document.data, missing=detail["type"] == "missing")
        name = dotted(key)
        message = _message(detail, key, model) if len(found) < SHOWN else "is invalid"  # a message may take 1 ms
        if name in found:  # pydantic reports each member of a union; combine what they expect
            message = f"{found[name].message}; or {message.rpartition(': ')[2]}"
        found[name] = ConfigProblem(name, document.place(key), message)
    return list(found.values())


def _message(detail: Any, key: Key, model: type[BaseModel]) -> str:
    if detail["type"] == "missing":
        return f"is missing{_describe(model, key)}"
    if detail["type"] == "extra_forbidden":
        names = _fields(model, key[:-1])
        return f"is not a configuration key: {_advice(model, key, names)}"
    text = _expected(detail, key, model)
    # A storage option may be a secret, so don't show its value.
    if key[:1] == ("storage",):
        return f"is invalid: {text}"
    return f"is {_shown(detail['input'])}: {text}"


def _advice(model: type[BaseModel], key: Key, names: list[str]) -> str:
    """Suggest the key that the user probably meant by an unknown key."""
    name = str(key[-1])
    above = [part for part in model.model_fields if name in _fields(model, (part,))]
    if above:  # the user may have uncommented a key in the template, but not its parent
        return f"{name} belongs under {' or '.join(f'{part}:' for part in above)}"
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]}?"
    return f"expected one of {', '.join(sorted(names))}"


def _expected(detail: Any, key: Key, model: type[BaseModel]) -> str:
    """Describe the expected value without Python terms."""
    kind, given = detail["type"], detail["input"]
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"expected {words} {number(detail['ctx'][name])}"
    if kind in ("tuple_type", "list_type"):
        return f"expected a list, such as {_LISTS.get(dotted(key), '[a, b]')}"
    if kind in _EMPTY:
        return f"expected {_EMPTY[kind]}"
    if kind in _BELOW:
        names = _fields(model, key)
        if names:
            return f"expected keys and values under it, such as {listed(names[:3])}"
        return "expected keys and values"
    if kind == "string_type":
        if given is None or isinstance(given, list | dict):
            return "expected text"
        return "expected text, in quotes"
    if kind.partition("_")[0] in _KINDS:
        return f"expected {_KINDS[kind.partition('_')[0]]}"
    text = str(detail["msg"]).removeprefix("Value error, ").replace("Input should be", "expected", 1)
    if "expected" in text or kind == "value_error":
        return text
    return f"expected: {text}"


def _describe(model: type[BaseModel], key: Key) -> str:
    owner = _owner(model, key[:-1])
    field = owner.model_fields.get(str(key[-1])) if owner else None
    example = (field.description if field else None) or _EXAMPLES.get(dotted(key))
    if example:
        return f": expected {example}"
    return ""


def _shown(value: Any) -> str:
    """Return a value in YAML notation, truncated to one line."""
    words = {None: "null", True: "true", False: "false"}
    shown = str(value) if isinstance(value, datetime.date) else repr(value)
    text = words[value] if value is None or isinstance(value, bool) else redact(shown)
    if len(text) <= 60:
        return text
    return f"{text[:57]}..."


def _existing(loc: tuple[str | int, ...], data: Any, *, missing: bool) -> Key:
    """Return the part of pydantic's location that exists in the document. Drop the names of union members."""
    key: list[str | int] = []
    for position, part in enumerate(loc):
        inside = (isinstance(data, Mapping) and part in data) or (
            isinstance(data, list | tuple) and isinstance(part, int) and part < len(data)
        )
        if not inside:
            if missing and position == len(loc) - 1:
                key.append(part)
            break
        key.append(part)
        data = data[part]
    return tuple(key)


def plain_types(model: type[BaseModel], key: Key) -> set[Any]:
    """Return the plain types of a key, or an empty set if the key is unknown or accepts anything."""
    *above, last = key
    owner = _owner(model, tuple(above))
    field = owner.model_fields.get(str(last)) if owner else None
    if field:
        return set(_members(field.annotation))
    return set()


def _fields(model: type[BaseModel], key: Key) -> list[str]:
    owner = _owner(model, key)
    if owner:
        return list(owner.model_fields)
    return []


def _owner(model: type[BaseModel], key: Key) -> type[BaseModel] | None:
    owner: type[BaseModel] | None = model
    for part in key:
        if isinstance(part, int):  # a list index; the list's key has already selected the model of its items
            continue
        field = owner.model_fields.get(part) if owner else None
        members = _members(_item(field.annotation)) if field else []
        owner = next((member for member in members if isinstance(member, type) and issubclass(member, BaseModel)), None)
    return owner


def _item(annotation: Any) -> Any:
    """Return the item type of a list, or any other annotation unchanged."""
    if get_origin(annotation) in (list, tuple):
        return get_args(annotation)[0]
    return annotation


def _members(annotation: Any) -> list[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [inner for member in get_args(annotation) for inner in _members(member)]
    return [annotation]
