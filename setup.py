"""Build of the optional library of CPU kernels; everything else is in pyproject.toml.

With a C++ compiler, a wheel holds the library and is for one platform, but for every Python. Without one, the wheel is
for every platform.
"""

import runpy
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
FOLDER = ROOT / "segmint" / "model" / "kernels" / "cpu"
BUILD: dict[str, Any] = runpy.run_path(str(FOLDER / "build.py"))
PACKAGE = "segmint.model.kernels.cpu"
LIBRARY: str = BUILD["LIBRARY"]


class BuildKernels(build_ext):
    """Build by `build.py`, which calls the compiler without the flags of the machine's Python."""

    def build_extension(self, ext: Extension) -> None:
        """Build the library where setuptools expects it. If that fails, the installation goes on without it."""
        try:
            BUILD["build"](Path(self.get_ext_fullpath(ext.name)), FOLDER)
        except BUILD["NoKernelsError"] as error:
            raise CompileError(f"{error}. segmint will use torch, which is slower.") from error

    def get_ext_filename(self, fullname: str) -> str:
        """Return the library's path without the Python version, since it doesn't use Python."""
        return str(Path(*fullname.split(".")[:-1], LIBRARY))

    def copy_extensions_to_source(self) -> None:
        """Copy the library beside its sources, if there is one."""
        if all(Path(self.build_lib, self.get_ext_filename(ext.name)).exists() for ext in self.extensions):
            super().copy_extensions_to_source()


class PlatformWheel(bdist_wheel):
    """Wheel for this platform if it holds the library, otherwise for all of them."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tag for Python, ABI, and platform."""
        built = Path(self.get_finalized_command("build_ext").get_ext_fullpath(f"{PACKAGE}.{Path(LIBRARY).stem}"))
        return "py3", "none", super().get_tag()[2] if built.exists() else "any"


SOURCES, HEADERS = (
    [str(path.relative_to(ROOT)) for path in sorted(FOLDER.glob(ending))] for ending in ("*.cpp", "*.h")
)

setup(
    ext_modules=[Extension(f"{PACKAGE}.{Path(LIBRARY).stem}", SOURCES, depends=HEADERS, optional=True)],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": PlatformWheel},
)
