"""Print the installed size of segmint's base and what each extra adds, from this environment's packages.

    make setup && .venv/bin/python benchmarks/extra_sizes.py

Sizes are in MB (10^6 bytes) and don't include bytecode. docs/README.md contains the results. `make setup` doesn't
install the extra `azure`.
"""

import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
GPU = ("torch", "triton", "nvidia-", "cuda-")


def packages(requirements: Iterable[str]) -> set[str]:
    """Resolve requirements to the names of all packages that they install."""
    wanted = [Requirement(text) for text in requirements]
    seen: set[tuple[str, str]] = set()
    while wanted:
        requirement = wanted.pop()
        name = canonicalize_name(requirement.name)
        if name == "segmint":
            wanted += [Requirement(text) for extra in requirement.extras for text in EXTRAS[extra]]
            continue
        for extra in {"", *requirement.extras} - {extra for known, extra in seen if known == name}:
            seen.add((name, extra))
            needed = map(Requirement, distribution(name).requires or ())
            wanted += [one for one in needed if one.marker is None or one.marker.evaluate({"extra": extra})]
    return {name for name, _ in seen}


def megabytes(names: Iterable[str]) -> int:
    """Sum up the sizes of the packages' files in megabytes."""
    files = (file.locate() for name in names for file in distribution(name).files or () if file.suffix != ".pyc")
    return round(sum(Path(file).stat().st_size for file in files if Path(file).exists()) / 1e6)


if __name__ == "__main__":
    base = packages(PROJECT["dependencies"])
    print(f"base: {megabytes(base):,} MB, of which torch for GPUs: {megabytes(n for n in base if n.startswith(GPU)):,}")
    for extra in [extra for extra in EXTRAS if extra not in ("docs", "test")]:
        try:
            print(f"{extra}: {megabytes(packages([f'segmint[{extra}]']) - base):,} MB")
        except PackageNotFoundError as error:
            print(f"{extra}: {error.name} isn't installed")
