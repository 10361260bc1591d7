"""Collect what `benchmarks/gpu.py` needs on a machine without network: weights, photographs, the reference package.

    python benchmarks/bundle.py [FOLDER]

Writes `mobile_sam.pt`, `photos/`, `segment_anything/` and `benchmarks/reference.py`, which builds the package's models,
into the folder (default `bundle/`, which git ignores), under 60 MiB in all. The photographs are scikit-image's, or
those named dog.jpg and truck.jpg in `SEGMINT_TEST_PHOTOS`.
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

LIMIT = 60 << 20


def main() -> None:
    """Write a new bundle and print its size."""
    from segmint.infra.assets.resolve import resolve

    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "bundle"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "photos").mkdir(parents=True)
    shutil.copyfile(resolve("mobile_sam"), folder / "mobile_sam.pt")
    copy_photographs(folder / "photos")
    copy_reference(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > LIMIT:
        sys.exit(f"{folder} takes {size / 2**20:.1f} MiB: expected at most {LIMIT >> 20}")
    print(f"{folder}: {size / 2**20:.1f} MiB")


def copy_photographs(folder: Path) -> None:
    """Write two photographs as files."""
    given = os.environ.get("SEGMINT_TEST_PHOTOS")
    if given:
        for name in ("dog.jpg", "truck.jpg"):
            shutil.copyfile(Path(given) / name, folder / name)
        return
    from skimage import data

    for name in ("astronaut", "coffee"):
        Image.fromarray(getattr(data, name)()).save(folder / f"{name}.png")


def copy_reference(folder: Path) -> None:
    """Copy the sources of the installed reference package, and the module that builds its models for comparisons."""
    found = importlib.util.find_spec("segment_anything")
    if found is None or found.origin is None:
        sys.exit("segment-anything is not installed: run `make setup` first")
    shutil.copytree(
        Path(found.origin).parent, folder / "segment_anything", ignore=shutil.ignore_patterns("__pycache__")
    )
    (folder / "benchmarks").mkdir()
    shutil.copyfile(ROOT / "benchmarks" / "reference.py", folder / "benchmarks" / "reference.py")


if __name__ == "__main__":
    main()
