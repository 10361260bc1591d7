"""Description of the dataset format: columns, JSON keys, and file names, each with its type, as the code has them.

`tests/catalogs/dataset/format-N.json` is the frozen description of format N. After `SCHEMA_VERSION` was raised,

    python -m tests.support.format_description

writes the description of the new format. It never changes the file of a format that has one.
"""

import json
import types
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pyarrow as pa
from pydantic import BaseModel

from segmint.catalogs import layout
from segmint.catalogs.dataset.commits import PRIVACY_COUNTS, REJECTED, Commit, FileEntry, shards_index
from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.dataset.mask_labels import MODEL
from segmint.catalogs.dataset.outputs import OutputNote
from segmint.catalogs.dataset.ratings import Rating
from segmint.catalogs.dataset.submissions import Return, Submission
from segmint.catalogs.dataset.tombstones import ShardFingerprints, TakedownRequest, Tombstone
from segmint.catalogs.dataset.versions import Version
from segmint.catalogs.layout import SCHEMA_VERSION
from segmint.catalogs.parquet import ADDED as OPTIONAL_COLUMNS
from segmint.catalogs.parquet import STAGED
from segmint.operators import rows
from segmint.operators.segment import numerics
from segmint.operators.segment.numerics import Numerics
from segmint.operators.shards.put import annotations_json
from segmint.pipeline.config.config import Config, identity

COMMAND = "python -m tests.support.format_description"
ANY_KEY = "<key>"
"""Key that stands for all keys of an object whose keys are data."""

NULL_OR, ONE_OF = "<null or>", "<one of>"
MAY_LACK = frozenset(
    {"adding", "applied", "applied_columns", "lineage", "most_redacted", "segmenter", "version_before"}
)
"""Keys that a file contains only if there is a value."""


_SHA256 = '"[0-9a-f]{64}"'
_KEY = "U1NIU0lHAAAAAQAAADMAAAALc3NoLWVkMjU1MTkAAAAg"  # first characters of every signature by an Ed25519 key
FORMS = {
    "id.json": r'\{"dataset_id":"[0-9a-f]{32}"\}\n',
    "reservations": r'\{("generation":\d+,"paths":\[("[\w/.-]+",?)*\](,"shard":\d+)?|"shards":\[[\d,]*\])\}\n',
    "summaries/leaves": rf"\[({_SHA256},?)+\]\n",
    "summaries": r'\{"bytes":\d+,"counts":(\{[\w":,.-]*\}),"digest":"[0-9a-f]{12}",'
    r'"files":\d+,("most_redacted":[\d\[\].,e-]+,)?"numerics":\{[\w":,.-]*\},"shards":\d+\}\n',
    "versions": rf"-----BEGIN SSH SIGNATURE-----\n({_KEY}[\w+/]{{26}}\n([\w+/]{{70}}\n){{2}}[\w+/]{{37}}=)\n"
    "-----END SSH SIGNATURE-----\n",
    "": "(?s:.*)",
}
"""Patterns of small files' contents, by the beginning of the file's path; the first one that matches applies."""


def frozen_path(version: int = SCHEMA_VERSION) -> Path:
    """The file with the description of a format."""
    return Path(__file__).resolve().parents[1] / "catalogs" / "dataset" / f"format-{version}.json"


def describe() -> dict[str, Any]:
    """The description of the format that the code reads and writes."""
    tables = {"catalog": STAGED, **rows.SCHEMAS}
    return {
        "schema_version": SCHEMA_VERSION,
        "columns": {name: columns_of(schema) for name, schema in tables.items()},
        "optional columns of the catalog": OPTIONAL_COLUMNS.names,
        "json": _documents(),
        "config": sorted(_paths(identity(_config()))),
        "config of a segmenter": sorted(_paths(identity(_config(segmenter=_SEGMENTER))["segmenter"])),
        "config of a stage that adds masks": sorted(
            _paths(identity(_config(stages=[{**_SEGMENTER, "after": "segment"}]))["stages"]["bright"])
        ),
        "numerics": {
            name: kind for name, kind in type_of(Numerics).items() if name not in {"unrecorded", *numerics.ADDED}
        },
        "values": {
            "source": list(rows.SOURCES),
            "label_source": [rows.PERSON, rows.IMPORT, MODEL],
            "counts": [REJECTED, *PRIVACY_COUNTS],
        },
        "names": list(layout.PATTERNS),
        "forms": FORMS,
        "json in tars": annotations_json(1, "sa_1.jpg", (3, 4), [_mask(None), _mask(10_000)]).decode(),
    }


