"""Configuration of curation: the part `curate`."""

import re
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from segmint.operators.curate.fitness import MEASURES


class _CurateModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


class DuplicatesConfig(_CurateModel):
    """Rejection of images that are copies of another row's image."""

    enabled: bool = True
    distance: int = Field(default=3, ge=0, le=4)
    """Maximum distance between perceptual hashes of copies, in bits of 64. With 0, only equal hashes match."""
    mirror: bool = False
    """Treat mirrored images as copies."""


class FitnessConfig(_CurateModel):
    """Minimum and maximum of each measure in `segmint.operators.curate.fitness`. null means no limit."""

    min_sharpness: float | None = None
    """Variance of the Laplacian. It is low if nothing is in focus."""
    min_contrast: float | None = None
    """Standard deviation of gray levels, 0 to 127.5."""
    min_entropy: float | None = None
    """Entropy of the histogram of gray levels in bits, 0 to 8. It is low in flat images."""
    max_dark: float | None = None
    """Share of nearly black pixels, 0 to 1."""
    max_bright: float | None = None
    """Share of nearly white pixels, 0 to 1."""
    max_flat: float | None = None
    """Share of pixels that equal their neighbors, 0 to 1. It is high in screenshots and drawings."""
    min_colors: float | None = None
    """Number of distinct colors among 32,768. It is low in drawings."""

    def limits(self) -> dict[str, tuple[float | None, float | None]]:
        """Return the minimum and maximum of each measure."""
        return {name: (getattr(self, f"min_{name}", None), getattr(self, f"max_{name}", None)) for name in MEASURES}


def _name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", value) or value in MEASURES:
        raise ValueError(
            f"expected at most 40 letters, digits, hyphens and underscores, and none of {', '.join(MEASURES)}"
        )
    return value


class ScorerConfig(_CurateModel):
    """A TorchScript module that scores images, for example for watermarks, text, or aesthetics.

    It receives one RGB image, (3, H, W) uint8, at reduced scale, and must return one number.
    """

    name: Annotated[str, AfterValidator(_name)]
    file: str = Field(min_length=1)
    """Path or URI of the module."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """SHA-256 of the file, in lower case. It is required because the file contains executable code."""
    min: float | None = None
    """Images with a lower score are rejected as unfit."""
    max: float | None = None
    """Images with a higher score are rejected as unfit."""


class CurateConfig(_CurateModel):
    """Rejection rules of a curation. They are a runtime key, because a dataset pins the resulting catalog."""

    duplicates: DuplicatesConfig = DuplicatesConfig()
    fitness: FitnessConfig = FitnessConfig()
    scorers: tuple[ScorerConfig, ...] = ()
    opt_outs: bool = True
    """Reject images whose metadata or catalog entry forbids training, along with all copies of these images."""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [scorer.name for scorer in self.scorers]
        if len(set(names)) < len(names):
            raise ValueError("two scorers have the same name: expected different names")
        return self

    def limits(self) -> dict[str, tuple[float | None, float | None]]:
        """Return the minimum and maximum of each measure and scorer, keyed by name."""
        return {**self.fitness.limits(), **{each.name: (each.min, each.max) for each in self.scorers}}
