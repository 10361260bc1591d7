"""YAML configuration files: parsing with line numbers, overrides, and validation with locations."""

import re
from collections.abc import Iterable, Iterator
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.storage.errors import ObjectTooLargeError
from segmint.infra.storage.storage import Storage
from segmint.infra.storage.stores import check_size
from segmint.infra.uris import redact
from segmint.infra.wording import counted
from segmint.pipeline.config.problems import SHOWN, ConfigProblem, Document, Key, dotted, plain_types, problems_of

Model = TypeVar("Model", bound=BaseModel)

_MAX_BYTES = 1_000_000
_MAX_VALUES = 100_000  # with aliases expanded; no real configuration comes close
_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_OCTAL = re.compile(r"[-+]?0[0-7_]+")
_POWER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
_SEGMENT = re.compile(r'"([^"]*)"|([^."]+)')


def load(path_or_uri: str, overrides: list[str], model: type[Model]) -> Model:
    """Read a configuration, apply overrides, and validate it. Raises one `UsageError` that lists every problem."""
    document = parse_yaml(_read(path_or_uri), path_or_uri)
    for override in overrides:
        apply_override(document, override)
    return check(document, model)


def _read(path_or_uri: str) -> str:
    try:
        if "://" in path_or_uri:
            return Storage().read(path_or_uri, _MAX_BYTES).decode("utf-8")
        return _read_file(Path(path_or_uri)).decode("utf-8")
    except ObjectTooLargeError as error:
        raise UsageError(f"{path_or_uri} is larger than {_MAX_BYTES:,} bytes; expected a YAML configuration") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path_or_uri} is not UTF-8 text; expected a YAML configuration") from error
    except FileNotFoundError as error:
        raise UsageError(f"{path_or_uri}: no such file; expected a YAML configuration") from error
    except OSError as error:
        raise UsageError(f"{path_or_uri} cannot be read: {error.strerror or error}") from error
    except SegmintError as error:
        raise UsageError(f"the configuration cannot be read: {error}") from error


def _read_file(path: Path) -> bytes:
    """Return the bytes of a small regular file. Pipes and devices are refused, because reading them may never end."""
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a pipe or a device"
        raise UsageError(f"{path} is {kind}; expected a YAML configuration file")
    with path.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    check_size(str(path), len(data), _MAX_BYTES)
    return data


