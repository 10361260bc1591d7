"""Lookup of a custom stage by its dotted name, and checks of its declared attributes before a build starts."""

import hashlib
import importlib
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from segmint.catalogs.dataset.manifest import ModelTerms
from segmint.catalogs.dataset.mask_labels import MASK_LABEL
from segmint.catalogs.layout import canonical_json, wrong_fields
from segmint.catalogs.stages import STAGE_PREFIX, StageColumn
from segmint.infra.errors import UsageError
from segmint.operators.custom.contract import StageCall, StageContractError


@dataclass(frozen=True)
class StageSpec:
    """A custom stage with its arguments and attributes. Each worker loads the code again and compares `version`."""

    stage: str  # dotted name
    arguments: Mapping[str, Any]
    name: str
    version: str
    column: StageColumn | None = None
    labels: bool = False
    versions_arguments: bool = field(default=False, compare=False)  # whether `version` also identifies the arguments
    masks: bool = False  # whether it is a segmenter
    wants_original: bool = False
    wants_prompts: bool = False

    @property
    def label(self) -> str:
        """Name of the stage's column, which is also the stage's name in rejected rows."""
        return f"{STAGE_PREFIX}{self.name}"

    @property
    def sets_masks(self) -> bool:
        """True if the stage sets columns of masks."""
        return self.labels or (self.column is not None and self.column.table == "masks")

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that determines the stage's results, as JSON values."""
        arguments = {} if self.versions_arguments else {"arguments": dict(self.arguments)}
        if self.masks:
            wants = {"wants_original": self.wants_original, "wants_prompts": self.wants_prompts}
            return {"stage": self.stage, "version": self.version, **wants, **arguments}
        column = None if self.column is None else self.column.model_dump(mode="json")
        return {"stage": self.stage, "version": self.version, "column": column, "labels": self.labels, **arguments}

    @property
    def sha256(self) -> str:
        """Hash of the stage's identity. For a segmenter, it takes the place of the hash of SAM's weights."""
        return hashlib.sha256(canonical_json(self.identity)).hexdigest()

    def start(self) -> StageCall:
        """Load the stage in this process and call it with its arguments.

        Raises `StageContractError` if this process finds different code than the build, or if the stage can't start.
        """
        try:
            here = load_stage(self.stage, self.arguments)
            if here != self:
                raise UsageError(f"its version here is {here.version}, and that of the build is {self.version}")
            call: StageCall = _find(self.stage)(**self.arguments)
            if not callable(call):
                raise UsageError(f"it isn't callable: it is {type(call).__name__}")
            return call
        except Exception as error:
            what = str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
            text = " ".join(f"the stage {self.name} can't start in a worker: {what}".split())
            raise StageContractError(text) from error


def adding_models(identity: Mapping[str, Any]) -> frozenset[str]:
    """Return the values of the column `model` in masks that stages added.

    `identity` contains a dataset's identity keys. The values are `StageSpec.sha256` of the stages.
    """
    models = []
    for stage in identity.get("stages", {}).values():
        if "filters" in stage:
            spec = {name: value for name, value in stage.items() if name not in ("place", "after", "filters")}
            models.append(hashlib.sha256(canonical_json(spec)).hexdigest())
    return frozenset(models)


