"""Environments as pip would make them, out of links to the packages that are installed here."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from segmint.model.kernels.cpu.build import FOLDER, LIBRARY, compiler
from segmint.model.kernels.cpu.library import KernelsError, load_kernels
from tests.support.parallel import made_once

ROOT = Path(__file__).resolve().parents[2]

COMMANDS = """
import json, sys
from typer.testing import CliRunner
from segmint.pipeline.commands.cli import app
for words in json.loads(sys.argv[1]):
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    print(json.dumps([done.exit_code, done.stdout, done.stderr]))
"""
"""A script that runs commands in one process, which imports torch once. `ended` reads what it prints."""

SESSION = """
import contextlib, io, json, sys
import segmint
from typer.testing import CliRunner
from segmint.pipeline.commands.cli import app
answers, sys.stdout = sys.stdout, sys.stderr
print(segmint.__file__, file=answers, flush=True)
for line in sys.stdin:
    words = json.loads(line)
    if words[0] == "-c":
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(words[1], {"__name__": "__main__"})
        answer = [0, printed.getvalue(), ""]
    else:
        done = CliRunner().invoke(app, words, catch_exceptions=False)
        answer = [done.exit_code, done.stdout, done.stderr]
    print(json.dumps(answer), file=answers, flush=True)
"""
"""The same for a `Session`: it first prints where segmint is, then runs what it reads, commands or `-c` with code."""


COPIES_LIBRARY = """#!/bin/sh
case " $* " in *" -c "*) exec '{compiler}' -E "$@";; esac
while [ "$1" != -o ]; do shift; done
exec cp '{library}' "$2"
"""
"""A compiler that only preprocesses sources, and links a library that is there."""


def installed_wheel(factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel of this checkout, and `installed` with what it installs: made once."""
    return made_once(factory, "wheel", lambda folder: install(wheel_of_the_checkout(folder), folder / "installed"))


def wheel_of_the_checkout(folder: Path) -> Path:
    """The wheel that pip builds of this checkout's sdist, both in `folder`, made of a copy of the checkout.

    If the checkout's library of CPU kernels was built from its sources, the wheel has that one: compiling it again
    would take most of the time. `make wheel` compiles it.
    """
    copy = folder / "checkout"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, files.stdout.decode().split("\0")):
        source, target = ROOT / name, copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            target.symlink_to(source.readlink())
        elif source.exists():
            target.write_bytes(source.read_bytes())
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=copy, check=True, capture_output=True, text=True)
    (sdist,) = folder.glob("segmint-*.tar.gz")
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(sdist), **_fast_compiler(folder))
    (wheel,) = folder.glob("segmint-*.whl")
    return wheel


def install(wheel: Path, target: Path) -> None:
    """Installs a wheel into the folder `target` as `pip install --target` does, without what it depends on."""
    _pip("install", "--no-deps", "--no-compile", "--target", str(target), str(wheel))


def link_packages(requirements: Iterable[str], folder: Path) -> None:
    """Links into `folder` what these requirements need, with all that their packages need, and nothing else."""
    folder.mkdir()
    wanted = [Requirement(text) for text in requirements]
    seen: set[tuple[str, str]] = set()
    while wanted:
        requirement = wanted.pop()
        for extra in ("", *sorted(requirement.extras)):
            key = (_normal(requirement.name), extra)
            if key in seen:
                continue
            seen.add(key)
            installed, needed = _package(key[0])
            for source in installed:
                link = folder / source.name
                if not link.exists():
                    link.symlink_to(source.resolve())
            wanted += [r for r in needed if r.marker is None or r.marker.evaluate({"extra": extra})]


@cache
def _package(name: str) -> tuple[list[Path], list[Requirement]]:
    """What a package has installed, at the top level, and all that it may require."""
    package = distribution(name)
    names = {path.parts[0] for path in package.files or ()} - {"..", "__pycache__"}
    return [Path(str(package.locate_file(each))) for each in names], [Requirement(r) for r in package.requires or ()]


def python(
    arguments: list[str], *, path: Iterable[Path], folder: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs Python in `folder` with the packages on `path` alone: the installed ones are left out (`-S`)."""
    variables = {**os.environ, **(environment or {}), "PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run(
        [sys.executable, "-S", *arguments], cwd=folder, env=variables, capture_output=True, text=True, check=False
    )


def ended(
    done: subprocess.CompletedProcess[str], commands: Sequence[Sequence[str]]
) -> list[subprocess.CompletedProcess[str]]:
    """Returns how each of the commands ended that `COMMANDS` ran."""
    lines = done.stdout.splitlines()
    assert (done.returncode, len(lines)) == (0, len(commands)), done.stdout + done.stderr
    return [subprocess.CompletedProcess(each, *json.loads(line)) for each, line in zip(commands, lines, strict=True)]


class Session:
    """A process in `folder` with the packages on `path` before all others, which runs one command after another."""

    def __init__(self, folder: Path, path: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
        command = [sys.executable, "-c", SESSION]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, cwd=folder, env=environment, stdin=pipe, stdout=pipe, text=True)
        self.home = self._answer().strip()

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command, or `-c` and code."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        return subprocess.CompletedProcess(words, *json.loads(self._answer()))

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=60)

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the process ended with {self._process.wait()}"
        return line


def _fast_compiler(folder: Path) -> dict[str, str]:
    """The variable that names `COPIES_LIBRARY` as the compiler, if the library was built from the sources here."""
    try:
        load_kernels("scalar")
    except KernelsError:
        return {}
    script = folder / "compiler"
    script.write_text(COPIES_LIBRARY.format(compiler=compiler(), library=FOLDER / LIBRARY))
    script.chmod(0o755)
    return {"CXX": str(script)}


def _pip(*arguments: str, **environment: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, env={**os.environ, **environment}, check=True, capture_output=True, text=True)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
