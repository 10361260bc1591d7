"""Base class and field types of the records in a dataset's files."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Frozen(BaseModel):
    """Immutable record. Unknown fields in parsed data are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Sha256 = Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
"""SHA-256 as 64 lowercase hexadecimal digits."""

ExactCount = Annotated[int, Field(ge=0, lt=1 << 53)]
"""Whole number that every JSON parser reads exactly."""
