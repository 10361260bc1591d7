"""Columns that custom stages add to `images` or `masks`, as `dataset.json` describes them: one struct per stage."""

from typing import Annotated, Any, Literal, NamedTuple, Self

import pyarrow as pa
from pydantic import Field, model_validator

from segmint.catalogs.frozen import Frozen

STAGE_PREFIX = "stage_"
"""Prefix of the name of a custom stage's column."""

_Name = Annotated[str, Field(pattern=r"\A[a-z][a-z0-9_]{0,62}\z")]
_Type = Literal[
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float", "double", "string",
    "list", "struct",
]  # fmt: skip


class StageField(Frozen):
    """Value that a custom stage writes. Any value may be null.

    `type` is the name of an Arrow type. A `list` has exactly one field, which describes its elements. A `struct` has
    one or more fields.
    """

    name: _Name
    type: _Type
    fields: tuple["StageField", ...] = ()

    @property
    def arrow_type(self) -> pa.DataType:
        """Arrow type of the values."""
        if self.type == "list":
            return pa.list_(self.fields[0].arrow_type)
        if self.type == "struct":
            return pa.struct([(field.name, field.arrow_type) for field in self.fields])
        return pa.type_for_alias(self.type)

    @model_validator(mode="after")
    def _check(self) -> Self:
        least, most = {"list": (1, 1), "struct": (1, 1000)}.get(self.type, (0, 0))
        if not least <= len(self.fields) <= most:
            raise ValueError(f"{self.name}: a {self.type} can't have {len(self.fields)} fields")
        if len({field.name for field in self.fields}) < len(self.fields):
            raise ValueError(f"{self.name}: two fields have the same name")
        return self


class TableColumn(NamedTuple):
    """Column of a custom stage as it is in a table: `images` or `masks`."""

    table: str
    arrow_field: pa.Field


class StageColumn(StageField):
    """Column of the custom stage `name`: a struct at the end of the table."""

    table: Literal["images", "masks"]
    type: Literal["struct"] = "struct"

    @property
    def arrow_field(self) -> pa.Field:
        """Arrow field of the column. Its name is `stage_<name>`."""
        return pa.field(f"{STAGE_PREFIX}{self.name}", self.arrow_type)

    @property
    def in_table(self) -> TableColumn:
        """The column as it is in a table."""
        return TableColumn(self.table, self.arrow_field)


STAGE_SHA256 = "stage_sha256"
"""Last field of an applied column: the SHA-256 of the identity of the stage that computed the row's values."""


class AppliedColumn(StageColumn):
    """Column that `segmint apply` added to a finished dataset, with the stage that computes it.

    A shard may lack the column, because it was written earlier or by a build. A null value means that the stage hasn't
    judged the row yet. `removed` is true after `apply --remove`; a shard that still contains the column isn't done.
    """

    stage: str
    version: str
    arguments: dict[str, Any]
    sha256: str = Field(pattern=r"\A[0-9a-f]{64}\z")
    removed: bool = False

    @model_validator(mode="after")
    def _names_stage(self) -> Self:
        if (self.fields[-1].name, self.fields[-1].type) != (STAGE_SHA256, "string"):
            raise ValueError(f"{self.name}: the last field must be {STAGE_SHA256}, a string")
        return self
