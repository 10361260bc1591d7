"""Open every export in the real tool, and compare SAM 2.1 and LVIS's AP with their packages, each in an environment.

`make test-interop` runs it.

A tool that cannot be installed is a failure, with pip's reason. What each printed goes to standard output.
"""

import argparse
import os
import site
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from tests.interop.azurite import VERSION, azurite
from tests.interop.datasets import expected_of, make_datasets
from tests.interop.mongo import database

READERS = Path(__file__).parent / "readers"


class CannotInstallError(Exception):
    """A tool's packages cannot be installed here."""


@dataclass(frozen=True)
class Tool:
    """A tool that reads a format: its packages; `ours` has torch from the environment of the tests.

    Without `exports`, the tool gets the dataset itself, by our Python API. If the packages are `built`, pip builds them
    without a compiler and with the torch of the tests.
    """

    format: str
    packages: tuple[str, ...]
    ours: bool = False
    exports: bool = True
    built: bool = False


_SAM2 = (
    *("sam2==1.1.0", "hydra-core", "omegaconf", "antlr4-python3-runtime==4.9.3", "iopath", "portalocker"),
    *("transformers", "tokenizers", "safetensors", "huggingface_hub", "hf-xet", "httpx2", "httpcore2"),
)

TOOLS = (
    Tool("coco", ("pycocotools", "numpy")),
    Tool("lvis", ("pycocotools", "numpy")),
    Tool("cvat", ("datumaro",)),
    Tool("label-studio", ("label-studio-sdk",)),
    Tool("fiftyone", ("fiftyone",)),
    Tool("yolo", ("ultralytics",), ours=True),
    Tool("geojson", ("rasterio", "shapely")),
    Tool("hf", ("datasets", "pillow", "numpy")),
    Tool("label-maps", ("pillow", "opencv-python-headless", "numpy")),
    Tool("png-masks", ("pillow", "numpy")),
    Tool("sa-1b", _SAM2, ours=True, built=True),
    Tool("supervision", ("supervision", "pydeprecate"), ours=True, exports=False),
    Tool("torchdata", ("torchdata",), ours=True, exports=False),
)

_READER = {"lvis": "coco"}

SAM2 = Tool("sam2", _SAM2, ours=True, built=True)
"""Packages of the comparison with SAM 2.1."""

LVIS = Tool("lvis-ap", ("lvis==0.5.3",), ours=True)
"""Package of the comparison of LVIS's federated AP, with our numpy, pycocotools, OpenCV, and matplotlib."""

AZURE = Tool(
    "azure",
    ("azure-storage-blob==12.31.1", "azure-identity==1.27.0", "azure-core", "isodate", "msal", "msal-extensions"),
    ours=True,
)
"""Packages of the extra `azure`, with the rest from our environment, for the check of `az://` on Azurite."""

ALL = (*TOOLS, SAM2, LVIS, AZURE)

ROOT = Path(__file__).parents[2]


