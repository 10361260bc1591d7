"""Collector of everything that a GPU day (`benchmarks/gpu/day.py`) needs on a machine without a network.

    python benchmarks/gpu/bundle.py [FOLDER] [--python 3.12]

The script writes these files to the folder (default `bundle/`, which git ignores). Together with the checkout, they
take less than 63 MiB.

- `mobile_sam.pt` and `clp_det.onnx`: weights. The face detector's weights are in its package.
- `photos/`: scikit-image's photographs, and dog.jpg and truck.jpg from `SEGMINT_TEST_PHOTOS`.
- `test-photos/`: the photographs from `SEGMINT_TEST_PHOTOS` that the tests marked `cuda` need.
- `wheels/`: packages for Linux on x86-64 and the given version of Python, in the versions of constraints.txt. Packages
  that torch includes or needs are left out, so that nothing is replaced on a machine that has torch.
- `wheels.txt`: the names and versions of the packages, for `make gpu-day`.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

LIMIT = 63 << 20

WHEELS = (
    *("pycocotools", "segment-anything", "Pebble", "simplejpeg", "facenet-pytorch"),
    *("pydantic", "pydantic_core", "annotated-types", "typing-inspection", "typing_extensions"),
    *("pytest", "pluggy", "iniconfig", "packaging", "Pygments", "pytest-timeout", "hypothesis", "sortedcontainers"),
    *("structlog", "tenacity"),
)
"""Packages to bundle. Dependencies of torch, torchvision, and onnxruntime are left out, because the machine has
them."""

PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 17, 12, 5)] + ["manylinux2014_x86_64"]
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea")


def main() -> None:
    """Write a new bundle and print its size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "bundle")
    parser.add_argument("--python", default="3.12", help="version of Python on the GPU machine")
    parser.add_argument("--wheels", action=argparse.BooleanOptionalAction, default=True, help="needs a package index")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "photos").mkdir(parents=True)
    copy_weights(folder)
    copy_photographs(folder)
    if arguments.wheels:
        download_wheels(folder, arguments.python)
    size, checkout = size_of(folder.rglob("*")), size_of(tracked())
    if size + checkout > LIMIT:
        sys.exit(
            f"{folder} takes {size / 2**20:.1f} MiB and the checkout {checkout / 2**20:.1f}: expected at most "
            f"{LIMIT >> 20} together"
        )
    print(f"{folder}: {size / 2**20:.1f} MiB, and {checkout / 2**20:.1f} MiB of the checkout")


def copy_weights(folder: Path) -> None:
    """Copy the weights under the names that they have in a cache of weight files."""
    from segmint.infra.assets.known import ASSETS
    from segmint.infra.assets.resolve import resolve

    for name in ("mobile_sam", "clp"):
        shutil.copyfile(resolve(name), folder / ASSETS[name].file_name)


def copy_photographs(folder: Path) -> None:
    """Write the photographs as files."""
    from skimage import data

    for name in PHOTOGRAPHS:
        Image.fromarray(getattr(data, name)()).save(folder / "photos" / f"{name}.png")
    given = os.environ.get("SEGMINT_TEST_PHOTOS")
    if given:
        (folder / "test-photos").mkdir()
        for name in ("photos/dog.jpg", "photos/truck.jpg", "test-photos/multiface.jpg", "test-photos/plate_car_1.png"):
            shutil.copyfile(Path(given) / Path(name).name, folder / name)


def download_wheels(folder: Path, python: str) -> None:
    """Download the wheels with pip for another version of Python."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {normal(line.partition("==")[0]): line for line in lines if "==" in line}
    wanted = [pinned[normal(name)] for name in WHEELS]
    options = ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    for platform in (*PLATFORMS, "any"):
        options += ["--platform", platform]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, *options, "--dest", str(folder / "wheels"), *wanted], check=True)
    (folder / "wheels.txt").write_text("".join(f"{line}\n" for line in wanted))


def normal(name: str) -> str:
    """Return a package's name as indexes normalize it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def tracked() -> list[Path]:
    """List the files of the checkout. The list is empty outside a repository."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False).stdout
    return [ROOT / name for name in listed.decode().split("\0") if name]


def size_of(paths: Iterable[Path]) -> int:
    """Sum up the sizes in bytes of the files among the paths."""
    return sum(path.stat().st_size for path in paths if path.is_file() and not path.is_symlink())


if __name__ == "__main__":
    main()
