"""Base class of the records in a dataset's files."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Immutable record. Unknown fields in parsed data are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
