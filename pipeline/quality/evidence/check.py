"""Standalone check of a folder of evidence about a segmint dataset; every such folder contains a copy of this file.

It only needs Python's standard library (3.9 or newer) and does not import segmint:

    python3 check.py [FOLDER] [--sums SHA256] [--key PUBLIC.pem] [--dataset DATASET]

It verifies that all files match SHA256SUMS, that the digest of the dataset matches the files listed in leaves.txt, and
that evidence.json agrees with audit.json, manifest.json, and leaves.txt. --key verifies the key's signatures, with the
`cryptography` package or OpenSSH's `ssh-keygen`: SHA256SUMS.sig covers every file; a signature of the digest covers
leaves.txt and manifest.json but none of the audit's results. --sums verifies that SHA256SUMS, and so every file, is
what the auditor published. --dataset verifies that a local dataset contains the files of the digest.
Exit codes: 0 if everything matches and --sums or a signature covers all of it, 1 if something doesn't match, 2 for
wrong usage, 3 if something could not be checked, which the output lists.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

SUMS = "SHA256SUMS"
SIGNED_SUMS = "SHA256SUMS.sig"
EVIDENCE = "evidence.json"
AUDIT = "audit.json"
MANIFEST = "manifest.json"
LEAVES = "leaves.txt"
STUDY = "study.json"
PAGE = "index.html"
CHECK = "check.py"
SCHEMA_VERSION = 1
SAME = (  # fields that the summary repeats from the audit
    *("findings_total", "findings_by_code", "verdict", "checked", "notes"),
    *("unsearched", "not_built", "not_compared", "unusable_commits", "not_checked", "unfinished"),
)
ERRORS = (
    *(FileNotFoundError, IsADirectoryError, NotADirectoryError),
    *(ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError),
)
"""Exceptions from reading a missing or malformed file. Any other `OSError` means that the file couldn't be read."""

_TYPES = (  # of the fields of evidence.json
    (str, ("when", "verdict")),
    (int, ("schema_version", "findings_total")),
    (list, ("signatures", "searched_by", "notes", *SAME[-6:])),
    (dict, ("dataset", "findings_by_code", "checked", "options", "detector_files", "built_with", "software")),
)
_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")
_MANIFEST_NAME = re.compile(r"dataset(?:\.g([2-9]|[1-9][0-9]+))?\.json")
COVERED = re.compile(rf"{_MANIFEST_NAME.pattern}|(?:commits|tombstones|fingerprints)/[^/.][^/]*\.json")
_PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----(.*?)-----END PUBLIC KEY-----", re.DOTALL)
_SSHSIG = re.compile(rb"SSHSIG\x00{3}\x01.{4}\x00{3}.([\w@.-]+)\x00.*\x00{7}\x06(sha\d+)\x00", re.DOTALL)
_ED25519_DER = bytes.fromhex("302a300506032b6570032100")  # prefix of the 32 key bytes (RFC 8410)
DIGEST_NAMESPACE, SUMS_NAMESPACE = "segmint-dataset", "segmint-evidence"  # of signatures
_COVERED_BY_NOTHING = f"version number, verdict, and the rest of {AUDIT} and {EVIDENCE}"
UNREAD = "file of the dataset: "
Read = Callable[[str], bytes]  # reads a file by its path


@dataclass
class EvidenceCheck:
    """Result of checking a folder of evidence: its problems and contents."""

    problems: list[str]
    sums: str | None = None  # SHA-256 of SHA256SUMS
    leaves: dict[str, str] = field(default_factory=dict)
    evidence: Any = None
    study: Any = None
    later: list[str] | None = None  # files that match `COVERED` but aren't leaves; None: dataset not read
    signers: list[str] = field(default_factory=list)  # ids of the keys that signed the digest or SHA256SUMS
    signed: list[str] = field(default_factory=list)  # signatures of the key that were verified, with the tool's name
    not_checked: list[str] = field(default_factory=list)