def parse_yaml(text: str, source: str) -> Document:
    """Parse one YAML document of plain values. Raises `UsageError` with line and column if it is invalid."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return Document({}, {}, source)
        if _count_values(node, {}) > _MAX_VALUES:
            raise UsageError(f"{source} has more than {_MAX_VALUES:,} values once its aliases are expanded")
        places, wrong = _places(node, source)
        if wrong:
            raise UsageError(_report(source, wrong))
        data = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        raise UsageError(f"{place}: invalid YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{source}: invalid YAML: {error}") from error
    finally:
        loader.dispose()
    if not isinstance(data, dict):
        raise UsageError(f"{source}:1: expected keys and values (name: …), found {type(data).__name__}")
    return Document(data, places, source)


def _count_values(node: yaml.Node, known: dict[int, int]) -> int:
    """Count the values below a node, with aliases expanded. Count a node that contains itself once."""
    if id(node) not in known:
        known[id(node)] = 1
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            parts = node.value
        known[id(node)] = 1 + sum(_count_values(part, known) for part in parts)
    return known[id(node)]


def _places(root: yaml.Node, source: str, top: Key = ()) -> tuple[dict[Key, str], list[ConfigProblem]]:
    """Return the locations of all keys below `root`, and the problems that don't require a schema.

    `top` is the root's key.
    """
    places: dict[Key, str] = {}
    wrong: list[ConfigProblem] = []
    seen: set[int] = set()
    waiting: list[tuple[Key, yaml.Node]] = [(top, root)]
    while waiting:
        key, node = waiting.pop()
        if id(node) in seen:  # an alias; its keys keep the original's locations
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            for name, value in node.value:
                child = (*key, name.value if isinstance(name, yaml.ScalarNode) else "?")
                place = f"{source}:{name.start_mark.line + 1}"
                if name.tag not in (_TEXT, _MERGE):
                    wrong.append(ConfigProblem(dotted(child), place, "is not text: expected a key name"))
                elif child in places and name.tag == _TEXT:
                    first = places[child].removeprefix(f"{source}:")
                    wrong.append(ConfigProblem(dotted(child), place, f"is given twice, first on line {first}"))
                places[child] = place
                waiting.append((child, value))
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                places[(*key, index)] = f"{source}:{value.start_mark.line + 1}"
                waiting.append(((*key, index), value))
        elif message := _other_number(node) or ("arguments" in key and _number_as_text(node)):
            wrong.append(ConfigProblem(dotted(key), f"{source}:{node.start_mark.line + 1}", message))
    return places, wrong


def _other_number(node: yaml.Node) -> str | None:
    """Return the problem with a number that YAML 1.1 would misread, such as 0500 as octal, or None."""
    if node.tag not in _NUMBERS:
        return None
    if ":" in node.value:
        return "contains a colon, and YAML reads 1:30 as 90: write plain digits, a unit such as 90s, or quoted text"
    if _OCTAL.fullmatch(node.value):
        return "starts with 0, and YAML reads 0500 as 320: remove the 0, or quote the text"
    return None


def _number_as_text(node: yaml.Node) -> str | None:
    """Return the problem with an unquoted number that YAML 1.1 reads as text, such as 1e9, or None.

    The keys of segmint accept such text as a number, but a user's code would receive the text.
    """
    is_plain = isinstance(node, yaml.ScalarNode) and node.style is None
    if is_plain and node.tag == _TEXT and _POWER.fullmatch(node.value):
        form = "write the number with a point and a signed power, such as 1.0e+9, or quote the text"
        return f"is {node.value}, which YAML reads as text: {form}"
    return None


def apply_override(document: Document, override: str) -> None:
    """Set one key of the document, as in "masks.points_per_side=16". Put parts that contain dots in double quotes.

    Raises `UsageError` if the override is malformed.
    """
    name, equals, text = override.partition("=")
    matches = list(_SEGMENT.finditer(name.strip()))
    key = tuple(quoted or plain for quoted, plain in (match.groups() for match in matches))
    written = ".".join(match.group(0) for match in matches)
    if not equals or not key or written != name.strip():
        raise UsageError(f"--set {name!r}: expected KEY=VALUE, such as --set masks.points_per_side=16")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        wrong = [] if node is None else _places(node, "--set", key)[1]
        if wrong:
            raise UsageError(f"--set {name}: {wrong[0].key} {wrong[0].message}")
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"--set {name}: the value is not valid YAML; put it in quotes") from error
    tree = document.data
    for depth, part in enumerate(key[:-1], start=1):
        below = tree.get(part)
        if not isinstance(below, dict | None):
            raise UsageError(f"--set {name}: {dotted(key[:depth])} is {below!r}, which can't contain keys")
        tree[part] = below = dict(below or {})  # a copy, because other keys may be aliases of the same value
        tree = below
    tree[key[-1]] = value
    for known in [place for place in document.places if place[: len(key)] == key]:
        del document.places[known]
    document.places[key] = f"--set {name.strip()}"


def contradictions(document: Document, overrides: Iterable[str]) -> Iterator[str]:
    """Yield a sentence for each key to which the document and an override give different values."""
    for override in overrides:
        alone = Document({}, {}, "--set")
        apply_override(alone, override)
        yield from _differing((), document.data, alone.data)


def _differing(key: Key, before: Any, now: Any) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted(before.keys() & now.keys()):
            yield from _differing((*key, name), before[name], now[name])
    elif before != now:
        yield f"{dotted(key)} is {before!r} and {now!r}"


def check(document: Document, model: type[Model]) -> Model:
    """Validate a document against a model. Raises one `UsageError` that lists every problem in document order."""
    problems = [*_storage_options(document), *_misread_scalars(document, model)]
    try:
        value = model.model_validate(document.data)
    except ValidationError as error:
        known = {problem.key for problem in problems}
        problems += [problem for problem in problems_of(error, document, model) if problem.key not in known]
        value = None
    if problems or value is None:
        raise UsageError(_report(document.source, problems))
    return value


def _report(source: str, problems: list[ConfigProblem]) -> str:
    ordered = sorted(problems[:SHOWN], key=lambda problem: (_line(problem.where), problem.key))
    lines = [f"  {problem.where}: {problem.key} {problem.message}" for problem in ordered]
    lines += [f"  and {len(problems) - SHOWN:,} more"] if len(problems) > SHOWN else []
    return redact("\n".join([f"{source} has {counted(len(problems), 'problem')}:", *lines]))


def _line(where: str) -> int:
    number = where.rpartition(":")[2]
    return int(number) if number.isdigit() else 1_000_000


def _storage_options(document: Document) -> Iterator[ConfigProblem]:
    """Remove options that `Storage` rejects, such as credentials, and yield a problem for each."""
    storage = document.data.get("storage")
    for prefix, options in list(storage.items()) if isinstance(storage, dict) else ():
        for name in list(options) if isinstance(options, dict) else ():
            try:
                Storage({str(prefix): {str(name): options[name]}})
            except UsageError as error:
                del options[name]
                key = ("storage", str(prefix), str(name))
                yield ConfigProblem(dotted(key), document.place(key), f"is invalid: {error}")


def _misread_scalars(document: Document, model: type[BaseModel]) -> Iterator[ConfigProblem]:
    """Remove booleans in place of numbers, and numbers in place of dates. Yields a problem for each.

    Pydantic would accept true as 1, and 0 as 1970-01-01.
    """
    for tree, key in list(_leaves(document.data)):
        value = tree.get(key[-1])  # None if an alias of this mapping was handled before
        types = plain_types(model, key) if isinstance(value, int | float) else set()
        is_number = isinstance(value, bool) and types & {int, float} and bool not in types
        if is_number or date in types:
            del tree[key[-1]]
            expected = "a number" if is_number else "a date, such as 2026-03-31"
            yield ConfigProblem(dotted(key), document.place(key), f"is {str(value).lower()}: expected {expected}")


def _leaves(tree: Any, above: Key = ()) -> Iterator[tuple[dict[Any, Any], Key]]:
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(value, dict | list):
            if len(above) < 8:  # a YAML document may contain itself
                yield from _leaves(value, (*above, key))
        elif isinstance(tree, dict):
            yield tree, (*above, key)
