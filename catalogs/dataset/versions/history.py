"""All recorded versions of a dataset, each checked: whether they are whole, and follow one another."""

from collections.abc import Iterator
from dataclasses import dataclass

from segmint.catalogs.dataset.versions.record import (
    Version,
    read_version,
    signed_numbers,
    version_numbers,
    version_path,
)
from segmint.catalogs.layout import DamagedDatasetError
from segmint.infra.storage.location import Location


@dataclass(frozen=True)
class VersionProblem:
    """What is wrong with the file of a version."""

    path: str
    expected: str
    found: str


@dataclass(frozen=True)
class VersionHistory:
    """The latest version that is whole, None if there is none, and what is wrong with any of them."""

    latest: Version | None
    problems: tuple[VersionProblem, ...]


def read_history(dataset: Location) -> VersionHistory:
    """Read all recorded versions of a dataset; one is in memory at a time.

    A version that is missing is known by later ones or by its signature; several in a row are one problem.
    """
    numbers = set(version_numbers(dataset))
    last = max(numbers, default=0)
    signed = signed_numbers(dataset)
    problems = []
    latest: Version | None = None
    done = 0
    for number in sorted({*numbers, *(n for n in signed if n > last)}):
        if number - 1 > done and number <= last:
            first = version_path(done + 1)
            which = f"version {done + 1}" if number - 2 == done else f"versions {done + 1} to {number - 1}"
            problems.append(VersionProblem(first, f"{which}, as there are later ones", "no such file"))
        done = number
        path = version_path(number)
        if number not in numbers:
            problems.append(VersionProblem(path, f"version {number}, as there is its signature", "no such file"))
            continue
        try:
            version = read_version(dataset, number)
        except DamagedDatasetError as error:
            problems.append(VersionProblem(path, "a version as it was recorded", str(error)))
            continue
        problems += _breaks(version, latest)
        latest = version
    return VersionHistory(latest, tuple(problems))


def _breaks(version: Version, earlier: Version | None) -> Iterator[VersionProblem]:
    """Yield the problem of a version that does not follow the one before it; without that one nothing is known."""
    if version.before is None or (earlier is None and version.number > 1):
        return
    if earlier is None:
        yield VersionProblem(version.path, "no digest before the first version", f"sha256:{version.before}")
    elif earlier.number == version.number - 1 and version.before != earlier.digest:
        expected = f"sha256:{earlier.digest} before it, the digest of version {earlier.number}"
        yield VersionProblem(version.path, expected, f"sha256:{version.before}")
