"""Cache of weight files, filled from stores and the web and verified by SHA-256."""

import hashlib
import os
import re
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from segmint.infra.assets.known import Asset, AssetError, plain_name, refuse_credentials
from segmint.infra.errors import UsageError
from segmint.infra.uris import base_name, redact

if TYPE_CHECKING:
    from segmint.infra.storage.storage import Storage

CACHE_VARIABLE = "SEGMINT_CACHE"

_PINNED_ADDRESS = re.compile(r"^(https?://[^#]+)#sha256=([0-9a-fA-F]{64})$")


def cache_folder() -> Path:
    """Return the folder in `SEGMINT_CACHE` if it is set, otherwise `segmint` in the user's cache folder.

    Raises `UsageError` if the variable isn't set and the user has no home folder.
    """
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given)
    caches = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(caches) if caches else Path.home() / ".cache") / "segmint"
    except RuntimeError as error:
        raise UsageError(
            f"this user has no home folder, which would contain the cache: set {CACHE_VARIABLE} to a folder"
        ) from error


def fetch_from_mirror(uri: str, asset: Asset, storage: "Storage | None") -> Path:
    """Fetch a known asset from a mirror, unless it's already cached. Raises `AssetError` if the file is wrong."""
    cached = cache_folder() / asset.file_name
    if cached.is_file() and sha256_of(cached) == asset.sha256:
        return cached
    fetched = fetch_from_store(uri, storage)
    verify(fetched, asset)
    return fetched.replace(cached)


def fetch_from_store(uri: str, storage: "Storage | None") -> Path:
    """Fetch an object into the cache, under a name that combines the start of its SHA-256 and its own name."""
    from segmint.infra.storage.storage import Storage

    cache = _private_cache()
    temporary = cache / f".tmp-{uuid.uuid4().hex}"
    try:
        (storage or Storage()).get_file(uri, temporary)
        # Keep the caller's name, but distinguish files that have the same name and different content.
        return temporary.replace(cache / f"{sha256_of(temporary)[:12]}-{base_name(uri)}")
    finally:
        temporary.unlink(missing_ok=True)


def fetch_pinned(address: str) -> Path:
    """Fetch `https://…#sha256=<64 digits>`. Raises `AssetError` if the address doesn't contain a hash."""
    match = _PINNED_ADDRESS.match(address)
    if match is None:
        raise AssetError(f"{redact(address)} is not pinned: append #sha256=<the file's 64 hexadecimal digits>")
    refuse_credentials(address)
    url, sha256 = match.group(1), match.group(2).lower()
    try:
        return download(url, sha256, f"{sha256[:12]}-{plain_name(url)}")
    except (OSError, ValueError) as error:
        raise AssetError(f"cannot fetch {redact(address)}: {redact(str(error))}") from error


def download(url: str, sha256: str, file_name: str) -> Path:
    """Download a URL with pooch. The file gets its final name only after pooch has verified the hash."""
    import logging

    import pooch

    pooch.get_logger().setLevel(logging.WARNING)
    keeper = pooch.create(
        path=_private_cache(),
        base_url="",
        registry={file_name: f"sha256:{sha256}"},
        urls={file_name: url},
        retry_if_failed=1,
    )
    return Path(keeper.fetch(file_name, downloader=pooch.HTTPDownloader(timeout=30)))


def _private_cache() -> Path:
    """Return the cache folder, which only its owner can read, because weights may be private.

    Raises `AssetError` if it can't be created or written.
    """
    folder = cache_folder()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"no permission to write to {folder}")
    except OSError as error:
        raise AssetError(
            f"the cache {folder} can't be written: {error}. Set {CACHE_VARIABLE} to a folder that you can write"
        ) from error
    return folder


_hashes: dict[tuple[str, int, int, int, int], str] = {}


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal. It's cached until the file's inode, size, or times change."""
    status = path.stat()
    # Include the change time. Users can set back the modification time, but only the system sets the change time.
    key = (str(path.resolve()), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    if key not in _hashes:
        with path.open("rb") as file:
            _hashes[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _hashes[key]


def verify(path: Path, asset: Asset) -> None:
    """Raise `AssetError` with both hashes if the file at `path` doesn't match `asset`."""
    if not path.is_file():
        raise AssetError(f"{path} is not a file: expected {asset.file_name} ({asset.name})")
    found = sha256_of(path)
    if found != asset.sha256:
        raise AssetError(
            f"{path} is not {asset.name}: expected SHA-256 {asset.sha256} ({asset.size} bytes), "
            f"found {found} ({path.stat().st_size} bytes)"
        )


def pinned(path: Path, sha256: str | None) -> Path:
    """Return `path` after checking the file's SHA-256. If `sha256` is None, skip the check.

    Raises `AssetError` with both hashes if they differ.
    """
    if sha256 is not None and sha256_of(path) != sha256:
        raise AssetError(
            f"{path} is not the file that the dataset was created with: expected SHA-256 {sha256}, "
            f"found {sha256_of(path)}. Restore that file on every machine"
        )
    return path
