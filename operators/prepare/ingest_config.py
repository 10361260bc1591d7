"""Configuration of ingest: the containers to decode and the limits that an image must meet."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from segmint.infra.errors import UsageError
from segmint.infra.units import Bytes, Seconds
from segmint.infra.version import VERSION
from segmint.operators.prepare.containers import SUPPORTED


def _formats(value: Any) -> Any:
    if value == "auto":
        return value
    if isinstance(value, list | tuple) and value and all(each in SUPPORTED for each in value):
        return tuple(each for each in SUPPORTED if each in value)
    raise ValueError(f"expected auto or a list of {', '.join(SUPPORTED)}, as in [JPEG, PNG]")


class IngestConfig(BaseModel):
    """The `ingest:` part of a configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    formats: Annotated[Literal["auto"] | tuple[str, ...], BeforeValidator(_formats)] = "auto"
    """Names of the containers to decode.

    `auto` means the containers with which the dataset was created or, in a new dataset, all containers.
    """
    max_pixels: int = Field(250_000_000, gt=0)  # width × height
    min_short_side: int = Field(64, gt=0)  # pixels
    max_bytes: Bytes = Field(256 * 2**20, gt=0)  # size limit of the encoded object
    timeout_s: Seconds = Field(120.0, gt=0)  # time limit for decoding, de-identifying, and encoding one image

    @property
    def decoded(self) -> tuple[str, ...]:
        """The containers of `formats`. For `auto`, these are the containers of a new dataset."""
        return SUPPORTED if isinstance(self.formats, str) else self.formats


ANY_SIZE = IngestConfig(min_short_side=1)
"""Limits for an image that a user names directly. It has no minimum size."""


def formats_of(identity: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the containers that a dataset with this identity decodes.

    Raises `UsageError` if this version of segmint doesn't support one of them.
    """
    part = identity.get("ingest")
    recorded = part.get("formats") if isinstance(part, Mapping) else None
    if isinstance(recorded, list | tuple) and recorded and all(each in SUPPORTED for each in recorded):
        return tuple(recorded)
    raise UsageError(
        f"the dataset was created with ingest.formats {recorded!r}, but segmint {VERSION} only decodes "
        f"{', '.join(SUPPORTED)}. Use the version that created it, or a later one."
    )
