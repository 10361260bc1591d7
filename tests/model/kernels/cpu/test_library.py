"""The library of CPU kernels: found, refused where it can't be right, and done without."""

import ctypes
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from segmint.infra import log
from segmint.model.kernels.cpu import build, library
from segmint.model.sam.load import build_sam
from segmint.model.sam.predictor import Predictor
from segmint.operators.segment import models
from tests.support.cpu_kernels import every_set


@pytest.fixture
def built() -> Path:
    every_set()  # skips without a library
    return library.FOLDER / library.LIBRARY


@pytest.fixture
def fresh() -> Iterator[None]:
    """Forget the loaded library before and after a test."""
    caches = (library.kernels_or_reason, models.log_missing_kernels)
    for one in caches:
        one.cache_clear()
    yield
    for one in caches:
        one.cache_clear()


def copied(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        shutil.copy(library.FOLDER / name, folder)
    return folder


def sources() -> list[str]:
    return [path.name for path in build.sources_of(build.FOLDER)]


def test_the_library_of_this_package_is_loaded(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    library.main()
    assert capsys.readouterr().out in [f"lanes16-1 with {name}\n" for name in library.FAST]
    assert library.reason() is None


def test_a_library_from_other_sources_is_refused(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copied(tmp_path / "package", *sources(), built.name)
    monkeypatch.setattr(library, "FOLDER", folder)
    library.load_kernels()
    with (folder / "border.h").open("a") as header:
        header.write("\n")
    with pytest.raises(
        library.KernelsError, match=r"from different sources than the ones next to it. Run `make setup`"
    ):
        library.load_kernels()


def test_a_wheel_has_no_sources_to_compare(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "FOLDER", copied(tmp_path / "package", built.name, "build.py", "library.py"))
    library.load_kernels()


def test_another_interface_is_refused(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "INTERFACE", library.INTERFACE + 1)
    with pytest.raises(library.KernelsError, match=f"interface version {library.INTERFACE - 1}, but segmint expects"):
        library.load_kernels()


def test_a_file_that_is_no_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / library.LIBRARY).write_bytes(b"\x7fELF and nothing more")
    with pytest.raises(library.KernelsError, match="can't be loaded"):
        library.load_kernels(path=tmp_path / library.LIBRARY)


def test_an_instruction_set_that_the_cpu_lacks_is_refused(built: Path) -> None:
    with pytest.raises(library.KernelsError, match="the CPU has no avx1024 instructions"):
        library.load_kernels("avx1024")


def library_with(*supported: str) -> SimpleNamespace:
    """A stand-in for the loaded library on a CPU with these instruction sets."""

    def sources() -> bytes:
        return build.hash_of(build.sources_of(build.FOLDER)).encode()

    return SimpleNamespace(
        segmint_interface=lambda: library.INTERFACE,
        segmint_sources=sources,
        segmint_supports=lambda name: name.decode() in supported,
    )


def test_arm_cpus_use_neon(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda path: library_with("scalar", "neon"))
    assert library.load_kernels().instruction_set == "neon"
    monkeypatch.setattr(ctypes, "CDLL", lambda path: library_with("scalar"))
    with pytest.raises(library.KernelsError, match="the CPU has no AVX2, AVX-512, or NEON instructions"):
        library.load_kernels()


def test_each_machine_has_its_instruction_sets() -> None:
    found = {machine: tuple(build.sets_of(machine)) for machine in ("x86_64", "aarch64", "riscv64")}
    x86 = ("scalar", "avx2", "avx512")
    assert found == {"x86_64": x86, "aarch64": ("scalar", "neon"), "riscv64": ("scalar",)}


@pytest.mark.usefixtures("fresh")
def test_without_the_library_torch_is_used_and_this_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    log.configure()  # `capture_logs` restores what it finds, which is structlog's standard output in a new process
    with capture_logs() as lines:
        assert models.cpu_kernels("cpu") is None
        assert models.cpu_kernels("cpu") is None
        assert models.cpu_kernels("cuda") is None
    (line,) = lines
    assert line["event"] == "no_cpu_kernels"
    assert line["reason"].startswith(f"{library.LIBRARY} isn't there. Run `make setup` with a C++ compiler")
    assert Predictor(build_sam("mobile_sam")).kernels is None


def test_without_a_compiler_nothing_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(sys, "argv", ["build.py", "--to", str(tmp_path / library.LIBRARY)])
    build.main()
    expected = "there is no C++ compiler (no-such-compiler). segmint will use torch, which is slower.\n"
    assert capsys.readouterr().err == f"built no CPU kernels: {expected}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("processes")
def test_a_compiler_that_fails_leaves_the_library_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho 'kernels.cpp:1: error: not today' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    target = tmp_path / "there" / library.LIBRARY
    target.parent.mkdir()
    target.write_bytes(b"before")
    with pytest.raises(build.NoKernelsError, match=r"failed: kernels.cpp:1: error: not today"):
        build.build(target)
    assert target.read_bytes() == b"before"
    assert list(target.parent.iterdir()) == [target]