def load_stage(stage: str, arguments: Mapping[str, Any]) -> StageSpec:
    """Import the module of a stage, given by its dotted name, and return the stage's specification.

    Raises `UsageError`, which names the stage, if the module or the name doesn't exist, if the stage can't be called
    with these arguments, or if its attributes violate `segmint.operators.custom.contract`.
    """
    found = _find(stage)
    name, fields = getattr(found, "name", None), getattr(found, "fields", {})
    table, labels = getattr(found, "table", "images"), getattr(found, "labels", False)
    try:
        inspect.signature(found).bind(**arguments)
        json.dumps(dict(arguments), ensure_ascii=False, default=repr).encode()  # fails for unpaired surrogates
        described = [_field(str(key), kind) for key, kind in dict(fields).items()]
        # A stage without a column needs a valid name, too, so check it with a placeholder field.
        column = StageColumn.model_validate({"name": name, "table": table, "fields": described or [_ANY]})
        version = getattr(found, "version", None)
        by_arguments = callable(version)
        version = _source_sha256(found) if version is None else _stated(found, "version", arguments)
        if not isinstance(version, str) or not version or not isinstance(labels, bool):
            raise TypeError(f"version is {version!r} and labels is {labels!r}: expected text, and true or false")
        of_segmenter = {each: _stated(found, each, arguments, False) for each in _OF_SEGMENTER}
        for each, value in of_segmenter.items():
            if not isinstance(value, bool):
                raise TypeError(f"{each} is {value!r}: expected true or false")
            if value and not of_segmenter["masks"]:
                raise ValueError(f"it sets {each}, which only a stage with masks = True may do")
        if of_segmenter["masks"] and (described or labels):
            raise ValueError("a stage with masks = True has neither fields nor labels")
        if labels and described and (table != "masks" or set(MASK_LABEL) & set(dict(fields))):
            raise ValueError("a stage with labels has fields of masks only, and none of the label's names")
    except ValidationError as error:
        (first, *_) = error.errors()
        where = ".".join(map(str, first["loc"])) or "column"
        raise UsageError(f"the stage {stage} has an invalid {where}: {first['msg']}") from error
    except Exception as error:
        raise UsageError(f"the stage {stage} is invalid: {type(error).__name__}: {error}") from error
    own = column if described else None
    return StageSpec(stage, dict(arguments), column.name, version, own, labels, by_arguments, **of_segmenter)


def stated_terms(stage: str, arguments: Mapping[str, Any]) -> ModelTerms:
    """Return what a segmenter's class states about its model. Raise `UsageError` if an attribute is invalid."""
    found, texts = _find(stage), dict[str, Any]()
    try:
        for name in ModelTerms.model_fields:
            texts[name] = _stated(found, name, arguments)
        return ModelTerms.model_validate(texts)
    except ValidationError as error:
        raise UsageError(f"the segmenter {stage} has invalid attributes: {wrong_fields(error)}") from error
    except Exception as error:
        raise UsageError(
            f"the segmenter {stage} can't state its license and terms: {type(error).__name__}: {error}"
        ) from error


def _stated(found: Any, name: str, arguments: Mapping[str, Any], default: Any = None) -> Any:
    """Return an attribute of a stage, or what it returns for the arguments if it is a class method."""
    value = getattr(found, name, default)
    return value(**arguments) if callable(value) else value


_OF_SEGMENTER = ("masks", "wants_original", "wants_prompts")
_ANY = {"name": "any", "type": "bool"}


def _find(stage: str) -> Callable[..., Any]:
    module_name, _, name = stage.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except Exception as error:
        raise UsageError(
            f"the stage {stage} can't be imported: {type(error).__name__}: {error}. Give the dotted name of a class or "
            "function in a module that is installed, or in a folder of PYTHONPATH, on every node"
        ) from error
    makes_callables = inspect.isclass(found) and any("__call__" in vars(base) for base in found.__mro__)
    if not inspect.isfunction(found) and not makes_callables:
        raise UsageError(f"the stage {stage} isn't a function or a class with a __call__ method")
    return found  # type: ignore[no-any-return]


def _field(name: str, kind: Any) -> dict[str, Any]:
    """Convert a name and an Arrow type to a field of a stage's column, in the format of `StageField`."""
    kind = pa.type_for_alias(kind) if isinstance(kind, str) else kind
    if not isinstance(kind, pa.DataType):
        raise TypeError(f"{name}: expected an Arrow type or the name of one, got {kind!r}")
    if pa.types.is_list(kind):
        return {"name": name, "type": "list", "fields": [_field("item", kind.value_type)]}
    if pa.types.is_struct(kind):
        return {"name": name, "type": "struct", "fields": [_field(each.name, each.type) for each in kind]}
    return {"name": name, "type": str(kind)}


def _source_sha256(found: Any) -> str:
    """Return the SHA-256 of the source file of a stage's module."""
    file = getattr(sys.modules[found.__module__], "__file__", None)
    if file is None or not file.endswith(".py"):
        raise ValueError("it needs a version, because its module has no source file")
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()