def check_files(files: Iterable[str], read: Read, sums: str | None, key: bytes | None) -> EvidenceCheck:
    """Check files by name. `sums` is the SHA-256 of SHA256SUMS, and `key` is the raw key that signed the digest."""
    names, needed = set(files), (SUMS, EVIDENCE, AUDIT, MANIFEST, LEAVES)
    done = EvidenceCheck([f"{name}: no such file" for name in needed if name not in names])
    if done.problems:
        return done
    try:
        listed = read(SUMS)
        done.sums = hashlib.sha256(listed).hexdigest()
        if sums is not None and sums.lower().replace("sha256:", "") != done.sums:
            done.problems.append(f"{SUMS}: its SHA-256 is {done.sums}, expected {sums}")
        done.problems += _wrong_files(names, lines_of(listed, SUMS), read)
        if not done.problems:
            done.leaves = lines_of(read(LEAVES), LEAVES)
            done.evidence = parse(read(EVIDENCE), EVIDENCE)
            done.study = parse(read(STUDY), STUDY) if STUDY in names else None
            done.problems += _contradictions(done, names, read)
        if not done.problems:
            _check_signatures(done, names, listed, read, key, sums is not None)
    except ERRORS as error:
        done.problems.append(f"can't read the evidence: {getattr(error, 'strerror', None) or repr(error)}")
    except OSError as error:
        done.not_checked.append(f"can't read the evidence: {error}")
    return done


def _check_signatures(
    done: EvidenceCheck, names: set[str], listed: bytes, read: Read, key: bytes | None, published: bool
) -> None:
    """Check the key's signatures of SHA256SUMS and of the digest, and collect what neither they nor --sums cover."""
    number, digest = done.evidence["dataset"]["version"], done.evidence["dataset"]["digest"]
    done.signers = [each["key_id"] for each in done.evidence["signatures"]]
    covered, signer = published, None
    if SIGNED_SUMS in names:
        file = read(SIGNED_SUMS)
        signer = signed_in(file)[33:65]
        done.signers.append(key_id(signer) if signed_in(file)[18:29] == b"ssh-ed25519" else "another key")
        if file != signature_file(signer, SUMS_NAMESPACE, signed_in(file)[-64:]):
            other = _unsupported(file)
            where = done.not_checked if other else done.problems
            where.append(f"{SIGNED_SUMS}: {other or f'not a signature by ssh-keygen -Y sign -n {SUMS_NAMESPACE}'}")
    if key is not None:
        mine, signatures = key_id(key), []
        if mine not in done.signers:
            done.problems.append(f"the key {mine} signed neither the digest nor {SUMS}: signed by {done.signers}")
        if signer == key:
            signatures.append((SIGNED_SUMS, SUMS_NAMESPACE, listed, f"{SUMS}, and with it every file"))
        if f"versions/{number}.{mine}.sig" in names:
            name, what = f"versions/{number}.{mine}.sig", f"the digest, and with it {LEAVES} and {MANIFEST}"
            signatures.append((name, DIGEST_NAMESPACE, digest_line(digest), what))
        for name, namespace, message, what in signatures:
            valid, how = check_signature(key, namespace, message, read(name))
            if valid is None:
                done.not_checked.append(f"{name}, by key {mine}: {how}")
            elif valid:
                done.signed.append(f"{what}; checked with {how}")
                covered = covered or namespace == SUMS_NAMESPACE
            else:
                signs = SUMS if namespace == SUMS_NAMESPACE else f"sha256:{digest}"
                done.problems.append(f"{name}: not the signature of {signs}, by the key {mine}")
    if covered or done.problems:
        return
    if done.signed:
        what = f"{_COVERED_BY_NOTHING}, {PAGE}{f' and {STUDY}' if done.study is not None else ''}"
        why = "the key's signature doesn't cover them, and the folder's writer could have changed them"
    else:
        what, why = "who made this folder", "its writer could have changed everything in it"
    done.not_checked.append(f"{what}: {why}. Pass the SHA-256 that the auditor published to --sums, or --key")


