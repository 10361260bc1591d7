"""SHA-256 of weight files, and checks against it."""

import hashlib
from pathlib import Path

from segmint.infra.assets.known import Asset, AssetError

_BLOCK = 1 << 22

_hashes: dict[tuple[str, int, int, int, int], str] = {}


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal, cached while its inode, size and times stay the same."""
    status = path.stat()
    # The change time is set by the system: unlike the modification time, nobody can set it back.
    key = (str(path.resolve()), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    if key not in _hashes:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        _hashes[key] = digest.hexdigest()
    return _hashes[key]


def verify(path: Path, asset: Asset) -> None:
    """Raise `AssetError`, with both hashes, when the file at `path` is not `asset`."""
    if not path.is_file():
        raise AssetError(f"{path} is not a file: expected {asset.file_name} ({asset.name})")
    found = sha256_of(path)
    if found != asset.sha256:
        raise AssetError(
            f"{path} is not {asset.name}: expected SHA-256 {asset.sha256} ({asset.size} bytes), "
            f"found {found} ({path.stat().st_size} bytes)"
        )


def pinned(path: Path, sha256: str | None) -> Path:
    """Return `path` after comparing its SHA-256 (None: no check). Raises `AssetError`, with both hashes."""
    if sha256 is not None and sha256_of(path) != sha256:
        raise AssetError(
            f"{path} is not the file that the dataset was begun with: expected SHA-256 {sha256}, "
            f"found {sha256_of(path)}. Put that file back, on every machine"
        )
    return path
