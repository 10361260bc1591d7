"""Collector of what `benchmarks/gpu/day.py` and `benchmarks/gpu/builds.py` need on a GPU machine without a network.

    python benchmarks/gpu/bundle.py [FOLDER] [--python 3.12]

The script writes these files to the folder (default `bundle/`, which git ignores). Together with the checkout, they
take less than 63 MiB.

- `mobile_sam.pt` and `clp_det.onnx`: weights. The face detector's weights are in its package.
- `photos/`: scikit-image's photographs, and dog.jpg and truck.jpg from `SEGMINT_TEST_PHOTOS`.
- `test-photos/`: the photographs from `SEGMINT_TEST_PHOTOS` that the tests marked `cuda` need.
- `wheels/`: packages for Linux on x86-64 and the given version of Python, in the versions of constraints.txt. Packages
  that torch includes or needs are left out, so that nothing is replaced on a machine that has torch.
- `wheels.txt`: the names and versions of the packages, for `make gpu-day`.

A second folder (default `bundle-ray/`) receives `packages.tar.xz`: Ray and all other packages of a build that the
machine lacks, unpacked, without files that a build on one machine never opens. Together with the checkout, it takes
less than 63 MiB, too. There are two folders so that they can be copied one after the other.
"""

import argparse
import lzma
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

LIMIT = 63 << 20
"""Maximum size in bytes of the checkout together with one of the folders."""

WHEELS = (
    *("pycocotools", "segment-anything", "Pebble", "simplejpeg", "facenet-pytorch"),
    *("pydantic", "pydantic_core", "annotated-types", "typing-inspection", "typing_extensions"),
    *("pytest", "pluggy", "iniconfig", "packaging", "Pygments", "pytest-timeout", "hypothesis", "sortedcontainers"),
    *("structlog", "tenacity"),
)
"""Packages to bundle. Dependencies of torch, torchvision, and onnxruntime are left out, because the machine has
them."""

RAY_PACKAGES = (
    *("ray", "click", "filelock", "jsonschema", "jsonschema-specifications", "referencing", "rpds-py", "attrs"),
    *("msgpack", "packaging", "PyYAML", "requests", "certifi", "charset-normalizer", "idna", "urllib3"),
    *("s3fs", "fsspec", "aiobotocore", "botocore", "jmespath", "aioitertools", "python-dateutil", "six", "wrapt"),
    *("aiohttp", "aiohappyeyeballs", "aiosignal", "frozenlist", "multidict", "propcache", "yarl"),
    *("pydantic", "pydantic_core", "annotated-types", "typing-inspection", "typing_extensions"),
    *("typer", "annotated-doc", "shellingham", "rich", "markdown-it-py", "mdurl", "Pygments", "structlog", "tenacity"),
    *("pooch", "platformdirs", "Pebble", "license-expression", "boolean.py", "cryptography", "cffi", "pycparser"),
    *("pi-heif", "simplejpeg", "pycocotools", "duckdb", "c2pa-python", "toml", "ijson", "facenet-pytorch", "tqdm"),
)
"""Packages of a build. `ON_MACHINE` and the dependencies of torch aren't included."""

ON_MACHINE = (
    *("torch", "torchvision", "numpy", "opencv-python-headless", "pillow", "pyarrow", "onnxruntime", "protobuf"),
    *("scipy", "pandas"),
)
"""Packages that a build needs and the machine must have. They are large, or torch depends on their versions."""

UNUSED = re.compile(
    r"^ray/(jars|dashboard/client|rllib|serve|llm|cpp|workflow)/"
    r"|^botocore/data/(?!s3/|sts/|sso|endpoints|partitions|_retry|sdk-default)"
    r"|\.(map|pyx|pxd|pyi|proto|rlib|d)$|/tests?/"
)
"""Files in the packages that a build on one machine never opens."""

LARGE_FILE = 1 << 20
XZ_FILTERS: list[dict[str, int]] = [
    {"id": lzma.FILTER_X86},
    {"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 128 << 20},
]

PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 17, 12, 5)] + ["manylinux2014_x86_64"]
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea")