def parse(data: bytes, name: str) -> Any:
    """Parse JSON. Raises `ValueError` where parsers disagree: duplicate keys, NaN, or anything but plain UTF-8."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            raise ValueError(f"{name}: duplicate key among {sorted(keys)}")
        return dict(pairs)

    def refuse(text: str) -> Any:
        raise ValueError(f"{name}: {text} is not JSON")

    return json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)


def lines_of(data: bytes, name: str) -> dict[str, str]:
    """Parse the output format of `sha256sum`, and return the SHA-256 of each file by path. Raises `ValueError`."""
    found: dict[str, str] = {}
    for number, line in enumerate(data.decode("utf-8").removesuffix("\n").split("\n"), 1):
        match = _LINE.fullmatch(line)
        if match is None or match[2] in found:
            raise ValueError(f"{name}, line {number}: expected a SHA-256, two spaces and a path, each path once")
        found[match[2]] = match[1]
    return found


def digest_of(leaves: dict[str, str]) -> str:
    """Compute the digest of a dataset, which is the root of a Merkle tree (RFC 6962) over the lines of leaves.txt."""
    lines = [f"{leaves[path]}  {path}".encode() for path in sorted(leaves, key=lambda path: path.encode())]
    level = [hashlib.sha256(b"\x00" + line).digest() for line in lines] or [hashlib.sha256().digest()]
    while len(level) > 1:  # an odd last node moves up, as in the RFC's tree
        pairs = [hashlib.sha256(b"\x01" + a + b).digest() for a, b in zip(level[::2], level[1::2])]  # noqa: B905
        level = pairs + level[len(pairs) * 2 :]
    return level[0].hex()


def key_of(data: bytes) -> bytes:
    """Extract the raw key from a public Ed25519 key in PEM or OpenSSH form. Raises `ValueError` for anything else."""
    match, words = _PEM.search(data), data.split()
    text = match[1] if match else words[1] if words[:1] == [b"ssh-ed25519"] and len(words) > 1 else b""
    raw = base64.b64decode(text)
    if raw[:-32] not in (_ED25519_DER, _strings(b"ssh-ed25519", bytes(32))[:-32]):
        raise ValueError("expected a public Ed25519 key in PEM or OpenSSH form")
    return raw[-32:]


def key_id(key: bytes) -> str:
    """Return the id that signatures use for a raw public key."""
    return hashlib.sha256(key).hexdigest()[:16]


def _wrong_files(names: set[str], sums: dict[str, str], read: Read) -> Iterator[str]:
    for name in sorted((names - {SIGNED_SUMS}) ^ sums.keys() ^ {SUMS}):
        yield f"{name}: {f'not listed in {SUMS}' if name in names else f'missing, but listed in {SUMS}'}"
    for name in sorted(sums.keys() & names):
        found = hashlib.sha256(read(name)).hexdigest()
        if found != sums[name]:
            yield f"{name}: its bytes differ from {SUMS}: expected SHA-256 {sums[name]}; found {found}"


def _contradictions(done: EvidenceCheck, names: set[str], read: Read) -> Iterator[str]:
    evidence, audit, manifest = done.evidence, parse(read(AUDIT), AUDIT), parse(read(MANIFEST), MANIFEST)
    if evidence["schema_version"] != SCHEMA_VERSION:
        yield f"{EVIDENCE}: its schema_version is {evidence['schema_version']!r}, expected {SCHEMA_VERSION}"
        return
    types: dict[str, type] = {name: kind for kind, keys in _TYPES for name in keys}
    for name in sorted(evidence.keys() ^ types.keys() ^ {"study"}):
        yield f"{EVIDENCE}: {name}: {'not a key of evidence' if name in evidence else 'is missing'}"
    for name in sorted(evidence.keys() & types.keys()):
        if type(evidence[name]) is not types[name]:  # a bool is an int
            yield f"{EVIDENCE}: {name} is a {type(evidence[name]).__name__}, expected a {types[name].__name__}"
    number = audit["version"]["number"]
    if type(number) not in (int, type(None)):
        yield f"{AUDIT}: version.number is {number!r}, expected a whole number or null"
    matches = (_MANIFEST_NAME.fullmatch(path) for path in done.leaves)
    manifests = {int(match[1] or 1): match[0] for match in matches if match}
    latest = manifests[max(manifests)] if manifests else "dataset.json"
    if done.leaves.get(latest) != hashlib.sha256(read(MANIFEST)).hexdigest():
        yield f"{MANIFEST}: differs from {latest} in {LEAVES}"
    name, digest, study = manifest["name"], digest_of(done.leaves), done.study
    last = manifest["catalog"][-1] if manifest["catalog"] else {"first_shard": 0, "rows": 0}
    shards = last["first_shard"] - -last["rows"] // manifest["images_per_shard"]
    dataset = {"name": name, "digest": digest, "version": number, "manifest": latest, "shards": shards}
    built = {key: manifest[key] for key in ("code_version", "numerics", "weights")}
    built["deidentify"] = manifest["config"].get("deidentify")
    ids = [each["key_id"] for each in evidence["signatures"]]
    signatures = [{"key_id": each, "file": f"versions/{number}.{each}.sig"} for each in ids]
    said: list[tuple[str, str, Any, Any, str]] = [
        (EVIDENCE, "dataset", evidence["dataset"], dataset, f"{AUDIT}, {LEAVES} and {MANIFEST}"),
        (EVIDENCE, "built_with", evidence["built_with"], built, MANIFEST),
        (EVIDENCE, "signatures", evidence["signatures"], signatures, "their keys and the version"),
        (EVIDENCE, "options.sample", evidence["options"]["sample"], audit["sample"], AUDIT),
        (EVIDENCE, "searched_by", evidence["searched_by"], (audit["privacy"] or {}).get("detectors", []), AUDIT),
        (EVIDENCE, "study", evidence["study"], None if study is None else STUDY, "the folder"),
        *((EVIDENCE, key, evidence[key], audit[key], AUDIT) for key in SAME),
        (AUDIT, "version.digest", audit["version"]["digest"], digest, LEAVES),
        (AUDIT, "dataset", audit["dataset"], name, MANIFEST),
        (AUDIT, "kind and scope", [audit["kind"], audit["scope"]], ["segmint", "all"], "a whole audit of a dataset"),
        (AUDIT, "shards", audit["shards"], shards, MANIFEST),
        *((STUDY, key, study[key], manifest[key], MANIFEST) for key in ("name", "config_sha256") if study is not None),
    ]
    if study is not None and study["version"]["number"] == number and number is not None:
        said.append((STUDY, "version.digest", study["version"]["digest"], digest, LEAVES))
    for where, what, *values, source in said:
        found, expected = (json.dumps(value, sort_keys=True) for value in values)  # distinguishes 1, 1.0, and true
        if found != expected:
            yield f"{where}: {what} differs from {source}: expected {expected[:400]}; found {found[:400]}"
    known = {SUMS, EVIDENCE, AUDIT, MANIFEST, LEAVES, PAGE, CHECK, *(each["file"] for each in signatures)}
    for file in sorted(names - {STUDY, SIGNED_SUMS} ^ known):
        yield f"{file}: {'not a file of evidence' if file in names else 'no such file'}"


def wrong_in_dataset(
    path: str, expected: str, open_file: Callable[[str], BinaryIO], not_checked: list[str]
) -> Iterator[str]:
    """Check a dataset's file that the digest covers, and for a commit, the files that it names. Yield the problems.

    Files that couldn't be read are added to `not_checked`.
    """
    try:
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise ValueError("points outside the dataset")
        files: list[Any] = []
        digest = hashlib.sha256()
        with open_file(path) as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                digest.update(block)
            if digest.hexdigest() != expected:
                yield f"{path}: its bytes differ: expected SHA-256 {expected}; found {digest.hexdigest()}"
            elif path.startswith("commits/"):
                stream.seek(0)
                files = parse(stream.read(), path)["files"]
        for file in files:
            yield from wrong_in_dataset(file["path"], file["sha256"], open_file, not_checked)
    except ERRORS as error:
        yield f"{path}: {getattr(error, 'strerror', None) or repr(error)}"
    except OSError as error:
        not_checked.append(f"{UNREAD}{path}: {error}")


def lines_about(done: EvidenceCheck, key: bytes | None) -> list[str]:
    """Return the results and what was not checked, for people."""
    sums, later = f"{SUMS}: {f'sha256:{done.sums}' if done.sums else 'not read'}", done.later or []
    names = ", ".join([*later[:10], *([f"{len(later) - 10} more"] if len(later) > 10 else [])])
    why = "the dataset grew or was corrected since (or has leftovers); not covered by digest or audit:"
    note = [f"{why} {names}"] if later else []
    missed = [f"not checked: {each}" for each in done.not_checked]
    if done.problems or done.evidence is None:
        verdict = f"{'NOT' if done.problems else 'not'} verified"
        return [*(f"problem: {problem}" for problem in done.problems), *note, *missed, f"{sums}; {verdict}"]
    unread = any(each.startswith(UNREAD) for each in done.not_checked)
    read = "was not read: pass --dataset" if done.later is None else "has all files of this digest"
    dataset, mine = done.evidence["dataset"], None if key is None else key_id(key)
    others = ", ".join(dict.fromkeys(each for each in done.signers if each != mine))
    version = "not recorded as a version" if dataset["version"] is None else f"version {dataset['version']}"
    lines = [
        f"dataset {dataset['name']}, {dataset['shards']} shards, digest sha256:{dataset['digest']}",
        *(f"signed by key {mine}: {each}" for each in done.signed),
        *([f"unchecked signatures by the keys {others}: pass --key to check one"] if others else []),
        *([] if done.signers else ["the digest is not signed"]),
        f"the dataset {'has files that could not be read' if unread else read}",
        *note,
        f"the audit says: {version}, {done.evidence['when']}: {done.evidence['verdict']}",
    ]
    if done.study is not None:
        lines.append(f"{STUDY} says: its images were drawn from sha256:{done.study['version'].get('digest')}")
    partly = done.signed and any(each.startswith(_COVERED_BY_NOTHING) for each in done.not_checked)
    unvouched = "the digest is verified, the audit is not" if partly else "not verified"
    return [*lines, *missed, f"{sums}; {unvouched if done.not_checked else 'verified'}"]


def files_in(folder: Path) -> tuple[set[str], list[str]]:
    """List the names of the files in a local folder, and a problem for each other entry. Links aren't followed."""
    below = [path for each in (folder, folder / "versions") if each.is_dir() for path in each.iterdir()]
    modes = {path.relative_to(folder).as_posix(): path.lstat().st_mode for path in below}
    files = {name for name, mode in modes.items() if stat.S_ISREG(mode)}
    others = sorted(name for name in modes.keys() - files if name != "versions" or not stat.S_ISDIR(modes[name]))
    return files, [f"{name}: a link, folder or special file, which evidence never contains" for name in others]


