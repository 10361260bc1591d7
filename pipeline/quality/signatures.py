"""Ed25519 signatures of recorded versions.

The signature of version 3 is `versions/3.<key id>.sig`: an OpenSSH signature (PROTOCOL.sshsig) in the namespace
`segmint-dataset`. It signs the line `segmint dataset sha256:<digest> files sha256:<list>`, including its newline, where
`<list>` is the SHA-256 of the list of the version's files. In segmint 0.3.0, the line ended after the digest. The key
id is the first 16 hexadecimal digits of the SHA-256 of the raw public key.
"""

import base64
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.digest import take_snapshot
from segmint.catalogs.dataset.manifest import load_manifest, require_published
from segmint.catalogs.dataset.versions import (
    SIGNATURE_NAME,
    VERSIONS,
    Version,
    VersionName,
    check_readable,
    files_sha256,
    find_version,
    latest_version,
)
from segmint.catalogs.layout import CATALOG, DATA_KINDS, DamagedDatasetError, bytes_sha256
from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import NotFoundError, ObjectTooLargeError
from segmint.infra.storage.location import Location
from segmint.infra.wording import some

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_NAMESPACE = "segmint-dataset"
_MOST_BYTES = 1 << 20  # of a file with a key or a signature
_HOW = "Create one: openssl genpkey -algorithm ed25519 -out key.pem; openssl pkey -in key.pem -pubout -out public.pem"


@dataclass(frozen=True)
class SignatureResult:
    """Result of signing."""

    dataset: str
    file: str  # relative to the dataset
    key_id: str
    files_sha256: str  # of the list of the version's files
    version: VersionName

    def lines(self) -> list[str]:
        return [
            f"signed with key {self.key_id}: {self.file}",
            f"list of files: sha256:{self.files_sha256}",
            self.version.line(),
        ]


def sign_version(
    dataset: Location, key_file: Location, wanted: int | str | None = None, ask: Callable[[], str] | None = None
) -> SignatureResult:
    """Sign a recorded version, by default the latest one, with a private key from a PEM file.

    The latest version is signed only if the dataset still matches it: its files must have the committed sizes, and the
    catalog's parts must have the recorded hashes. `ask` returns the passphrase of an encrypted key. Raises `UsageError`
    if the key is unsuitable, if the version is missing or can no longer be read, or if the dataset has changed or isn't
    for publication.
    """
    require_published(load_manifest(dataset), dataset, "signed")
    key = read_private_key(key_file, ask)
    latest = latest_version(dataset)
    if latest is None:
        raise UsageError(f"{dataset} has no recorded version to sign. A build or correction records one when it ends")
    version = latest if wanted is None else find_version(dataset, wanted)
    digest = take_snapshot(dataset, use_cache=False).digest
    if version == latest and digest != version.digest:
        raise UsageError(
            f"{dataset} differs from its version {version.number}: its digest is sha256:{digest}, expected "
            f"sha256:{version.digest}. Run `segmint verify` to see what differs"
        )
    sizes, wrong = {}, []
    for kind in (*DATA_KINDS, CATALOG):
        for listed_file in (dataset / kind).list():
            sizes[f"{kind}/{listed_file.name}"] = listed_file.size
    for commit in CommitLog(dataset).read_all():
        wrong += [file.path for file in commit.files if sizes.get(file.path) != file.size]
    if version == latest:
        for part in load_manifest(dataset).catalog:
            if part.path not in sizes or (dataset / part.path).sha256() != part.sha256:
                wrong.append(part.path)
        if wrong:
            raise UsageError(f"{dataset}: missing or damaged: {some(wrong)}. Run `segmint repair {dataset}`")
    check_readable(dataset, version)
    listed = files_sha256(dataset, version.snapshot)
    public = key.public_key().public_bytes_raw()
    path = signature_path(version.number, key_id(public))
    signature = key.sign(signed_bytes(signed_line(version.digest, listed)))
    if not (dataset / path).put_if_absent(signature_file(public, signature)):
        raise UsageError(
            f"{dataset / path} is another signature, from another key or segmint 0.3.0. Remove it and sign again"
        )
    return SignatureResult(str(dataset), path, key_id(public), listed, version.name)


def check_version(dataset: Location, version: Version | None, key: bytes) -> tuple[str | None, str | None]:
    """Check a key's signature of a version. Returns its problem, if any, and a note if it doesn't cover the files."""
    identity = key_id(key)
    if version is None:
        return f"no intact version is recorded that key {identity} could have signed", None
    path = signature_path(version.number, identity)
    try:
        signature = (dataset / path).read()
    except NotFoundError:
        others = signers(dataset, version.number)
        signed = f"only the keys {', '.join(others)} signed it" if others else "it is not signed"
        return f"{path}: no such file: key {identity} didn't sign version {version.number}; {signed}", None
    if is_signature(signature, key, signed_line(version.digest)):
        return None, (
            f"{path}: made by segmint 0.3.0, so it covers the digest but not the list of files that evidence contains. "
            "Remove it and sign again to cover both"
        )
    try:
        files = files_sha256(dataset, version.snapshot)
    except DamagedDatasetError as error:
        return f"{path}: can't be checked, because the list of files can't be made: {error}", None
    if is_signature(signature, key, signed_line(version.digest, files)):
        return None, None
    wrong = f"not the signature of sha256:{version.digest}, the digest of version {version.number}, by key {identity}"
    return f"{path}: {wrong}", None