def main() -> None:
    """Write a new bundle and print its size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "bundle")
    parser.add_argument("--python", default="3.12", help="version of Python on the GPU machine")
    parser.add_argument("--ray", type=Path, default=ROOT / "bundle-ray", help="folder of Ray and its packages")
    parser.add_argument("--wheels", action=argparse.BooleanOptionalAction, default=True, help="needs a package index")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "photos").mkdir(parents=True)
    copy_weights(folder)
    copy_photographs(folder)
    if arguments.wheels:
        wanted = download(WHEELS, arguments.python, folder / "wheels")
        (folder / "wheels.txt").write_text("".join(f"{line}\n" for line in wanted))
    check_size(folder)
    if arguments.wheels:
        arguments.ray.mkdir(parents=True, exist_ok=True)
        write_ray_packages(arguments.ray / "packages.tar.xz", arguments.python)
        check_size(arguments.ray)


def check_size(folder: Path) -> None:
    """Print the size of a folder. Raises SystemExit if the folder and the checkout exceed the limit."""
    size, checkout = size_of(folder.rglob("*")), size_of(tracked())
    if size + checkout > LIMIT:
        sys.exit(
            f"{folder} takes {size / 2**20:.1f} MiB and the checkout {checkout / 2**20:.1f}: expected at most "
            f"{LIMIT >> 20} together"
        )
    print(f"{folder}: {size / 2**20:.1f} MiB, and {checkout / 2**20:.1f} MiB of the checkout")


def copy_weights(folder: Path) -> None:
    """Copy the weights under the names that they have in a cache of weight files."""
    from segmint.infra.assets import ASSETS, resolve

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


def download(names: Iterable[str], python: str, folder: Path) -> list[str]:
    """Download wheels for another version of Python with pip. Return the names with the versions."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {normal(line.partition("==")[0]): line for line in lines if "==" in line}
    wanted = [pinned[normal(name)] for name in names]
    options = ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    for platform in (*PLATFORMS, "any"):
        options += ["--platform", platform]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, *options, "--dest", str(folder), *wanted], check=True)
    return wanted


def write_ray_packages(archive: Path, python: str) -> None:
    """Write the packages of a build to a compressed archive."""
    with tempfile.TemporaryDirectory() as temporary:
        wheels, site = Path(temporary) / "wheels", Path(temporary) / "site"
        download(RAY_PACKAGES, python, wheels)
        for wheel in sorted(wheels.glob("*.whl")):
            unpack(wheel, site)
        strip_symbols(site)
        compress(site, archive)


def compress(folder: Path, archive: Path) -> None:
    """Write the folder's files to a `tar.xz`.

    Large files come first, because Ray's programs and its library contain the same code. The dictionary covers them.
    """
    files = [path for path in folder.rglob("*") if path.is_file()]

    def order(path: Path) -> tuple[int, Path]:
        size = path.stat().st_size
        return (-size if size > LARGE_FILE else 0), path

    with (
        lzma.open(archive, "wb", check=lzma.CHECK_CRC32, filters=XZ_FILTERS) as stream,
        tarfile.open(fileobj=stream, mode="w|") as written,
    ):
        for path in sorted(files, key=order):
            written.add(path, arcname=str(path.relative_to(folder)))


def unpack(wheel: Path, folder: Path) -> None:
    """Unpack a wheel like an installation, but without its unused files and its commands."""
    with zipfile.ZipFile(wheel) as files:
        for member in files.infolist():
            path = installed_path(member.filename)
            if member.is_dir() or path is None:
                continue
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(files.read(member))
            mode = (member.external_attr >> 16) & 0o777
            if mode:
                target.chmod(mode)


def installed_path(member: str) -> str | None:
    """Return where a wheel's file belongs, relative to the packages' folder. None if a build doesn't need it."""
    moved = re.match(r"[^/]+\.data/([^/]+)/(.*)$", member)
    path = member
    if moved:
        if moved[1] not in ("purelib", "platlib"):
            return None
        path = moved[2]
    return None if UNUSED.search(path) else path


def strip_symbols(folder: Path) -> None:
    """Remove debugging symbols from libraries and from Ray's programs, if `strip` is installed."""
    strip = shutil.which("strip")
    if strip is None:
        return
    programs = [folder / "ray/core/src/ray/gcs/gcs_server", folder / "ray/core/src/ray/raylet/raylet"]
    for path in [*folder.rglob("*.so*"), *programs]:
        # Files that it can't change stay as they are.
        subprocess.run([strip, "--strip-unneeded", str(path)], stderr=subprocess.DEVNULL, check=False)


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
