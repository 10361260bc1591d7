"""Custom stages: their interface, the checks of both its sides, and loading by name.

Interface of a custom stage: the input and output of its callable, and checks of both.

A stage is a class, or a function that returns a callable. The build passes the stage's arguments to it. A stage has
these attributes. Only `name` is required:

- `name`: up to 63 lowercase letters, digits, and underscores, starting with a letter. The column is `stage_<name>`.
- `fields`: the fields of that column, each with an Arrow type or the type's name. Without `fields`, there is no column.
- `table`: the table that contains the column, either `images` (the default) or `masks`.
- `labels`: whether the stage sets labels of masks.
- `masks`: whether the stage makes masks itself (a *segmenter*), in place of SAM or, after `segment`, in addition to it.
  It then calls `StageRow.with_masks` for each row that it returns, and has neither `fields` nor `labels`.
- `wants_original`: whether `StageRow.original` is needed. Only for a segmenter in place of SAM.
- `wants_prompts`: whether the catalog's column `prompts` is needed. Only for a segmenter. Like the attributes below, it
  can be a class method that receives the arguments.
- `license`, `terms`, and `weights_sha256`: the license of a segmenter as an SPDX identifier or a text, its terms as a
  URL or a text, and the SHA-256 of its files. Each is a text, or a class method that receives the arguments and returns
  a text or None. They don't affect the stage's identity.
- `version`: a text that changes whenever the stage's results change. Without it, the SHA-256 of the module's source
  identifies the code. If `version` is a class method, it receives the arguments, and its result must identify them as
  well, for example by containing the hashes of files that the arguments name.
"""

import importlib
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
from pydantic import ValidationError

from segmint.catalogs.dataset.manifest import ModelTerms
from segmint.catalogs.dataset.mask_labels import MASK_LABEL
from segmint.catalogs.findings import is_custom_reason
from segmint.catalogs.layout import bytes_sha256, json_sha256, wrong_fields
from segmint.catalogs.lineage import STAGE_PREFIX, StageColumn
from segmint.infra.arrays import Bools, Box, Pixels
from segmint.infra.errors import UsageError
from segmint.operators.images import decode_jpeg

_LONGEST_DETAIL = 1000
_RELEASED, _ORIGINAL = "release", "original"  # columns with JPEGs


class StageContractError(UsageError):
    """Raised when a stage violates its interface. No row is to blame, so the run ends."""


class Reject(Exception):
    """Verdict of a stage that rejects a row. The stage returns it in place of the row, or raises it."""

    def __init__(self, reason: str, detail: str) -> None:
        """`reason` is a word such as `blurry`: up to 63 lowercase letters, digits, and underscores.

        `detail` is a sentence that states what the stage found and what it expected. The dataset stores the sentence,
        so it must not contain image data. Raises `StageContractError` if `reason` is one of segmint's own reasons, or
        if `detail` is empty.
        """
        super().__init__(f"{reason}: {detail}")
        if not isinstance(reason, str) or not is_custom_reason(reason):
            raise StageContractError(
                f"Reject: the reason is {reason!r}; expected up to 63 lowercase letters, digits, and underscores, "
                "starting with a letter, and none of segmint's own reasons"
            )
        if not isinstance(detail, str) or not detail.strip():
            raise StageContractError(f"Reject: the detail of {reason} is {detail!r}; expected a sentence")
        self.reason = reason
        self.detail = detail.encode("utf-8", "replace").decode()[:_LONGEST_DETAIL]

    def __reduce__(self) -> tuple[type["Reject"], tuple[str, str]]:
        """Support pickling."""
        return type(self), (self.reason, self.detail)


@dataclass(frozen=True)
class Mask:
    """Mask that a segmenter found in an image. All coordinates are in pixels of the released image, `StageRow.image`.

    The segmenter may leave out everything except `pixels`. A mask without pixels is dropped.
    """

    pixels: Bools | Mapping[str, Any]
    """(H, W) bool array of the image's size, or COCO's run-length encoding: a dict with `size`, which is [H, W], and
    `counts`, either compressed (text or bytes) or a list of numbers."""
    score: float | None = None
    """The model's estimate of the mask's quality, stored as `predicted_iou`."""
    stability: float | None = None
    """Stored as `stability_score`."""
    label: str | None = None
    """Name of the object that the mask covers."""
    label_score: float | None = None
    """The model's score for the label."""
    label_source: str | None = None
    """Who set the label: `import`, or `model:` followed by the SHA-256 of the weights. None: the segmenter."""
    points: Sequence[tuple[float, float, int]] = ()
    """The points that the mask was made from: x, y, and 1 for a point inside the mask or 0 for one outside."""
    box: Box | None = None
    """The box that the mask was made from: x, y, width, and height."""
    text: str | None = None
    """The text that the mask was made from."""


