"""Files in a study's folder: the manifest, which names the kind of study, and the people's results."""

import json
from typing import Any

from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.wording import counted
from segmint.pipeline.quality.study.kind import StudyKind

MANIFEST = "manifest.json"
"""File that completes a study's sample; a study of masks has no `kind` in it."""

CORRECTED = "corrected.json"
"""Default file for the people's results in a study's folder."""


def kind_of(folder: Location) -> StudyKind:
    """Return the kind of the study in a folder. Raises `UsageError` if there is none."""
    manifest = read_json(folder / MANIFEST, f"{folder} is not a study. Create one with `segmint study sample`")
    name = manifest.get("kind", StudyKind.MASKS) if isinstance(manifest, dict) else None
    for kind in StudyKind:
        if name == kind:
            return kind
    known = " or ".join(StudyKind)
    raise UsageError(f"{folder / MANIFEST}: its kind is {name!r}, expected {known}. Draw the sample again")


def unanswered(images: int, answered: int) -> list[str]:
    """Return a line on the images without an answer, if there are any."""
    return [f"{counted(images - answered, 'image')} without an answer"] if answered < images else []


def read_json(file: Location, otherwise: str) -> Any:
    """Return a JSON file's value. Raises `UsageError`, which starts with `otherwise`, if it is unreadable."""
    try:
        return json.loads(file.read())
    except (NotFoundError, ValueError, RecursionError) as error:
        raise UsageError(f"{otherwise} ({file}: {error})") from error
