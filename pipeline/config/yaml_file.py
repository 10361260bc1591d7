"""YAML configuration files: parsing with line numbers, overrides, problems with their locations, and the template."""

import datetime
import difflib
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.storage.errors import ObjectTooLargeError
from segmint.infra.storage.storage import Storage
from segmint.infra.storage.stores import check_size
from segmint.infra.uris import redact
from segmint.infra.wording import counted, listed, number

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


_TEMPLATE = """\
# segmint configuration. A commented-out key shows its default. To change it, remove the # before it and before the key
# that it is indented under. docs/configuration.md describes all keys. segmint checks this file before it starts
# anything and reports each problem with its line.

# The dataset's name: letters, digits, dots, hyphens, and underscores.
{name}
# The source catalog: a Parquet, JSON Lines, or CSV file. `segmint catalog scan FOLDER -o FILE` creates one.
{catalog}
# The output: a folder, or a bucket prefix such as s3://acme-datasets/street-2026.
{output}
# Catalog rows per shard. A shard is committed, or lost, as a whole.
#images_per_shard: 500

# The allowed licenses: SPDX identifiers, or LicenseRef-... for your own agreements.
license:
  {licenses}
# Only accept rows with `redistributable: true`.
#  require_redistributable: false

# Limits for the source images.
#ingest:
#  formats: auto
#  max_bytes: 256MiB
#  max_pixels: 250000000
#  min_short_side: 64

# Redaction of faces and license plates: the built-in detectors (for trials), `none`, or a file.
#deidentify:
#  faces:
#    detector: mtcnn
#  plates:
#    detector: clp

# The released images. `format: annotations` writes masks without images.
#release:
#  short_side: 1500
#  jpeg_quality: 95
#  format: images

# The masks. Profile `sa1b` follows the SAM paper; `official` and `sam2` follow SAM's and SAM 2's reference code.
#masks:
#  profile: sa1b
#  points_per_side: 32
#  crop_n_layers: 2
#  pred_iou_thresh: 0.88
#  stability_score_thresh: 0.95

# The weights: mobile_sam, vit_b, vit_l, vit_h, or a file. `segmint assets list` lists them. auto: vit_h on GPUs,
# mobile_sam on CPUs.
#model:
#  weights: auto
#  device: auto
# Your own model in place of `masks` and `model`, such as `{{stage: lamps.Lamps}}`; see docs/own-model.md.
#segmenter: null

# A shard of at least 100 rows is put on hold if more than this share of its rows is rejected for one reason.
#max_reject_ratio: 0.5
# How many rows of a shard may be rejected because they never work, for example because the store refuses to send them.
#max_faults: 0
# How long a part of the run may stall before it is retried.
#stall_timeout: 30min
"""


def template(name: str, catalog: str, output: str, licenses: Sequence[str]) -> str:
    """Return a configuration as YAML text. Comments list all other keys with their defaults."""
    return _TEMPLATE.format(
        name=_entry("name", name),
        catalog=_entry("catalog", catalog),
        output=_entry("output", output),
        licenses=_entry("allow", list(licenses)),
    )


def _entry(key: str, value: Any) -> str:
    import yaml  # imported here, so that the command line's help doesn't import YAML

    text: str = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    document, _, _ = text.partition("\n...")  # YAML ends a bare value with this marker
    return f"{key}: {document.rstrip()}"
