"""Names of the files in `annotations/`: `<ordinal>/<assignment>.<n>.json`, and `.return.json` for a return."""

import re
from collections.abc import Container, Iterable, Iterator
from typing import NamedTuple

from segmint.infra.storage.location import Location

ANNOTATIONS = "annotations"
RATINGS = "ratings"
"""Folder in `annotations/` for ratings of single masks."""

_NAME = re.compile(r"(?P<assignment>[01])\.(?P<n>[1-9]\d{0,8})\.json", re.ASCII)
_RETURN = ".return.json"
_ORDINAL = re.compile(r"0|[1-9]\d{0,15}", re.ASCII)


class SubmissionName(NamedTuple):
    """Components of a submission's path. Names sort by image, assignment, and number."""

    ordinal: int
    assignment: int
    n: int


def submission_path(ordinal: int, assignment: int, n: int) -> str:
    """Return the path of a submission's file below the dataset."""
    return f"{ANNOTATIONS}/{ordinal}/{assignment}.{n}.json"


def parse_submission_path(path: str) -> SubmissionName | None:
    """Parse the path of a submission's file below the dataset. Returns None for any other path."""
    folder, _, rest = path.partition("/")
    ordinal, _, name = rest.partition("/")
    match = _NAME.fullmatch(name)
    if folder != ANNOTATIONS or _ORDINAL.fullmatch(ordinal) is None or match is None:
        return None
    return SubmissionName(int(ordinal), int(match["assignment"]), int(match["n"]))


def return_path(name: SubmissionName) -> str:
    """Return the path, below the dataset, of the file that returns a submission."""
    return submission_path(*name).removesuffix(".json") + _RETURN


def parse_return_path(path: str) -> SubmissionName | None:
    """Parse the path of a return into the name of the returned submission. Returns None for any other path."""
    return parse_submission_path(f"{path.removesuffix(_RETURN)}.json") if path.endswith(_RETURN) else None


def list_submissions(dataset: Location) -> Iterator[SubmissionName]:
    """Yield the names of all submissions in a dataset, in order. Other files are ignored."""
    names = (parse_submission_path(f"{ANNOTATIONS}/{entry.name}") for entry in (dataset / ANNOTATIONS).walk())
    yield from sorted(name for name in names if name is not None)


def submissions_of(dataset: Location, ordinal: int) -> list[SubmissionName]:
    """Return the names of an image's submissions, ordered by assignment and number."""
    folder = f"{ANNOTATIONS}/{ordinal}"
    names = (parse_submission_path(f"{folder}/{entry.name}") for entry in (dataset / folder).list())
    return sorted(name for name in names if name is not None)


def latest_submissions(names: Iterable[SubmissionName]) -> dict[int, dict[int, SubmissionName]]:
    """Return the last submission of each assignment, keyed first by ordinal and then by assignment."""
    last: dict[int, dict[int, SubmissionName]] = {}
    for name in sorted(names):
        last.setdefault(name.ordinal, {})[name.assignment] = name
    return last


def image_of(path: str) -> int | None:
    """Return the ordinal of the image to which a file in `annotations/` belongs, or None for any other path."""
    folder, _, rest = path.partition("/")
    if rest.startswith(f"{RATINGS}/"):
        rest = rest.removeprefix(f"{RATINGS}/")
    ordinal, slash, _ = rest.partition("/")
    return int(ordinal) if folder == ANNOTATIONS and slash and _ORDINAL.fullmatch(ordinal) else None


def of_images(dataset: Location, ordinals: Container[int]) -> list[str]:
    """Return the paths of all annotation files of these images.

    In a bucket, this includes deleted files that still have older versions, because takedowns must delete those, too.
    """
    paths = (f"{ANNOTATIONS}/{name}" for name in (dataset / ANNOTATIONS).walk_ever())
    return [path for path in paths if (ordinal := image_of(path)) is not None and ordinal in ordinals]


def purge_of_images(dataset: Location, ordinals: Container[int]) -> int:
    """Delete the annotation files of these images, including older versions, and return the number of files."""
    paths = of_images(dataset, ordinals)
    for path in paths:
        (dataset / path).purge()
    return len(paths)