def digest_line(digest: str) -> bytes:
    """Return the line that the owner of a dataset signs."""
    return f"segmint dataset sha256:{digest}\n".encode()


def signed_bytes(namespace: str, message: bytes) -> bytes:
    """Return the bytes that Ed25519 signs for a signature file in OpenSSH's format (PROTOCOL.sshsig)."""
    return b"SSHSIG" + _strings(namespace.encode(), b"", b"sha512", hashlib.sha512(message).digest())


def signature_file(key: bytes, namespace: str, signature: bytes) -> bytes:
    """Build a signature file like `ssh-keygen -Y sign`, from the raw public key and the 64 bytes of the signature."""
    public, signed = _strings(b"ssh-ed25519", key), _strings(b"ssh-ed25519", signature)
    blob = b"SSHSIG\0\0\0\1" + _strings(public, namespace.encode(), b"", b"sha512", signed)
    lines = re.findall(b".{1,70}", base64.b64encode(blob))
    return b"\n".join([b"-----BEGIN SSH SIGNATURE-----", *lines, b"-----END SSH SIGNATURE-----", b""])


def check_signature(key: bytes, namespace: str, message: bytes, file: bytes) -> tuple[bool | None, str]:
    """Check whether `file` is the key's signature of a message. Also returns the name of the tool that checked it.

    If neither `cryptography` nor a working `ssh-keygen` is installed, or the type isn't supported, returns None and the
    reason.
    """
    signature = signed_in(file)[-64:]
    if file != signature_file(key, namespace, signature):
        return (None, other) if (other := _unsupported(file)) else (False, "its form")
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(key).verify(signature, signed_bytes(namespace, message))
        except InvalidSignature:
            return False, "cryptography"
        return True, "cryptography"
    except ImportError:
        return _checked_by_openssh(key, namespace, message, file)


