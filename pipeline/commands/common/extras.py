"""Optional extras of the package: which one each command needs, and what to install if it is missing."""

import functools
import importlib.util
from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

from segmint.infra.errors import UsageError

P = ParamSpec("P")
R = TypeVar("R")

_DETECTORS = {
    "torchvision": "torchvision",
    "facenet-pytorch": "facenet_pytorch",
    "onnxruntime": "onnxruntime",
    "protobuf": "google",
}

_TABLES = {name: name for name in ("duckdb", "scipy")}

_AUDIT = {**_DETECTORS, **_TABLES}

_BUILD = {**_TABLES, "ray": "ray", "c2pa-python": "c2pa", "ijson": "ijson"}

_WEB = {name: name for name in ("duckdb", "starlette", "uvicorn")}

EXTRAS: Mapping[str, Mapping[str, str]] = {
    "web": _WEB,
    "detectors": _DETECTORS,
    "onnx": {"onnx": "onnx"},
    "text": {name: name for name in ("transformers", "tokenizers", "safetensors")},
    "audit": _AUDIT,
    "report": {**_AUDIT, **_WEB, "jinja2": "jinja2", "matplotlib": "matplotlib"},
    "build": _BUILD,
    "train": {**_DETECTORS, **_BUILD, "tensorboardX": "tensorboardX"},
    "demo": {**_DETECTORS, **_BUILD, "scikit-image": "skimage", "scikit-learn": "sklearn"},
}
"""Packages of each extra, as pip names with module names. Extras are sorted from the lightest to the heaviest.

`build` also installs the detectors, but they aren't listed here. `DeidentifyConfig.packages` lists the detector
packages that a configuration needs."""


class MissingExtraError(UsageError):
    """Raised when the optional packages of a command aren't installed."""


def needs(extra: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a command that requires the extra `extra`. Place this decorator below `guarded`.

    The command raises `MissingExtraError` before it does anything else. The check locates modules without importing
    them.
    """

    def decorate(command: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(command)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            require(extra)
            return command(*args, **kwargs)

        return run

    return decorate


def require(extra: str) -> None:
    """Raise `MissingExtraError` if a package of `extra` isn't installed. Locates modules without importing them."""
    missing = [name for name, module in EXTRAS[extra].items() if importlib.util.find_spec(module) is None]
    if missing:
        raise MissingExtraError(f"missing packages: {', '.join(missing)}. Run `pip install 'segmint[{extra}]'`.")


def extra_of(module: str) -> str | None:
    """Return the lightest extra that provides a module of this name, or None."""
    top = module.partition(".")[0]
    return next((extra for extra, modules in EXTRAS.items() if top in modules.values()), None)
