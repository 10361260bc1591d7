"""Check of a catalog's column `prompts`: boxes, points, and labels, and the size of the frame to which they refer."""

from typing import Annotated, Any, Self

from pydantic import AfterValidator, ConfigDict, Field, ValidationError, model_validator

from segmint.catalogs.frozen import Frozen
from segmint.infra.uris import redact

# No image has more pixels on a side.
_Number = Annotated[float, Field(ge=-1e9, le=1e9, allow_inf_nan=False)]
_Side = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
_Point = Annotated[list[_Number], Field(min_length=2, max_length=2)]


def _storable(text: str) -> str:
    text.encode()  # raises ValueError for lone surrogates, which Arrow can't store
    return text


class Prompt(Frozen):
    """Prompt of a catalog row, a value of `PROMPT`."""

    model_config = ConfigDict(strict=True)

    box: Annotated[list[_Number], Field(min_length=4, max_length=4)] | None = None
    points: list[_Point] | None = None
    point_labels: list[Annotated[int, Field(ge=0, le=1)]] | None = None
    label: Annotated[str, AfterValidator(_storable)] | None = None
    score: _Number | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.box is None and not self.points and not (self.label or "").strip():
            raise ValueError("a box, points, or a label")
        if self.box is not None and min(self.box[2:]) <= 0:
            raise ValueError("a box [x, y, width, height] with positive width and height")
        if self.point_labels is not None and len(self.point_labels) != len(self.points or ()):
            raise ValueError("point_labels with 1 or 0 for each point")
        return self


class Prompts(Frozen):
    """Prompts of a catalog row, a value of `PROMPTS`."""

    model_config = ConfigDict(strict=True)

    width: _Side
    height: _Side
    prompts: list[Prompt]


def check_prompts(value: Any) -> dict[str, Any]:
    """Return a row's prompts, given as a dictionary or as JSON, as a value of `PROMPTS`.

    Points without labels are inside the mask. Labels have no spaces around them, and credentials in them are redacted.
    Raises pydantic's `ValidationError` if the prompts are invalid.
    """
    if isinstance(value, str):
        checked = Prompts.model_validate_json(value)
    else:
        checked = Prompts.model_validate(value)
    found = checked.model_dump()
    for prompt in found["prompts"]:
        prompt["point_labels"] = prompt["point_labels"] or [1] * len(prompt["points"] or ()) or None
        prompt["points"] = prompt["points"] or None
        prompt["label"] = redact((prompt["label"] or "").strip()) or None
    return found


_OBJECT = "an object with width, height, and prompts; rename any other column"
_EXPECTED = {"extra_forbidden": "no such key", "json_invalid": f"JSON of {_OBJECT}", "missing": _OBJECT}
"""Expected values by the type of pydantic's error, if its own message doesn't say it."""


def problem_of(error: ValidationError) -> tuple[Any, str, str]:
    """Return the first invalid value, its place, and what was expected there."""
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    if not place or first["type"] == "missing":  # only the keys of the whole value are required
        place = "the value"
    if first["type"] == "model_type":
        return first["input"], place, _OBJECT if place == "the value" else "an object"
    expected = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return first["input"], place, _EXPECTED.get(first["type"], expected.replace("List should have", "a list of"))