def _checked_by_openssh(key: bytes, namespace: str, message: bytes, file: bytes) -> tuple[bool | None, str]:
    tool = shutil.which("ssh-keygen")
    if tool is None:
        return None, "neither the cryptography package nor OpenSSH's ssh-keygen is installed"
    with tempfile.TemporaryDirectory() as folder:
        allowed, signature = Path(folder, "allowed"), Path(folder, "signature")
        allowed.write_bytes(b"key ssh-ed25519 " + base64.b64encode(_strings(b"ssh-ed25519", key)))
        signature.write_bytes(file)
        command = [tool, "-Y", "verify", "-f", str(allowed), "-I", "key", "-n", namespace, "-s", str(signature)]
        try:
            done = subprocess.run(command, input=message, capture_output=True, check=False)
        except OSError as error:
            return None, f"{tool} can't be run: {error}"
    if done.returncode == 0:
        return True, "ssh-keygen"
    said = done.stderr.decode(errors="replace").strip()
    return (False, "ssh-keygen") if "incorrect signature" in said else (None, f"{tool} failed: {said[:200]}")


def signed_in(file: bytes) -> bytes:
    """Decode a signature file. Returns nothing if it is malformed.

    For an Ed25519 key, bytes 33 to 64 are the public key, and the last 64 bytes are the signature.
    """
    try:
        return base64.b64decode(b"".join(file.split(b"\n")[1:-2]), validate=True)
    except ValueError:
        return b""