def columns_of(schema: pa.Schema) -> dict[str, str]:
    """The type of each column and of each value inside it, in order."""
    return {name: kind for field in schema for name, kind in _values(field)}


def changes(frozen: Any, now: Any, at: str = "") -> list[str]:
    """A line for each difference between two descriptions."""
    if isinstance(frozen, list) and isinstance(now, list) and all(isinstance(each, str) for each in [*frozen, *now]):
        frozen, now = dict.fromkeys(frozen), dict.fromkeys(now)
    if not (isinstance(frozen, dict) and isinstance(now, dict)):
        return [] if frozen == now else [f"{at}was {json.dumps(frozen)}, is {json.dumps(now)}"]
    lines = []
    for key in [*frozen, *(each for each in now if each not in frozen)]:
        if key not in now:
            lines.append(f"{at}{key}: removed")
        elif key not in frozen:
            lines.append(f"{at}{key}: added")
        else:
            lines += changes(frozen[key], now[key], f"{at}{key}: ")
    if not lines and list(frozen) != list(now):
        lines.append(f"{at}in another order")
    return lines


def refusal(lines: list[str]) -> str:
    """The message for a change of the format."""
    return (
        f"format {SCHEMA_VERSION} is frozen, but the code differs from {frozen_path().name}:\n  "
        + "\n  ".join(lines)
        + "\nEven an addition needs a new schema_version. Undo the change, or raise SCHEMA_VERSION in "
        f"catalogs/layout.py, run `{COMMAND}`, and change docs/dataset.md"
    )


def misfits(value: Any, kind: Any, at: str = "") -> Iterator[str]:
    """A line for each key or value of a JSON file that isn't as its description says."""
    if isinstance(kind, dict) and NULL_OR in kind:
        if value is not None:
            yield from misfits(value, kind[NULL_OR], at)
    elif isinstance(kind, dict) and ONE_OF in kind:
        if all(any(misfits(value, each)) for each in kind[ONE_OF]):
            yield f"{at}: {json.dumps(value)} is none of the kinds"
    elif isinstance(kind, dict) and isinstance(value, dict):
        for key in value:
            if key in kind or ANY_KEY in kind:
                yield from misfits(value[key], kind.get(key, kind.get(ANY_KEY)), f"{at}.{key}")
            else:
                yield f"{at}.{key}: not in the description"
        yield from (f"{at}.{key}: missing" for key in sorted(kind.keys() - value.keys() - MAY_LACK - {ANY_KEY}))
    elif isinstance(kind, list) and isinstance(value, list):
        for place, each in enumerate(value):
            yield from misfits(each, kind[place % len(kind)], f"{at}[{place}]")
    elif isinstance(kind, dict | list) or not _is_leaf(value, kind.split(" | ")):
        yield f"{at}: {json.dumps(value)}, expected {json.dumps(kind)}"


