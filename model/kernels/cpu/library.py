"""Loader of the library of CPU kernels.

The library is optional. If it can't be used, `usable_kernels` returns None, and `reason` returns the reason in one
line. The functions release the GIL, don't start threads, and write only to their output.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from segmint.model.kernels.cpu.build import FOLDER, INSTRUCTION_SETS, LIBRARY, hash_of, sources_of

LANES16 = "lanes16-1"
"""Name of the kernels' algorithm in a dataset's numerics, for all instruction sets. Change it if the bits change."""

INTERFACE = 5
"""Version of the functions' interface. `library.cpp` must contain the same number."""

FAST = ("avx512", "avx2", "neon")


class KernelsError(RuntimeError):
    """Raised when the library can't be used. The message gives the reason in one line."""


@dataclass(frozen=True)
class Kernels:
    """Functions of the library for one instruction set: avx512, avx2, neon, or scalar."""

    library: ctypes.CDLL
    instruction_set: str

    def __reduce__(self) -> tuple[Any, ...]:
        return usable_kernels, ()  # of the other process's CPU

    def function(self, name: str, result: Any = None) -> Any:
        """Look up `segmint_<name>` for this instruction set. `result` is the ctypes type of its return value."""
        found = getattr(self.library, f"segmint_{name}_{self.instruction_set}")
        found.restype = result
        return found


def usable_kernels() -> Kernels | None:
    """Return the kernels for this CPU's best instruction set, or None if torch must replace them.

    A process loads the library only once.
    """
    found = kernels_or_reason()
    return found if isinstance(found, Kernels) else None


def reason() -> str | None:
    """Return the reason why `usable_kernels` returns None, for a message. If it returns kernels, return None."""
    found = kernels_or_reason()
    return None if isinstance(found, Kernels) else found


def kernels_named(algorithm: str) -> Kernels | None:
    """Return the kernels with this name in a dataset's numerics.

    Returns None if the name means torch, or if this process can't use the kernels.
    """
    return usable_kernels() if algorithm == LANES16 else None


@cache
def kernels_or_reason() -> Kernels | str:
    """Return the kernels for this CPU, or the reason why there are none. The answer is cached."""
    try:
        return load_kernels()
    except KernelsError as error:
        return str(error)


def load_kernels(instruction_set: str | None = None, path: Path | None = None) -> Kernels:
    """Load the library from `path`, which defaults to this package's library, and check that it's up to date.

    The library must have been built from the sources in this folder. An installed wheel has no sources, so only the
    interface is checked there. `instruction_set` defaults to the best one that the CPU supports and that is faster than
    torch. Raises `KernelsError` if the library is missing, broken, or out of date, if its interface is different, or if
    the CPU doesn't support the instruction set.
    """
    path = path or FOLDER / LIBRARY
    if not path.exists():
        raise KernelsError(f"{path.name} isn't there. Run `make setup` with a C++ compiler, or install a wheel with it")
    try:
        library = ctypes.CDLL(str(path))
        interface = library.segmint_interface()
        library.segmint_sources.restype = ctypes.c_char_p
        built_from = library.segmint_sources().decode()
    except (OSError, AttributeError) as error:
        raise KernelsError(f"{path.name} can't be loaded: {error}. Run `make setup`") from error
    if interface != INTERFACE:
        raise KernelsError(
            f"{path.name} has interface version {interface}, but segmint expects {INTERFACE}. Run `make setup`"
        )
    sources = sources_of(FOLDER)
    if sources and hash_of(sources) != built_from:
        raise KernelsError(f"{path.name} was built from different sources than the ones next to it. Run `make setup`")
    for name in FAST if instruction_set is None else [instruction_set]:
        if name in INSTRUCTION_SETS and library.segmint_supports(name.encode()):
            return Kernels(library, name)
    raise KernelsError(f"the CPU has no {instruction_set or 'AVX2, AVX-512, or NEON'} instructions")


def main() -> None:
    """Print the instruction set in use. If there are no kernels, exit with the reason."""
    found = kernels_or_reason()
    if isinstance(found, str):
        raise SystemExit(f"no CPU kernels: {found}")
    print(f"{LANES16} with {found.instruction_set}")  # noqa: T201


if __name__ == "__main__":
    main()