class StageRow(Mapping[str, Any]):
    """Read-only row as a stage sees it: the columns that precede this stage in a build, and the released image.

    A row never contains an unredacted pixel.
    """

    def __init__(self, columns: Mapping[str, Any], place: int | None = None) -> None:
        """`columns` contains the row's values, including `ordinal`, `id`, and `release`, which is the released JPEG.

        If `place` is given, `columns` contains Arrow columns instead. The value at position `place` of a column is then
        converted when the stage first reads it.
        """
        self._columns, self._place = columns, place
        self._read: dict[str, Any] = {}  # copies from the `with_` methods share this dictionary and the next one
        self._pixels: dict[str, Pixels] = {}  # decoded JPEGs, by column
        self.values_set: Mapping[str, Any] = {}
        self.mask_values: Sequence[Mapping[str, Any] | None] | None = None
        self.masks_found: Sequence[Mask] | None = None

    @property
    def image(self) -> Pixels:
        """The released image, (H, W, 3) uint8 RGB, decoded once. Raises `ValueError` if the dataset lacks it."""
        if not self[_RELEASED]:
            raise ValueError(f"image {self['id']} isn't in the dataset, which has only annotations")
        return self._decoded(_RELEASED)

    @property
    def original(self) -> Pixels:
        """The redacted photograph before it was made smaller, (H, W, 3) uint8 RGB, decoded once.

        It has the size of the upright source, or is the released image if that has this size. Raises `AttributeError`
        if the class doesn't set `wants_original`.
        """
        if _ORIGINAL not in self._columns:
            raise AttributeError("the row has no original: set wants_original = True in the class")
        return self.image if self[_ORIGINAL] is None else self._decoded(_ORIGINAL)

    def _decoded(self, column: str) -> Pixels:
        if column not in self._pixels:
            self._pixels[column] = decode_jpeg(self[column])
        return self._pixels[column]

    def free_image(self) -> None:
        """Release the memory of the decoded images and of the original, if any."""
        self._pixels.clear()
        self._read.pop(_ORIGINAL, None)

    def with_values(self, **values: Any) -> Self:
        """Return a copy of the row with values for the stage's fields. Use this if the stage's `table` is `images`.

        Fields without a value become null.
        """
        row = copy(self)
        row.values_set = values
        return row

    def with_mask_values(self, values: Sequence[Mapping[str, Any] | None]) -> Self:
        """Return a copy of the row with one entry per mask, in order.

        An entry contains values for the fields of a stage whose `table` is `masks`, and a label if the stage sets
        labels. A label consists of `label`, `label_score`, and `label_source`, which is `model:` followed by the
        SHA-256 of the weights. If a mask's entry is None, the mask doesn't change.
        """
        row = copy(self)
        row.mask_values = values
        return row

    def with_masks(self, masks: Sequence[Mask]) -> Self:
        """Return a copy of the row with the masks that a segmenter found, in the order in which they are stored."""
        row = copy(self)
        row.masks_found = masks
        return row

    def __getitem__(self, name: str) -> Any:
        if self._place is None:
            return self._columns[name]
        if name not in self._read:
            self._read[name] = self._columns[name][self._place].as_py()
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


StageCall = Callable[[Sequence[StageRow]], Sequence[StageRow | Reject]]
"""Callable of a stage. It receives a batch of rows and returns each row, or a `Reject` in its place, in the same order.

The number of rows in a batch can vary, so the result for a row must not depend on the other rows.
"""


def refusal(error: BaseException) -> str | None:
    """Extract the message of a worker's `StageContractError` from Ray's longer text. Return None if there is none."""
    found = re.findall(rf"\b{StageContractError.__name__}: (.+)", str(error))
    return found[-1] if found else None


def call_stage(name: str, stage: StageCall, rows: Sequence[StageRow]) -> list[StageRow | Reject]:
    """Call a stage with a batch, and check that it returns every row in order.

    Raises `StageContractError`, which names the stage, if the stage drops, adds, reorders, or replaces rows. The
    stage's own errors propagate.
    """
    returned = stage(rows)
    if not isinstance(returned, Sequence):
        raise StageContractError(f"the stage {name} returned {type(returned).__name__}: expected a list of rows")
    if len(returned) != len(rows):
        raise StageContractError(
            f"the stage {name} returned {len(returned)} rows for {len(rows)}: it must return each row, in order, or a "
            "Reject in its place"
        )
    for row, result in zip(rows, returned, strict=True):
        if isinstance(result, Reject):
            continue
        if not isinstance(result, StageRow):
            raise StageContractError(
                f"the stage {name} returned {type(result).__name__} for image {row['id']}: expected the row, the "
                "result of one of its with_ methods, or a Reject"
            )
        if result["ordinal"] != row["ordinal"]:
            raise StageContractError(
                f"the stage {name} returned image {result['id']} in place of image {row['id']}: it must return "
                "the rows in their order"
            )
    return list(returned)


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
        return json_sha256(self.identity)

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
            models.append(json_sha256(spec))
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
    return bytes_sha256(Path(file).read_bytes())
