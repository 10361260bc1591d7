"""Checks a folder of evidence about a segmint dataset. A copy of this file is in each such folder.

It imports nothing of segmint, only Python's standard library (3.9 or newer):

    python3 check.py [FOLDER] [--sums SHA256] [--key PUBLIC.pem] [--dataset DATASET]

It says whether all files are those that SHA256SUMS names, whether the digest of the dataset is that of the files listed
in leaves.txt, and whether the summary in evidence.json says what audit.json and manifest.json say. With --sums it also
checks that SHA256SUMS is the one that somebody else wrote down, with --key that the key's owner signed the digest, and
with --dataset that a local dataset has exactly these bytes. Exit code 0: all is as it should be; 1: it is not; 2: wrong
usage.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

SUMS = "SHA256SUMS"
EVIDENCE = "evidence.json"
AUDIT = "audit.json"
MANIFEST = "manifest.json"
LEAVES = "leaves.txt"
SCHEMA_VERSION = 1

_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")
_PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----(.*?)-----END PUBLIC KEY-----", re.DOTALL)
_ED25519_DER = bytes.fromhex("302a300506032b6570032100")  # what precedes the 32 bytes of such a key (RFC 8410)
SAME = (
    *("findings_total", "findings_by_code", "verdict", "checked", "notes"),
    *("not_looked_at", "not_built", "not_compared", "unusable_commits"),
)
"""What the summary repeats of the audit."""

Read = Callable[[str], bytes]
"""Returns a file of the evidence by its path below the folder; raises an exception if it cannot."""

IsSigned = Callable[[bytes, bytes, bytes], bool]
"""Whether, for a raw public key and a message, these 64 bytes are the Ed25519 signature."""


def problems_of(
    files: Iterable[str], read: Read, key: bytes | None = None, is_signed: IsSigned | None = None
) -> list[str]:
    """Return what is wrong with a folder that has files of these names; nothing if all is as it should be.

    Only these are read. `key` is a raw public key (32 bytes) that must have signed the digest.
    """
    names = set(files)

    def read_known(name: str) -> bytes:
        if name not in names:
            raise ValueError(f"{name}: no such file")
        return read(name)

    try:
        wrong = list(_wrong_files(names, read_known))
        return wrong or list(_contradictions(read_known, key, is_signed or is_ed25519_signature))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return [f"the evidence cannot be read: {type(error).__name__}: {error}"]


def lines_of(data: bytes, name: str) -> dict[str, str]:
    """Return the SHA-256 of each file by its path, from lines as `sha256sum` prints them; raises `ValueError`."""
    found: dict[str, str] = {}
    for number, line in enumerate(data.decode("utf-8").splitlines(), 1):
        match = _LINE.fullmatch(line)
        if match is None or match[2] in found:
            raise ValueError(f"{name}, line {number}: expected a SHA-256, two spaces and a path, each path once")
        found[match[2]] = match[1]
    return found


def digest_of(leaves: dict[str, str]) -> str:
    """Return the digest of a dataset: the root of a Merkle tree (RFC 6962) over the lines of leaves.txt."""
    lines = [f"{leaves[path]}  {path}".encode() for path in sorted(leaves, key=lambda path: path.encode())]
    level = [hashlib.sha256(b"\x00" + line).digest() for line in lines] or [hashlib.sha256().digest()]
    while len(level) > 1:  # an odd last node moves up, which makes the tree of the RFC
        pairs = [hashlib.sha256(b"\x01" + a + b).digest() for a, b in zip(level[::2], level[1::2])]  # noqa: B905
        level = pairs + level[len(pairs) * 2 :]
    return level[0].hex()


def key_of(pem: bytes) -> bytes:
    """Return the raw key in a PEM file with a public Ed25519 key; raises `ValueError` for anything else."""
    match = _PEM.search(pem)
    data = base64.b64decode(match[1]) if match else b""
    if len(data) != len(_ED25519_DER) + 32 or not data.startswith(_ED25519_DER):
        raise ValueError("expected a public Ed25519 key in PEM form")
    return data[len(_ED25519_DER) :]


def key_id(key: bytes) -> str:
    """Return the id by which signatures name a raw public key."""
    return hashlib.sha256(key).hexdigest()[:16]


def _wrong_files(names: set[str], read: Read) -> Iterator[str]:
    sums = lines_of(read(SUMS), SUMS)
    for name in sorted(sums.keys() - names):
        yield f"{name}: no such file, and {SUMS} names it"
    for name in sorted(names - sums.keys() - {SUMS}):
        yield f"{name}: {SUMS} does not name it"
    for name in sorted(sums.keys() & names):
        found = hashlib.sha256(read(name)).hexdigest()
        if found != sums[name]:
            yield f"{name}: other bytes than {SUMS} says: expected SHA-256 {sums[name]}; found {found}"
    for name in (EVIDENCE, AUDIT, MANIFEST, LEAVES):
        if name not in sums:
            yield f"{name}: {SUMS} does not name it, and evidence has it"


def _contradictions(read: Read, key: bytes | None, is_signed: IsSigned) -> Iterator[str]:
    evidence, audit, manifest = (json.loads(read(name)) for name in (EVIDENCE, AUDIT, MANIFEST))
    if evidence["schema_version"] != SCHEMA_VERSION:
        yield f"{EVIDENCE}: its schema_version is {evidence['schema_version']!r}, expected {SCHEMA_VERSION}"
        return
    dataset = evidence["dataset"]
    leaves = lines_of(read(LEAVES), LEAVES)
    digest = digest_of(leaves)
    for where, stated in ((EVIDENCE, dataset["digest"]), (AUDIT, audit["version"]["digest"])):
        if stated != digest:
            yield f"{where}: names the digest {stated}; that of {LEAVES} is {digest}"
    if leaves.get(dataset["manifest"]) != hashlib.sha256(read(MANIFEST)).hexdigest():
        yield f"{MANIFEST}: is not the {dataset['manifest']} of {LEAVES}"
    if audit["version"]["number"] != dataset["version"]:
        yield f"{EVIDENCE}: names version {dataset['version']}, {AUDIT} {audit['version']['number']}"
    for name in SAME:
        if evidence[name] != audit[name]:
            yield f"{EVIDENCE}: {name} is not that of {AUDIT}"
    if evidence["searched_by"] != (audit["privacy"] or {}).get("detectors", []):
        yield f"{EVIDENCE}: searched_by is not privacy.detectors of {AUDIT}"
    built = evidence["built_with"]
    for name in ("numerics", "weights", "code_version"):
        if built[name] != manifest[name]:
            yield f"{EVIDENCE}: built_with.{name} is not that of {MANIFEST}"
    if built["deidentify"] != manifest["config"].get("deidentify"):
        yield f"{EVIDENCE}: built_with.deidentify is not config.deidentify of {MANIFEST}"
    if key is not None:
        yield from _unsigned(read, dataset, evidence["signatures"], key, is_signed)


def _unsigned(read: Read, dataset: Any, signatures: Any, key: bytes, is_signed: IsSigned) -> Iterator[str]:
    files = [each["file"] for each in signatures if each["key_id"] == key_id(key)]
    if not files:
        yield f"the key {key_id(key)} did not sign the digest: signed by {[each['key_id'] for each in signatures]}"
    for file in files:
        if not is_signed(key, f"segmint dataset sha256:{dataset['digest']}\n".encode(), read(file)):
            yield f"{file}: not the signature of sha256:{dataset['digest']}, by the key {key_id(key)}"


def dataset_problems(leaves: dict[str, str], dataset: Path) -> Iterator[str]:
    """Yield what a local dataset lacks or has otherwise: the files of its digest, and those that its commits name."""
    for path, expected in leaves.items():
        yield from _wrong_bytes(dataset, path, expected)
        if path.startswith("commits/") and (dataset / path).is_file():
            for file in json.loads((dataset / path).read_bytes())["files"]:
                yield from _wrong_bytes(dataset, file["path"], file["sha256"])


def _wrong_bytes(dataset: Path, path: str, expected: str) -> Iterator[str]:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        yield f"{path}: leads out of the dataset"
        return
    try:
        found = _sha256_of(dataset / path)
    except OSError as error:
        yield f"{dataset / path}: {error.strerror or error}"
        return
    if found != expected:
        yield f"{dataset / path}: other bytes: expected SHA-256 {expected}; found {found}"


def _sha256_of(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


# Ed25519 (RFC 8032, section 5.1), since the standard library has no signatures. Points are (X, Y, Z, T) with x = X / Z,
# y = Y / Z, x * y = T / Z. Slow and not of constant time, which is no harm where only public values are used.
_P = 2**255 - 19
_Q = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, -1, _P) % _P
_ROOT = pow(2, (_P - 1) // 4, _P)  # of -1


def is_ed25519_signature(key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether these 64 bytes are the signature of a message by the owner of a raw public key (32 bytes)."""
    owner = _decoded(key)
    scalar = int.from_bytes(signature[32:], "little")
    if owner is None or len(signature) != 64 or scalar >= _Q:
        return False
    challenge = int.from_bytes(hashlib.sha512(signature[:32] + key + message).digest(), "little") % _Q
    base = _decoded((4 * pow(5, -1, _P) % _P).to_bytes(32, "little"))
    minus = (_P - owner[0], owner[1], owner[2], _P - owner[3])
    return _encoded(_added(_times(scalar, base), _times(challenge, minus))) == signature[:32]


