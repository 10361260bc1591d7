"""`segmint verify` of a folder of evidence: the checks of its `check.py`, by this segmint's own copy of them."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from segmint.catalogs.dataset.manifest import manifest_generations
from segmint.catalogs.dataset.versions.record import VersionName, read_version, version_numbers
from segmint.infra.storage.location import Location
from segmint.infra.wording import counted
from segmint.pipeline.evidence import check
from segmint.pipeline.versions.signatures import key_id, read_public_key
from segmint.pipeline.versions.verify import verify_dataset


@dataclass(frozen=True)
class VerifiedEvidence:
    """The result of checking a folder of evidence."""

    evidence: str
    sha256: str | None  # of SHA256SUMS
    files: int
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    checked_key: str | None
    verdict: str | None  # the audit's; None if it cannot be believed, and so is the version
    version: VersionName | None

    def to_dict(self) -> dict[str, Any]:
        """Return the answer for JSON."""
        return {**asdict(self), "verified": not self.problems}

    def lines(self) -> list[str]:
        """Return the answer as lines for people."""
        result = f"{counted(len(self.problems), 'problem')}: not verified" if self.problems else "verified"
        return [
            *(f"problem: {problem}" for problem in self.problems),
            *(f"note: {note}" for note in self.notes),
            *([] if self.verdict is None else [f"the audit's verdict: {self.verdict}"]),
            f"read {counted(self.files, 'file')} of evidence; {result}",
            *([] if self.sha256 is None else [f"{check.SUMS}: sha256:{self.sha256}"]),
            *([] if self.version is None else [self.version.line()]),
        ]


def is_evidence(folder: Location) -> bool:
    """Whether a folder has evidence of an audit, and not a dataset."""
    names = {entry.name for entry in folder.list()}
    return bool(names & {check.SUMS, check.EVIDENCE}) and not manifest_generations(folder)


def verify_evidence(folder: Location, key: Location | None = None, dataset: Location | None = None) -> VerifiedEvidence:
    """Check a folder of evidence, with a public key the signature of the digest, and that a dataset is the one audited.

    Raises `UsageError` for a key that cannot be used, and if there is no dataset there.
    """
    public_key = None if key is None else read_public_key(key)
    names = [entry.name for entry in folder.walk(include_temporary=True)]
    raw = None if public_key is None else public_key.public_bytes_raw()
    problems = check.problems_of(names, lambda name: (folder / name).read(), raw, _is_signed)
    notes, verdict, version = [], None, None
    if not problems:
        value = json.loads((folder / check.EVIDENCE).read())
        version = VersionName(value["dataset"]["digest"], value["dataset"]["version"])
        verdict = value["verdict"]
        signed = ", ".join(each["key_id"] for each in value["signatures"])
        if public_key is None:
            notes.append(f"signed by the keys {signed}, not checked: name one with --key" if signed else "not signed")
        if dataset is None:
            notes.append("the dataset itself was not read: name it with --dataset")
        else:
            problems += _dataset_problems(dataset, version)
    return VerifiedEvidence(
        evidence=str(folder),
        sha256=hashlib.sha256((folder / check.SUMS).read()).hexdigest() if check.SUMS in names else None,
        files=len(names),
        problems=tuple(problems),
        notes=tuple(notes),
        checked_key=None if public_key is None else key_id(public_key),
        verdict=verdict,
        version=version,
    )


def _dataset_problems(dataset: Location, version: VersionName) -> list[str]:
    """Read every byte of a dataset, as it was at the version audited."""
    recorded = [n for n in version_numbers(dataset) if read_version(dataset, n).digest == version.digest]
    found = verify_dataset(dataset, recorded[-1] if recorded else None)
    problems = [f"{dataset}: {problem}" for problem in found.problems]
    if found.version.digest != version.digest:
        problems.append(f"{dataset}: its digest is sha256:{found.version.digest}, audited was sha256:{version.digest}")
    return problems


def _is_signed(key: bytes, message: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except InvalidSignature:
        return False
    return True
