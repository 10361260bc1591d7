"""`docs/configuration.md` against the code: every key, default and kind, and every example."""

import json
import re
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from segmint.infra.storage import connections, s3
from segmint.operators.segment.mask_config import MasksConfig
from segmint.pipeline.config.config import Config, SegmenterConfig, identity
from segmint.pipeline.config.yaml_file import apply_override, check, parse_yaml

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
OWN_MODEL = (ROOT / "docs" / "own-model.md").read_text(encoding="utf-8")

NUMERICS = {
    "deidentify.device",
    "masks.points_per_chunk",
    "model.device",
    "model.precision",
    "model.decoder_precision",
    "model.encoder",
    "model.kernels",
    "model.images_per_batch",
    "model.threads",
}
SMALLEST = {"name": "n", "catalog": "/c.csv", "output": "/o", "license": {"allow": ["CC0-1.0"]}}


def table_rows(page: str, columns: int) -> list[list[str]]:
    """The rows of all tables of so many columns, headings left out."""
    rows = [re.split(r"\s*(?<!\\)\|\s*", line.strip())[1:-1] for line in page.splitlines() if line.startswith("|")]
    return [row for row in rows if len(row) == columns and row[0].startswith("`")]


def code(cell: str) -> str:
    match = re.fullmatch("`([^`]+)`", cell)
    assert match is not None, cell
    return match[1]


def documented() -> dict[str, tuple[str, str, str]]:
    """Key → default, kind, meaning, as the page has them."""
    return {code(key): (default, kind, meaning) for key, _, default, kind, meaning in table_rows(PAGE, 5)}


def members(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Annotated:
        yield from members(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from members(member)
    else:
        yield annotation


def leaves(model: type[BaseModel], above: str = "") -> dict[str, Any]:
    """Each key of the tree that holds a value → its default. A part that is null by default has a table of its own."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        parts = [m for m in members(field.annotation) if isinstance(m, type) and issubclass(m, BaseModel)]
        if parts and field.default is not None:
            found |= leaves(parts[0], f"{above}{name}.")
        else:
            found[above + name] = field.get_default(call_default_factory=True)
    return found


def shown(default: Any) -> str:
    """A default as the page writes it: as YAML does, and a whole number without a point."""
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, float) and default.is_integer():
        default = int(default)
    return f"`{json.dumps(default).strip(chr(34))}`"


def test_every_key_is_documented_and_no_other() -> None:
    rows = [code(row[0]) for row in table_rows(PAGE, 5)]
    assert sorted(rows) == sorted(leaves(Config))


def test_every_default_is_the_codes() -> None:
    assert {key: default for key, (default, _, _) in documented().items()} == {
        key: shown(default) for key, default in leaves(Config).items()
    }


def test_the_parts_a_config_holds_have_the_defaults_of_their_classes() -> None:
    """What the page is compared with is what a user gets who names only the required keys."""
    given = Config.model_validate(SMALLEST)
    for key, default in leaves(Config).items():
        value: Any = given
        for part in key.split("."):
            value = getattr(value, part)
        if default is not PydanticUndefined:
            assert value == default, key


def test_the_defaults_of_the_other_profiles_are_the_codes() -> None:
    ours, *others = (
        MasksConfig.model_validate({"profile": profile}).model_dump(exclude={"profile"})
        for profile in ("sa1b", "official", "sam2")
    )
    differing = {
        f"masks.{key}": [shown(other[key]) for other in others]
        for key, value in ours.items()
        if any(other[key] != value for other in others)
    }
    assert {code(key): values for key, *values in table_rows(PAGE, 3) if key.startswith("`masks.")} == differing


def test_every_key_is_of_the_kind_that_the_page_says() -> None:
    tree = identity(Config.model_validate({**SMALLEST, "masks": {"use_m2m": True}}))  # not stored if it is false

    def keys(value: Any, above: str = "") -> Iterator[str]:
        for name, item in value.items():
            yield from keys(item, f"{above}{name}.") if isinstance(item, dict) else [above + name]

    pinned = {*keys(tree), "stages", "segmenter"}  # which a tree without any lacks
    expected = {
        key: "identity" if key in pinned else "numerics" if key in NUMERICS else "runtime" for key in leaves(Config)
    }
    assert {key: kind for key, (_, kind, _) in documented().items()} == expected


def test_every_key_of_a_segmenter_is_documented_with_the_default_of_the_code() -> None:
    rows = {code(key): default for key, default, _ in table_rows(PAGE, 3) if key.startswith("`segmenter.")}
    assert rows == {key: shown(default) for key, default in leaves(SegmenterConfig, "segmenter.").items()}


def test_every_key_has_a_meaning() -> None:
    assert [key for key, (_, _, meaning) in documented().items() if not meaning] == []


def test_the_options_of_stores_are_the_codes() -> None:
    rows = [(code(key), meaning) for key, meaning in table_rows(PAGE, 2)]
    first = rows.index(next(iter(s3.OPTIONS.items())))
    assert dict(rows[first : first + len(s3.OPTIONS)]) == s3.OPTIONS
    behind = [key for key, _ in rows[first + len(s3.OPTIONS) :]]
    assert behind[: len(connections.OPTIONS)] == list(connections.OPTIONS)


def examples() -> list[str]:
    return [block for page in (PAGE, OWN_MODEL) for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]


@pytest.mark.parametrize("text", examples(), ids=lambda text: text.splitlines()[0])
def test_every_example_is_a_configuration(text: str) -> None:
    document = parse_yaml(text, "example")
    check(replace(document, data={**SMALLEST, **document.data}), Config)


def test_the_overrides_shown_are_taken() -> None:
    shown_overrides = [a or b for a, b in re.findall(r"--set (?:'([^']+)'|(\S+))", PAGE)]
    assert len(shown_overrides) == 2
    document = parse_yaml(examples()[0], "example")
    for override in shown_overrides:
        apply_override(document, override)
    config = check(document, Config)
    assert config.masks.points_per_side == 16
    assert config.storage == {"s3://data.acme.example": {"profile": "vendor"}}
