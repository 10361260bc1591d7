"""The CPU kernels of every instruction set that this CPU has, and inputs whose bits no library decides."""

import os
import platform
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from segmint.model.kernels.cpu import build, library
from segmint.model.kernels.cpu.build import INSTRUCTION_SETS
from segmint.model.kernels.cpu.library import Kernels, KernelsError, load_kernels


def every_set(path: Path | None = None) -> list[Kernels]:
    """The kernels for each instruction set here, at least two; skips without a library.

    `SEGMINT_TEST_KERNELS` names another library than the package's, such as the sanitized one.
    """
    named = os.environ.get("SEGMINT_TEST_KERNELS")
    path = path or (Path(named).resolve() if named else None)
    try:
        load_kernels("scalar", path)
    except KernelsError as error:
        pytest.skip(str(error))
    found = [load_kernels(name, path) for name in INSTRUCTION_SETS if _is_here(name, path)]
    assert len(found) > 1, "only scalars: this machine can't compare instruction sets"
    return found


@cache
def _is_here(name: str, path: Path | None) -> bool:
    try:
        load_kernels(name, path)
    except KernelsError:
        return False
    return True


def with_fault(
    file: str, old: str, new: str, folder: Path, monkeypatch: pytest.MonkeyPatch, only: str = "avx2"
) -> Kernels:
    """The kernels of one set, built in the empty `folder` with `new` in a source instead of its only `old`."""
    every_set()  # skips without a library
    if only not in build.sets_of(platform.machine()):
        pytest.skip(f"the fault is planted in a build for {only}")
    sources = sources_with_fault(file, old, new, folder)
    build.build(folder / library.LIBRARY, sources, only=only)
    monkeypatch.setattr(library, "FOLDER", sources)
    return load_kernels(only, folder / library.LIBRARY)


def sources_with_fault(file: str, old: str, new: str, folder: Path) -> Path:
    """A new folder in `folder` of the library's sources, with `new` in one of them instead of `old`."""
    sources = folder / "sources"
    sources.mkdir()
    for source in build.sources_of(build.FOLDER):
        shutil.copy(source, sources)
    text = (sources / file).read_text()
    assert text.count(old) == 1
    (sources / file).write_text(text.replace(old, new))
    return sources


def tensor(seed: int, *shape: int) -> Tensor:
    """The numbers of `numbers` as a tensor."""
    return torch.from_numpy(numbers(seed, *shape))


def spoil(name: str, value: Tensor) -> Callable[[Any], None]:
    """A fault of a case: an attribute with another value."""
    return lambda case: setattr(case, name, value)


def numbers(seed: int, *shape: int) -> NDArray[np.float32]:
    """Numbers from -1 to 1 that only depend on integers, so that they are the same everywhere."""
    mixed = np.arange(int(np.prod(shape)), dtype=np.uint64) * np.uint64(2654435761) + np.uint64(seed * 40503 + 1)
    mixed = ((mixed ^ (mixed >> np.uint64(13))) * np.uint64(1274126177)) % np.uint64(2**32)
    mixed = (mixed ^ (mixed >> np.uint64(16))) % np.uint64(2**24)
    return (mixed.astype(np.float64) / 2**23 - 1).astype(np.float32).reshape(shape)