def signature_path(number: int, identity: str) -> str:
    """Return the path of a signature file relative to the dataset."""
    return f"{VERSIONS}/{number}.{identity}.sig"


def signers(dataset: Location, number: int) -> list[str]:
    """Return the ids of the keys that signed a version, from the file names. The signatures aren't checked."""
    matches = (SIGNATURE_NAME.fullmatch(entry.name) for entry in (dataset / VERSIONS).list())
    return sorted(match[2] for match in matches if match is not None and int(match[1]) == number)


def key_id(key: bytes) -> str:
    """Return the id that signatures use for a raw public key."""
    return bytes_sha256(key)[:16]


def signed_line(digest: str, files: str | None = None) -> bytes:
    """Return the line that the owner of a dataset signs.

    `digest` is the version's digest, and `files` is the SHA-256 of the list of its files. Without it, the line is the
    one that segmint 0.3.0 signed.
    """
    covered = "" if files is None else f" files sha256:{files}"
    return f"segmint dataset sha256:{digest}{covered}\n".encode()


def signed_bytes(message: bytes) -> bytes:
    """Return the bytes that Ed25519 signs for a signature file of a message."""
    return b"SSHSIG" + _strings(_NAMESPACE.encode(), b"", b"sha512", hashlib.sha512(message).digest())


def signature_file(key: bytes, signature: bytes) -> bytes:
    """Build a signature file like `ssh-keygen -Y sign`, from the raw public key and the 64 bytes of the signature."""
    public, signed = _strings(b"ssh-ed25519", key), _strings(b"ssh-ed25519", signature)
    blob = b"SSHSIG\0\0\0\1" + _strings(public, _NAMESPACE.encode(), b"", b"sha512", signed)
    lines = re.findall(b".{1,70}", base64.b64encode(blob))
    return b"\n".join([b"-----BEGIN SSH SIGNATURE-----", *lines, b"-----END SSH SIGNATURE-----", b""])


def signer_of(file: bytes) -> bytes:
    """Return the raw public key in a signature file, or other bytes if the file is malformed."""
    return _signed_in(file)[33:65]


def is_signature(file: bytes, key: bytes, message: bytes) -> bool:
    """Return whether `file` is a signature file of the message by the raw public key, exactly as OpenSSH writes it."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    signature = _signed_in(file)[-64:]
    if file != signature_file(key, signature):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, signed_bytes(message))
    except InvalidSignature:
        return False
    return True


def _signed_in(file: bytes) -> bytes:
    """Decode a signature file. Returns nothing if it is malformed.

    Bytes 33 to 64 are the public key, and the last 64 bytes are the signature.
    """
    try:
        return base64.b64decode(b"".join(file.split(b"\n")[1:-2]), validate=True)
    except ValueError:
        return b""


def _strings(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def damaged_signatures(dataset: Location) -> list[str]:
    """Return the paths of signature files that aren't in the format of a signature by the key in their name."""
    damaged = []
    for entry in (dataset / VERSIONS).list():
        match = SIGNATURE_NAME.fullmatch(entry.name)
        if match is None:
            continue
        path = f"{VERSIONS}/{entry.name}"
        try:
            data = (dataset / path).read(_MOST_BYTES)
        except ObjectTooLargeError:
            data = b""
        key = signer_of(data)
        if key_id(key) != match[2] or data != signature_file(key, _signed_in(data)[-64:]):
            damaged.append(path)
    return damaged


def read_public_key(file: Location) -> bytes:
    """Read a raw public Ed25519 key from a file in PEM or OpenSSH format. Raises `UsageError` for anything else."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key, load_ssh_public_key

    data = _read(file)
    if b"PRIVATE KEY" in data:
        raise UsageError(f"{file} is a private key. Verify with the public key (openssl pkey -in KEY -pubout)")
    load = load_ssh_public_key if data.startswith(b"ssh-") else load_pem_public_key
    try:
        key = load(data)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{file} is not a public Ed25519 key in PEM or OpenSSH format. {_HOW}")
    return key.public_bytes_raw()


def read_private_key(file: Location, ask: Callable[[], str] | None = None) -> "Ed25519PrivateKey":
    """Read a private Ed25519 key in PEM or OpenSSH format, asking for its passphrase if it is encrypted.

    Raises `UsageError` if the file isn't such a key or the passphrase is wrong.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

    data = _read(file)
    if b"PUBLIC KEY" in data or data.startswith(b"ssh-"):
        raise UsageError(f"{file} is a public key. Sign with the private key that it belongs to")
    load = load_ssh_private_key if b"OPENSSH PRIVATE KEY" in data else load_pem_private_key
    try:
        try:
            key = load(data, password=None)
        except TypeError:  # the key is encrypted
            if ask is None:
                raise UsageError(f"{file} is encrypted, and there's no terminal to ask for its passphrase") from None
            key = load(data, password=ask().encode())
    except UnsupportedAlgorithm as error:  # such as an encrypted OpenSSH key without the bcrypt package
        raise UsageError(f"{file} can't be read here: {error}. Install what is missing, or use another key") from error
    except ValueError as error:
        raise UsageError(f"{file} is not a private key in PEM or OpenSSH format: {error}. {_HOW}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{file} is a {type(key).__name__}: expected an Ed25519 key. {_HOW}")
    return key


def _read(file: Location) -> bytes:
    try:
        return file.read(_MOST_BYTES)
    except NotFoundError as error:
        raise UsageError(f"{file}: no such key") from error
