"""The base of what the files of a dataset hold."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Values that do not change. Reading one with a field that it does not have is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
