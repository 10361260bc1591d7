"""What a curation looks for in the images of a catalog: the part `curate` of a configuration."""

import re
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from segmint.operators.curate.fitness import MEASURES


class _CurateModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


class DuplicatesConfig(_CurateModel):
    """Images that are refused because another row has the same picture."""

    enabled: bool = True
    distance: int = Field(default=3, ge=0, le=4)
    """Bits of 64 in which perceptual hashes of copies may differ; 0: only equal hashes are compared."""
    mirror: bool = False
    """Whether a mirrored picture is a copy."""


class FitnessConfig(_CurateModel):
    """The least and the most of each measure of `segmint.operators.curate.fitness`; null: no limit."""

    min_sharpness: float | None = None
    """Variance of the Laplacian: low where nothing is in focus."""
    min_contrast: float | None = None
    """Standard deviation of gray levels, 0 to 127.5."""
    min_entropy: float | None = None
    """Bits of the histogram of gray levels, 0 to 8: low in flat pictures."""
    max_dark: float | None = None
    """Share of pixels that are nearly black, 0 to 1."""
    max_bright: float | None = None
    """Share of pixels that are nearly white, 0 to 1."""
    max_flat: float | None = None
    """Share of pixels that equal their neighbors, 0 to 1: high in screenshots and drawings."""
    min_colors: float | None = None
    """Colors that occur, of 32,768: few in drawings."""

    def limits(self) -> dict[str, tuple[float | None, float | None]]:
        """Return the least and the most of each measure."""
        return {name: (getattr(self, f"min_{name}", None), getattr(self, f"max_{name}", None)) for name in MEASURES}


def _name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", value) or value in MEASURES:
        raise ValueError(
            f"expected at most 40 letters, digits, hyphens and underscores, and none of {', '.join(MEASURES)}"
        )
    return value


class ScorerConfig(_CurateModel):
    """A TorchScript module that gives a picture a number, such as for watermarks, text or aesthetics.

    It takes one RGB image, (3, H, W) uint8, at a reduced scale, and returns one number.
    """

    name: Annotated[str, AfterValidator(_name)]
    file: str = Field(min_length=1)
    """Path or URI of the module."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Of the file, in lower case: it is code."""
    min: float | None = None
    """An image with a lower number is unfit."""
    max: float | None = None
    """An image with a higher number is unfit."""


class CurateConfig(_CurateModel):
    """What a curation refuses. A runtime key: a dataset pins the catalog that comes of it."""

    duplicates: DuplicatesConfig = DuplicatesConfig()
    fitness: FitnessConfig = FitnessConfig()
    scorers: tuple[ScorerConfig, ...] = ()
    opt_outs: bool = True
    """Whether to refuse images whose metadata or catalog entry forbids training, and all their copies."""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [scorer.name for scorer in self.scorers]
        if len(set(names)) < len(names):
            raise ValueError("two scorers have the same name: expected different ones")
        return self

    def limits(self) -> dict[str, tuple[float | None, float | None]]:
        """Return the least and the most of each measure and scorer, by its name."""
        return {**self.fitness.limits(), **{each.name: (each.min, each.max) for each in self.scorers}}
