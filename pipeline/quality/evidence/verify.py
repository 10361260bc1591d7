"""Implementation of `segmint verify` for folders of evidence, with this installation's own copy of `check.py`."""

import errno
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, TypeVar

from segmint.catalogs.dataset.fingerprints import FINGERPRINTS
from segmint.catalogs.dataset.manifest import manifest_generations
from segmint.catalogs.dataset.tombstones import TOMBSTONES
from segmint.catalogs.dataset.versions.digest import short_digest
from segmint.catalogs.layout import COMMITS, MANIFEST
from segmint.infra.errors import UsageError
from segmint.infra.progress import track
from segmint.infra.storage.errors import NotFoundError, StorageFaultError
from segmint.infra.storage.location import Location
from segmint.infra.threads import map_ahead
from segmint.infra.uris import LOCAL, local_path, scheme
from segmint.pipeline.quality.evidence import check
from segmint.pipeline.quality.evidence.signatures import read_public_key

T = TypeVar("T")

_THREADS = 8
_AHEAD = 64


@dataclass(frozen=True)
class EvidenceResult:
    """Result of checking a folder of evidence.

    `digest` and `audit_summary` are None if there are problems. `verified` means that there are no problems, and that
    every file is covered by the given SHA-256 or by the key's signature of SHA256SUMS.
    """

    evidence: str
    sha256: str | None  # of SHA256SUMS
    problems: tuple[str, ...]
    not_checked: tuple[str, ...]
    verified: bool
    checked_key: str | None  # id of the key
    signed: tuple[str, ...]  # what the key signed, and how that was checked
    not_covered: tuple[str, ...] | None  # files that the digest doesn't cover; None: dataset not read
    digest: str | None  # of the dataset
    audit_summary: dict[str, Any] | None  # version, when, verdict
    text: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Convert the result to JSON-serializable values."""
        return {name: value for name, value in asdict(self).items() if name != "text"}

    def lines(self) -> list[str]:
        """Format the result as human-readable lines."""
        return [*self.text, *([] if self.digest is None else [f"dataset digest: {short_digest(self.digest)}"])]


def is_evidence(folder: Location) -> bool:
    """Return whether a folder contains evidence of an audit rather than a dataset."""
    names = {entry.name for entry in folder.list()}
    return bool(names & {check.SUMS, check.EVIDENCE}) and not manifest_generations(folder)


def verify_evidence(
    folder: Location, key: Location | None = None, dataset: Location | None = None, sums: str | None = None
) -> EvidenceResult:
    """Check a folder of evidence. The signing key, the dataset, and the SHA-256 of SHA256SUMS are optional.

    Raises `UsageError` if the key can't be used or if there is no dataset at `dataset`.
    """
    raw = None if key is None else read_public_key(key)
    if dataset is not None and not manifest_generations(dataset):
        raise UsageError(f"{dataset} is not a segmint dataset: no {MANIFEST}. Check the path of --dataset")
    others: list[str] = []
    if scheme(folder.uri) == LOCAL:
        names, others = _files_in(folder)
    else:
        names = {entry.name for entry in folder.walk(include_temporary=True)}

    def read(name: str) -> bytes:
        return _found(name, (folder / name).read)

    done = check.EvidenceCheck(others) if others else check.check_files(names, read, sums, raw)
    if dataset is not None and done.leaves and not done.problems:
        _check_dataset(dataset, done)
    evidence = None if done.problems else done.evidence
    return EvidenceResult(
        evidence=str(folder),
        sha256=done.sums,
        problems=tuple(done.problems),
        not_checked=tuple(done.not_checked),
        verified=not done.problems and not done.not_checked,
        checked_key=None if raw is None else check.key_id(raw),
        signed=tuple(done.signed),
        not_covered=None if done.later is None else tuple(done.later),
        digest=evidence and evidence["dataset"]["digest"],
        audit_summary=evidence
        and {"version": evidence["dataset"]["version"], "when": evidence["when"], "verdict": evidence["verdict"]},
        text=tuple(check.lines_about(done, raw)),
    )


def _files_in(folder: Location) -> tuple[set[str], list[str]]:
    try:
        return check.files_in(local_path(folder.uri))
    except OSError as error:
        raise UsageError(f"{folder} cannot be read: {error.strerror or error}") from error


def _check_dataset(dataset: Location, done: check.EvidenceCheck) -> None:
    """Read the files that the digest covers, and collect the files that it doesn't cover."""

    def open_file(path: str) -> BinaryIO:
        return _found(path, (dataset / path).open)

    def problems(leaf: tuple[str, str]) -> list[str]:
        return list(check.wrong_in_dataset(*leaf, open_file, done.not_checked))

    leaves = map_ahead(problems, done.leaves.items(), _THREADS, _AHEAD, "leaves")
    for found in track(leaves, "files", len(done.leaves)):
        done.problems += [f"{dataset}/{problem}" for problem in found]
    listed = [("", dataset), *((f"{name}/", dataset / name) for name in (COMMITS, TOMBSTONES, FINGERPRINTS))]
    names = {f"{prefix}{entry.name}" for prefix, folder in listed for entry in folder.list()} - done.leaves.keys()
    done.later = sorted(filter(check.COVERED.fullmatch, names))


def _found(path: str, read: Callable[[], T]) -> T:
    """Call `read` and return the result. Raises `OSError` for a missing or unreadable file, as `check` expects."""
    try:
        return read()
    except NotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, "no such file", path) from error
    except StorageFaultError as error:
        raise OSError(errno.EIO, str(error), path) from error