def _added(a: Any, b: Any) -> Any:
    low, high = (a[1] - a[0]) * (b[1] - b[0]) % _P, (a[1] + a[0]) * (b[1] + b[0]) % _P
    c, d = 2 * _D * a[3] * b[3] % _P, 2 * a[2] * b[2] % _P
    e, f, g, h = high - low, d - c, d + c, high + low
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _times(scalar: int, point: Any) -> Any:
    total = (0, 1, 1, 0)
    while scalar:
        if scalar & 1:
            total = _added(total, point)
        point, scalar = _added(point, point), scalar >> 1
    return total


def _encoded(point: Any) -> bytes:
    inverse = pow(point[2], -1, _P)
    x: int = point[0] * inverse % _P
    y: int = point[1] * inverse % _P
    return (y | (x & 1) << 255).to_bytes(32, "little")


def _decoded(data: bytes) -> Any:
    """Return the point that 32 bytes encode; None if there is none."""
    number = int.from_bytes(data, "little")
    y, odd = number & (1 << 255) - 1, number >> 255
    square = (y * y - 1) * pow(_D * y * y + 1, -1, _P) % _P
    x = pow(square, (_P + 3) // 8, _P)
    if (x * x - square) % _P:
        x = x * _ROOT % _P
    if len(data) != 32 or y >= _P or (x * x - square) % _P or (x == 0 and odd):
        return None
    x = _P - x if x & 1 != odd else x
    return x, y, 1, x * y % _P


def main(arguments: list[str] | None = None) -> int:
    """Check a folder as the command line says; return the exit code."""
    parser = argparse.ArgumentParser(description="Check a folder of evidence about a segmint dataset.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("--sums", metavar="SHA256", help=f"the SHA-256 that {SUMS} must have")
    parser.add_argument("--key", metavar="PUBLIC.pem", type=Path, help="the key that must have signed the digest")
    parser.add_argument("--dataset", metavar="DATASET", type=Path, help="a local dataset that must have these bytes")
    options = parser.parse_args(arguments)
    folder: Path = options.folder
    try:
        key = key_of(options.key.read_bytes()) if options.key else None
        sums = hashlib.sha256((folder / SUMS).read_bytes()).hexdigest()  # without it there is nothing to check
    except (OSError, ValueError) as error:
        parser.error(f"{error}")
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()]
    problems = problems_of(names, lambda name: (folder / name).read_bytes(), key)
    if options.sums is not None and options.sums.lower().replace("sha256:", "") != sums:
        problems.insert(0, f"{SUMS}: its SHA-256 is {sums}, expected {options.sums}")
    if options.dataset and not problems:
        problems += dataset_problems(lines_of((folder / LEAVES).read_bytes(), LEAVES), options.dataset)
    out = [f"problem: {problem}" for problem in problems]
    if not problems:
        evidence = json.loads((folder / EVIDENCE).read_bytes())
        dataset, ids = evidence["dataset"], [each["key_id"] for each in evidence["signatures"]]
        version = "not recorded as a version" if dataset["version"] is None else f"version {dataset['version']}"
        out += [
            f"dataset {dataset['name']}, {version}, digest sha256:{dataset['digest']}",
            f"verdict of {evidence['when']}: {evidence['verdict']}",
            f"signed by: {', '.join(ids) or 'nobody'}{'' if key or not ids else ' (not checked: give --key)'}",
        ]
        out += [] if options.dataset else ["the dataset itself was not read: give --dataset"]
    out.append(f"{SUMS}: sha256:{sums}; {'NOT verified' if problems else 'verified'}")
    sys.stdout.write("\n".join(out) + "\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
