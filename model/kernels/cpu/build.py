"""Build of the library of CPU kernels with the system's C++ compiler, beside its sources.

    python model/kernels/cpu/build.py [--force] [--sanitize] [--to FILE]

It does nothing if the library is up to date. Without a compiler, or on a system other than Linux, it prints one line
and builds nothing, because segmint then uses torch. `setup.py` loads this file before segmint's dependencies are
installed, so it only imports the standard library.
"""

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
LIBRARY = "liblanes16.so"

# No flag may let the compiler change a result: neither -ffast-math nor fused multiplications that the source lacks.
FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti", "-fno-math-errno"),
    *("-ffp-contract=off", "-Wall", "-Wextra"),
)
LINK = ("-shared", "-static-libgcc", "-Wl,--as-needed", "-Wl,-z,noexecstack")
SANITIZE = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")

_AVX2 = ("-mavx2", "-mfma", "-mpopcnt", "-mbmi")
INSTRUCTION_SETS: dict[str, tuple[str, ...]] = {
    "scalar": (),
    "avx2": ("-DLANES_AVX2", *_AVX2),
    "avx512": ("-DLANES_AVX512", *_AVX2, "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl"),
    "neon": ("-DLANES_NEON",),
}
"""Flags of each instruction set, which also selects its back end in `lanes16.h`."""

_SETS = {
    **dict.fromkeys(("x86_64", "AMD64"), ("scalar", "avx2", "avx512")),
    **dict.fromkeys(("aarch64", "arm64"), ("scalar", "neon")),
}

TIMEOUT_S = 300


class NoKernelsError(Exception):
    """The library can't be built here; the message says why in one line."""


def sources_of(folder: Path) -> list[Path]:
    """Return the files from which the library is built, sorted; empty for an installed wheel, which has none."""
    sources = sorted([*folder.glob("*.cpp"), *folder.glob("*.h")])
    return [*sources, folder / "build.py"] if sources else []


def hash_of(sources: list[Path]) -> str:
    """Return a hash of the files' names and contents: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for source in sources:
        content = source.read_bytes()
        digest.update(f"{source.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def sets_of(machine: str) -> dict[str, tuple[str, ...]]:
    """Return the instruction sets, with their flags, that are built for a machine such as `x86_64`."""
    return {name: INSTRUCTION_SETS[name] for name in _SETS.get(machine, ("scalar",))}


def compiler() -> str:
    """Return the C++ compiler: `$CXX`, or the first of g++, clang++, and c++. Raises `NoKernelsError` without one."""
    named = os.environ.get("CXX")
    for name in [named] if named else ["g++", "clang++", "c++"]:
        found = shutil.which(name)
        if found:
            return found
    raise NoKernelsError(f"there is no C++ compiler ({named or 'g++, clang++, or c++'})")


def build(
    target: Path, folder: Path = FOLDER, sanitize: bool = False, only: str | None = None, machine: str | None = None
) -> None:
    """Compile the sources in `folder`, for all instruction sets or `only` one, and replace the library `target`.

    For a `machine` other than this one, `$CXX` must be a cross compiler. The library is replaced at once, and stays as
    it is if a `NoKernelsError` is raised.
    """
    if sys.platform != "linux":
        raise NoKernelsError(f"the CPU kernels aren't built on {sys.platform}, only on Linux")
    cxx = compiler()
    flags = (*FLAGS, *SANITIZE) if sanitize else FLAGS
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".lanes16-") as scratch:
        units: list[tuple[str, str, tuple[str, ...]]] = [
            ("library", "library.cpp", (f'-DSOURCES_HASH="{hash_of(sources_of(folder))}"',))
        ]
        for name, own in sets_of(machine or platform.machine()).items():
            if only in (None, name):
                units.append((name, "kernels.cpp", (f"-DLANES_NAME={name}", *own)))
        objects = [str(Path(scratch, f"{name}.o")) for name, _, _ in units]
        commands = [
            [cxx, *flags, *own, "-c", str(folder / source), "-o", compiled]
            for (_, source, own), compiled in zip(units, objects, strict=True)
        ]
        with ThreadPoolExecutor(len(commands)) as pool:
            list(pool.map(_run, commands))
        linked = Path(scratch, target.name)
        _run([cxx, *LINK, *(SANITIZE if sanitize else ()), *objects, "-o", str(linked), "-lm"])
        linked.replace(target)


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoKernelsError(f"the C++ compiler failed: {error}") from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise NoKernelsError(f"the C++ compiler failed: {(lines or [f'exit code {done.returncode}'])[0]}")


def main() -> None:
    """Build the library if it is missing or was built from other sources."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--force", action="store_true", help="build even if the library is up to date")
    parser.add_argument("--sanitize", action="store_true", help="with AddressSanitizer and UBSan")
    parser.add_argument("--to", type=Path, default=FOLDER / LIBRARY, help="the library's file")
    arguments = parser.parse_args()
    target: Path = arguments.to
    built_from = hash_of(sources_of(FOLDER)).encode()
    if not arguments.force and target.exists() and built_from in target.read_bytes():
        target.touch()  # for make, which compares times
        return
    try:
        build(target, sanitize=arguments.sanitize)
    except NoKernelsError as error:
        print(f"built no CPU kernels: {error}. segmint will use torch, which is slower.", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    main()