def type_of(kind: Any, inside: tuple[Any, ...] = ()) -> Any:
    """The description of a type: names of plain types, and the keys of models and dataclasses with their types."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return type_of(arguments[0], inside)
    if origin is Literal:
        return " | ".join(map(json.dumps, arguments))
    if origin in (Union, types.UnionType):
        kinds = [type_of(each, inside) for each in arguments if each is not type(None)]
        found = kinds[0] if len(kinds) == 1 else {ONE_OF: kinds}
        if len(kinds) == len(arguments):
            return found
        return f"{found} | null" if isinstance(found, str) else {NULL_OR: found}
    if origin in (tuple, list, frozenset):
        return [type_of(each, inside) for each in arguments if each is not Ellipsis]
    if origin is not None and issubclass(origin, Mapping):
        return {ANY_KEY: type_of(arguments[1], inside)}
    if kind in inside:
        return kind.__name__
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        fields = {name: field.annotation for name, field in kind.model_fields.items()}
    elif is_dataclass(kind):
        fields = {name: hint for name, hint in get_type_hints(kind).items() if hint is not KW_ONLY}
    else:
        return kind.__name__
    return {name: type_of(each, (*inside, kind)) for name, each in sorted(fields.items())}


def _values(field: pa.Field, above: str = "") -> Iterator[tuple[str, str]]:
    name, kind = above + field.name, field.type
    inner, lists = kind, 0
    while pa.types.is_list(inner):
        inner, lists = inner.value_type, lists + 1
    spelled = "struct" if pa.types.is_struct(inner) else str(inner)
    yield name, "list<" * lists + spelled + ">" * lists + ("" if field.nullable else " not null")
    if pa.types.is_struct(inner):
        for each in inner:
            yield from _values(each, f"{name}{'[]' * lists}.")


def _documents() -> dict[str, Any]:
    """The keys of each JSON file, by its name or folder."""
    file = FileEntry("shards/sa_000000-000000000000.tar", 1, "0" * 64)
    commit = Commit(0, 1, (0, 1), "0" * 12, "0" * 64, {"images": 1}, (file,), ((1, 0.5),))
    tombstone = Tombstone(request=TakedownRequest(), reason="", when="", version_before="", images=())
    version = Version(
        number=1,
        digest="",
        before=None,
        command="",
        reason=None,
        when="",
        code_version="",
        counts={},
        files={},
        commits=(),
    )
    return {
        "dataset.json": type_of(DatasetManifest),
        "shards.json": _shape(json.loads(shards_index("", [commit]))),
        "commits": {
            **_shape(json.loads(commit.to_json())),
            "counts": {ANY_KEY: "int"},
            "most_redacted": [["int", "float"]],
        },
        "annotations": type_of(Submission),
        "annotations, returns": type_of(Return),
        "annotations/ratings": type_of(Rating),
        "tombstones": _written(tombstone),
        "fingerprints": _written(ShardFingerprints()),
        "outputs": type_of(OutputNote),
        "versions": _written(version),
    }


def _written(record: Any) -> dict[str, Any]:
    """The keys of a record's file, some of which `to_json` adds."""
    return dict(sorted({**_shape(json.loads(record.to_json())), **type_of(type(record))}.items()))


def _shape(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shape(each) for key, each in sorted(value.items())}
    if isinstance(value, list):
        return [_shape(each) for each in value[:1]]
    return "null" if value is None else type(value).__name__


def _is_leaf(value: Any, kinds: list[str]) -> bool:
    name = "null" if value is None else type(value).__name__
    return bool({name, json.dumps(value), "Any"} & {*kinds}) or (name == "str" and "date" in kinds)


_SEGMENTER = {
    "stage": "tests.support.segmenters.Bright",
    "filters": {
        "min_score": 0.5,
        "min_area": 1,
        "max_area_ratio": 0.5,
        "nms_iou": 0.5,
        "cleanup_area": 1,
        "drop_redaction_artifacts": 0.5,
    },
}


def _config(**more: Any) -> Config:
    needed = {"name": "x", "catalog": "x.csv", "output": "x", "license": {"allow": ["CC0-1.0"]}}
    return Config.model_validate({**needed, **more})


def _paths(tree: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _paths(value, f"{above}{key}.")
        else:
            yield above + key


def _mask(container: int | None) -> dict[str, Any]:
    return {
        "segmentation": {"size": [3, 4], "counts": "0"},
        "bbox": [0.0, 0.0, 1.0, 1.0],
        "area": 4,
        "predicted_iou": 0.5,
        "stability_score": 0.5,
        "crop_box": [0.0, 0.0, 4.0, 3.0],
        "point_coords": [[0.5, 0.5]],
        "output": 0,
        "container": container,
    }


def main() -> None:
    """Write the description of a format that has none yet."""
    path = frozen_path()
    if path.exists():
        raise SystemExit(f"{path} exists, and a frozen format never changes: raise SCHEMA_VERSION first")
    path.write_text(json.dumps(describe(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