def _unsupported(file: bytes) -> str:
    """Explain why a signature file of OpenSSH can't be checked here; nothing for Ed25519 and for any other file."""
    match, supported = _SSHSIG.match(signed_in(file)), "ssh-ed25519 with sha512"
    kind = b" with ".join(match.groups()).decode() if match else supported
    return "" if kind == supported else f"a signature of type {kind}, expected {supported}"


def _strings(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def main(arguments: list[str] | None = None) -> int:
    """Check a folder as the command line requests, and return the exit code."""
    parser = argparse.ArgumentParser(description="Check a folder of evidence about a segmint dataset.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("--sums", metavar="SHA256", help=f"the SHA-256 of {SUMS}, as the auditor published it")
    parser.add_argument("--key", metavar="PUBLIC.pem", type=Path, help="the key that must have signed")
    parser.add_argument("--dataset", metavar="DATASET", type=Path, help="a local dataset that must contain these files")
    options = parser.parse_args(arguments)
    folder, dataset = options.folder, options.dataset
    try:
        key = key_of(options.key.read_bytes()) if options.key else None
        next((dataset or folder).iterdir(), None)  # fails if there is no such folder
        names, others = files_in(folder)
    except (OSError, ValueError) as error:
        parser.error(f"{error}")
    done = (
        EvidenceCheck(others)
        if others
        else check_files(names, lambda at: (folder / at).read_bytes(), options.sums, key)
    )
    if dataset and done.leaves and not done.problems:
        for path, sha256 in done.leaves.items():
            wrong = wrong_in_dataset(path, sha256, lambda name: (dataset / name).open("rb"), done.not_checked)
            done.problems += [f"{dataset}/{problem}" for problem in wrong]
        paths = (
            path
            for each in ("dataset*.json", "commits/*", "tombstones/*", "fingerprints/*")
            for path in dataset.glob(each)
        )
        found = {path.relative_to(dataset).as_posix() for path in paths} - done.leaves.keys()
        done.later = sorted(filter(COVERED.fullmatch, found))
    for line in lines_about(done, key):
        shown = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in line)
        sys.stdout.buffer.write(f"{shown}\n".encode(sys.stdout.encoding, "backslashreplace"))
    return 1 if done.problems else 3 if done.not_checked else 0


if __name__ == "__main__":
    sys.exit(main())
