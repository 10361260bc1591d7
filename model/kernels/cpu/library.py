"""Loader of the library of CPU kernels.

The library is optional. `usable_kernels` returns it, or None where it can't be used; then `reason` says why in
one line.
Calls release the GIL, start no threads, and write only to their output.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from segmint.model.kernels.cpu.build import FOLDER, INSTRUCTION_SETS, LIBRARY, hash_of, sources_of

LANES16 = "lanes16-1"
"""Name of the kernels' algorithm in a dataset's numerics. Every instruction set gives its bits; change it with them."""

INTERFACE = 4
"""Number of the functions' interface; `library.cpp` has the same number."""

_FAST = ("avx512", "avx2", "neon")


class KernelsError(RuntimeError):
    """The library can't be used; the message says why in one line."""


@dataclass(frozen=True)
class Kernels:
    """The library's functions for one instruction set: avx512, avx2, neon, or scalar."""

    library: ctypes.CDLL
    instruction_set: str

    def function(self, name: str, result: Any = None) -> Any:
        """Return `segmint_<name>` of this instruction set, with the ctypes type `result` of its return value."""
        found = getattr(self.library, f"segmint_{name}_{self.instruction_set}")
        found.restype = result
        return found


def usable_kernels() -> Kernels | None:
    """Return the kernels for this CPU's best instruction set, loaded once per process; None if torch must do."""
    found = _kernels_or_reason()
    return found if isinstance(found, Kernels) else None


def reason() -> str | None:
    """Return why `usable_kernels` returns None, for a message; None if there are kernels."""
    found = _kernels_or_reason()
    return None if isinstance(found, Kernels) else found


@cache
def _kernels_or_reason() -> Kernels | str:
    try:
        return load_kernels()
    except KernelsError as error:
        return str(error)


def load_kernels(instruction_set: str | None = None, path: Path | None = None) -> Kernels:
    """Load the library, by default the one of this package, and check that it was built from the sources here.

    An installed wheel has no sources, so only the interface is checked there. `instruction_set` defaults to the best
    that the CPU has of those that are faster than torch. Raises `KernelsError` for a library that is missing, broken,
    stale, or of another interface, and for a CPU without the instruction set.
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
            f"{path.name} has the interface {interface}, and segmint expects {INTERFACE}. Run `make setup`"
        )
    sources = sources_of(FOLDER)
    if sources and hash_of(sources) != built_from:
        raise KernelsError(f"{path.name} was built from other sources than those beside it. Run `make setup`")
    for name in _FAST if instruction_set is None else [instruction_set]:
        if name in INSTRUCTION_SETS and library.segmint_supports(name.encode()):
            return Kernels(library, name)
    raise KernelsError(f"the CPU has no {instruction_set or 'AVX2, AVX-512, or NEON'} instructions")


def main() -> None:
    """Print the instruction set that is used, or exit with the reason why there are no kernels."""
    found = _kernels_or_reason()
    if isinstance(found, str):
        raise SystemExit(f"no CPU kernels: {found}")
    print(f"{LANES16} with {found.instruction_set}")  # noqa: T201


if __name__ == "__main__":
    main()