def main() -> None:
    """Run all tools, or those of the formats that are named."""
    parser = argparse.ArgumentParser(prog="python -m tests.interop")
    parser.add_argument("formats", nargs="*", metavar="FORMAT", help=", ".join(tool.format for tool in ALL))
    known = {tool.format for tool in ALL}
    wanted = set(parser.parse_args().formats) or known
    if unknown := wanted - known:
        parser.error(f"no tool reads {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory(prefix="segmint-interop-") as folder:
        datasets = make_datasets(Path(folder)) if wanted - {SAM2.format, LVIS.format, AZURE.format} else []
        failed = [tool.format for tool in TOOLS if tool.format in wanted and not _check(tool, datasets, Path(folder))]
        failed += [SAM2.format] if SAM2.format in wanted and not _compare_sam2(Path(folder)) else []
        failed += [LVIS.format] if LVIS.format in wanted and not _compare_lvis(Path(folder)) else []
        failed += [AZURE.format] if AZURE.format in wanted and not _check_azure(Path(folder)) else []
    print(f"\n{len(wanted) - len(failed)} passed, {len(failed)} failed{': ' if failed else ''}{', '.join(failed)}")
    sys.exit(1 if failed else 0)


def _check(tool: Tool, datasets: list[Path], folder: Path) -> bool:
    """Export the datasets, read each with the tool, and return whether all went well."""
    print(f"\n== {tool.format}: {', '.join(tool.packages)}", flush=True)
    try:
        with _environment(tool, folder / f"env-{tool.format}") as python, _services(tool, python, folder) as more:
            done = []
            for number, dataset in enumerate(datasets):
                output = folder / f"out-{tool.format}-{number}"
                export = [sys.executable, "-m", "segmint", "export", dataset, "--format", tool.format, "-o", output]
                reader = READERS / f"read_{_READER.get(tool.format, tool.format).replace('-', '_')}.py"
                given = output if tool.exports else dataset
                variables = {**more, "HOME": folder, **({} if tool.exports else {"PYTHONPATH": Path.cwd()})}
                is_there = not tool.exports or _run(export, {})
                done += [is_there and _run([python, reader, given, expected_of(dataset)], variables)]
            return all(done)
    except CannotInstallError as error:
        print(f"CANNOT INSTALL: {error}")
        return False


def _compare_sam2(folder: Path) -> bool:
    """Compare SAM 2.1 with its packages in all sizes, and return whether everything was equal."""
    print(f"\n== {SAM2.format}: {', '.join(SAM2.packages)}", flush=True)
    try:
        with _environment(SAM2, folder / "env-sam2") as python:
            return _run([python, ROOT / "tests/interop/oracles/check_sam2.py"], {"PYTHONPATH": ROOT})
    except CannotInstallError as error:
        print(f"CANNOT INSTALL: {error}")
        return False


def _compare_lvis(folder: Path) -> bool:
    """Compare the stored figures with those of `lvis`, and return whether they are equal."""
    print(f"\n== {LVIS.format}: {', '.join(LVIS.packages)}", flush=True)
    try:
        with _environment(LVIS, folder / "env-lvis") as python:
            return _run([python, ROOT / "tests/interop/oracles/check_lvis.py"], {"PYTHONPATH": ROOT})
    except CannotInstallError as error:
        print(f"CANNOT INSTALL: {error}")
        return False


def _check_azure(folder: Path) -> bool:
    """Build and correct a dataset on Azurite, and return whether all went well."""
    print(f"\n== {AZURE.format}: azurite {VERSION}, {', '.join(AZURE.packages)}", flush=True)
    try:
        with (
            _environment(AZURE, folder / "env-azure") as python,
            azurite(ROOT / "build", folder / "azurite") as variables,
        ):
            return _run([python, ROOT / "tests/interop/oracles/check_azure.py"], {**variables, "PYTHONPATH": ROOT})
    except CannotInstallError as error:
        print(f"CANNOT INSTALL: {error}")
        return False


@contextmanager
def _environment(tool: Tool, folder: Path) -> Iterator[Path]:
    """Make an environment with the tool's packages; yield its Python."""
    venv.create(folder, with_pip=True, symlinks=True)
    python = folder / "bin" / "python"
    if tool.ours:
        (library,) = folder.glob("lib/python*/site-packages")
        (library / "ours.pth").write_text("\n".join(site.getsitepackages()))
    options = ["--no-deps"] if tool.ours else []
    if tool.built:
        os.environ["SAM2_BUILD_CUDA"] = "0"
        install(python, "--no-deps", "wheel")
        options.append("--no-build-isolation")
    install(python, *options, *tool.packages)
    yield python


def install(python: Path, *arguments: str) -> None:
    """Install packages; raises `CannotInstallError` with the end of what pip said."""
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if not line.startswith("WARNING")]
        raise CannotInstallError("\n".join(errors[-10:]))


def _services(tool: Tool, python: Path, folder: Path) -> "contextmanager[dict[str, str]]":
    """What a tool needs beside it, as variables of its environment."""
    return database(python, folder) if tool.format == "fiftyone" else nullcontext({})


def _run(command: list[object], variables: dict[str, object]) -> bool:
    """Run a command with its output on ours; return whether it exited with 0."""
    environment = os.environ | {name: str(value) for name, value in variables.items()}
    done = subprocess.run(
        [str(part) for part in command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        check=False,
    )  # fmt: skip
    print(done.stdout if done.returncode else "\n".join(_telling(done.stdout)), flush=True)
    return done.returncode == 0


def _telling(output: str) -> list[str]:
    """The lines of an output without progress bars and empty lines."""
    return [line for line in output.replace("\r", "\n").splitlines() if line.strip() and "%" not in line]


if __name__ == "__main__":
    main()
