"""Files in a study's folder: the manifest, which names the kind of study, and the people's results.

Kinds of studies, in a module with few imports because the command line's help needs it.
"""

import json
from enum import StrEnum
from typing import Any

from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location


class StudyKind(StrEnum):
    """Kind of a study, named after what people judge: masks, unredacted faces and plates, or models' masks."""

    MASKS = "masks"
    PRIVACY = "privacy"
    RATINGS = "ratings"


IMAGES = {StudyKind.MASKS: 500, StudyKind.PRIVACY: 3000, StudyKind.RATINGS: 500}
"""Default number of images per kind of study, or of true masks for ratings.

500 is as in the SAM paper. For privacy, the number is large enough to bound the miss rate by 0.1% if people find no
misses.
"""


MANIFEST = "manifest.json"
"""File that is written last, which completes a study's sample. In a study of masks, it doesn't contain `kind`."""

CORRECTED = "corrected.json"
"""Default file for people's results, in the study's folder."""


def kind_of(folder: Location) -> StudyKind:
    """Return the kind of the study in a folder. Raises `UsageError` if there is none."""
    manifest = read_manifest(folder)
    name = manifest.get("kind", StudyKind.MASKS) if isinstance(manifest, dict) else None
    for kind in StudyKind:
        if name == kind:
            return kind
    known = " or ".join(StudyKind)
    raise UsageError(f"{folder / MANIFEST}: its kind is {name!r}, expected {known}. Draw the sample again")


def read_manifest(folder: Location) -> Any:
    """Read a study's manifest. Raises `UsageError` if there is none."""
    return read_json(folder / MANIFEST, f"{folder} is not a study. Create one with `segmint study sample`")


def json_file(value: Any) -> str:
    """Return the contents of a study's JSON file."""
    return f"{json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)}\n"


def read_json(file: Location, otherwise: str) -> Any:
    """Read a JSON file. Raises `UsageError` if it is unreadable; the message starts with `otherwise`."""
    try:
        return json.loads(file.read())
    except NotFoundError as error:
        raise UsageError(f"{otherwise} ({file} doesn't exist)") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{otherwise} ({file}: {error})") from error
