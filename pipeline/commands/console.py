"""Console output of commands: results on standard output, the rest on standard error, prompts, and exit codes.

0: done; 1: findings (checks and audits only); 2: invalid usage or configuration; 3: failed or unfinished, or a
requested check was impossible.

Optional extras of the package: which one each command needs, and what to install if it is missing.

Arguments that several commands take.
"""

import functools
import importlib.util
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping, Sized
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, Protocol, TypeVar

import typer

from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.log import without_secrets
from segmint.infra.progress import enable_bars, ending_bar
from segmint.infra.stopping import interruptible, print_stop_line
from segmint.infra.uris import redact
from segmint.infra.wording import CONTROL, fit, is_terminal, json_text, without_controls

if TYPE_CHECKING:
    from segmint.infra.storage.storage import Storage
    from segmint.pipeline.config.config import Config as Configuration
    from segmint.pipeline.config.config import ResourcesConfig


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


FINDINGS = 1
FAILED = 3
DEBUG_VARIABLE = "SEGMINT_DEBUG"


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """Convert every exception of a command to a readable message and an exit code, without a traceback.

    With `segmint --debug` or the environment variable `SEGMINT_DEBUG=1`, unexpected exceptions also print a traceback.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        enable_bars()
        try:
            with interruptible(), ending_bar():
                return command(*args, **kwargs)
        except SegmintError as error:
            _maybe_traceback()
            print_message(f"error: {error}")
            raise typer.Exit(error.exit_code) from error
        except (KeyboardInterrupt, typer.Abort) as error:  # at a prompt, Ctrl-C or the end of the input
            print_stop_line(print_message)
            raise typer.Exit(FAILED) from error
        except BrokenPipeError as error:
            # The reader of our output is gone. Without this redirection, Python would report another error when it
            # flushes the output at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(FAILED) from error
        except (typer.Exit, typer.BadParameter):
            raise
        except Exception as error:
            _maybe_traceback()
            if isinstance(error, ModuleNotFoundError) and (extra := extra_of(error.name or "")):
                print_message(f"error: {error.name} isn't installed. Run `pip install 'segmint[{extra}]'`.")
                raise typer.Exit(UsageError.exit_code) from error
            print_message(f"unexpected error: {type(error).__name__}: {error}")
            if not debugging():
                print_message("this is a bug or a problem with this machine. Run `segmint --debug …` to see where.")
            raise typer.Exit(FAILED) from error

    return run


def debugging() -> bool:
    """Return whether tracebacks are enabled."""
    return os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0")


def _maybe_traceback() -> None:
    if debugging():
        print_message(traceback.format_exc().rstrip())


def print_message(text: str) -> None:
    """Print a message on standard error. On a terminal, break long lines."""
    typer.echo(fit(printable(text), sys.stderr), err=True)


def print_line(text: str) -> None:
    """Print a line of the result on standard output. On a terminal, break long lines."""
    typer.echo(fit(printable(text), sys.stdout))


def print_whole(text: str, *, err: bool = False) -> None:
    """Print text without breaking its lines, such as JSON or a command to copy."""
    typer.echo(printable(text), err=err)


def print_json(value: Any) -> None:
    """Print the result as one JSON value on standard output."""
    text = json_text(without_secrets(value), default=str)
    typer.echo(CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text))


class Printable(Protocol):
    """Result of a command: a dataclass. Its JSON contains all fields, unless it defines `to_dict`."""

    def lines(self) -> list[str]: ...


def print_result(result: Printable, as_json: bool) -> None:
    """Print a result as one JSON value, or as lines of text."""
    if as_json:
        print_json(json_value(result))
        return
    for line in result.lines():
        print_line(line)


def json_value(result: Any) -> dict[str, Any]:
    """Return a result as a JSON value."""
    value: dict[str, Any] = result.to_dict() if hasattr(result, "to_dict") else asdict(result)
    return value


def exit_unless_clean(found: Sized, not_checked: Sized = ()) -> None:
    """Exit with code 1 if there are findings. Otherwise, exit with code 3 if a requested check wasn't possible."""
    if found:
        raise typer.Exit(FINDINGS)
    if not_checked:
        raise typer.Exit(FAILED)


def print_dry_run(listed: Printable, as_json: bool) -> None:
    """Print the list of changes that a command would make, and a line that says that nothing was changed."""
    print_result(listed, as_json)
    if not as_json:
        print_line("Nothing was changed.")


def print_revision(revision: Any, as_json: bool, dataset: str, config: str | None) -> None:
    """Print a revision's result and the next command. For a dry run, print the list of planned changes instead.

    `revision` is a result if it has the attribute `listed`, and otherwise a list. Exits with code 3 if something
    couldn't be checked.
    """
    if not hasattr(revision, "listed"):
        print_dry_run(revision, as_json)
        exit_unless_clean((), revision.not_checked)
        return
    print_result(revision, as_json)
    print_next(as_json, "audit", dataset, config=config)
    exit_unless_clean((), revision.listed.not_checked)


def print_checked(result: Printable, as_json: bool, found: Sized = (), not_checked: Sized = ()) -> None:
    """Print the result of a check, and then exit like `exit_unless_clean`."""
    print_result(result, as_json)
    exit_unless_clean(found, not_checked)


def print_next(as_json: bool, *words: str, config: str | None = None) -> None:
    """Print the next command to run, such as `next: segmint audit DIR`, unless the output is JSON."""
    if not as_json:
        print_whole(
            f"next: segmint {shlex.join([*words, *(() if config is None else ('--config', config))])}", err=True
        )


def printable(text: str) -> str:
    """Remove credentials and control characters, and escape surrogates from file names, which UTF-8 can't encode."""
    return without_controls(redact(text)).encode("utf-8", "backslashreplace").decode()


class RemovalPrompt(Protocol):
    """List of everything that a command would remove."""

    @property
    def name(self) -> str:
        """Name of the dataset."""

    @property
    def rows(self) -> int:
        """Number of rows or images."""

    def lines(self) -> list[str]: ...


def confirmation(command: str, yes: bool) -> Callable[[RemovalPrompt], None] | None:
    """Return a function that asks for confirmation before a permanent removal, or None with --yes.

    Raises `UsageError` if there is no terminal.
    """
    if yes:
        return None
    if not is_terminal(sys.stdin):
        raise UsageError(
            f"{command} permanently changes the dataset and needs confirmation, but there's no terminal: check the "
            "list with --dry-run, then pass --yes"
        )
    return _confirm


def _confirm(removal: RemovalPrompt) -> None:
    """List the removals and ask for their number or the dataset's name. If there is nothing to remove, do not ask.

    Raises `UsageError` for any other input.
    """
    if removal.rows == 0:
        return
    for line in removal.lines():
        print_message(line)
    expected = {str(removal.rows), f"{removal.rows:,}", removal.name}
    ask = f"This permanently changes the dataset. Type {removal.rows} or {removal.name} to continue"
    typed = typer.prompt(ask, err=True, default="", show_default=False)
    if typed.strip() not in expected:
        raise UsageError(
            f"not confirmed: expected {removal.rows} or {removal.name}, got {typed.strip()!r}. Nothing was changed"
        )


ConfigFile = Annotated[str, typer.Argument(metavar="CONFIG", help="Path or URI of the YAML configuration.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="K=V", help="Override a configuration key, as in --set output=street; repeatable."),
]
Catalog = Annotated[str, typer.Argument(metavar="CATALOG", help="Path or URI of the catalog.")]
Dataset = Annotated[str, typer.Argument(metavar="DATASET", help="Dataset folder or bucket prefix.")]
DatasetOrFolder = Annotated[
    str, typer.Argument(metavar="DATASET|FOLDER", help="Dataset, or local folder of photographs with masks.")
]
YoloNames = Annotated[
    str | None, typer.Option(metavar="FILE", help="YAML file with the names of YOLO's classes, such as data.yaml.")
]
Ignore = Annotated[
    list[int] | None,
    typer.Option("--ignore", metavar="N", help="Number in label maps to ignore, besides 0; repeatable."),
]
Config = Annotated[
    str | None,
    typer.Option("--config", metavar="CONFIG", help="Take storage options from this build configuration."),
]
DetectorConfig = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="CONFIG",
        help="Take storage options, detectors, and the Ray address from this build configuration.",
    ),
]
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda[:N]", help="Device to compute on.")]
Select = Annotated[
    str | None,
    typer.Option(
        "--select",
        metavar="SQL|FILE",
        help="Only images that meet this condition, as in 'masks > 20', or a file that `segmint select` wrote.",
    ),
]
Browser = Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a web browser.")]
Port = Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="Port on 127.0.0.1; 0 picks a free one.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="List the changes without making them.")]
Yes = Annotated[bool, typer.Option("--yes", help="Don't ask for confirmation; required without a terminal.")]
At = Annotated[
    list[str] | None,
    typer.Option(
        "--at", metavar="NAME=URI", help="New location of a recorded output that was moved, for --prove; repeatable."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def storage_of(config: str | None) -> "Storage":
    """Return access to stores. If a build's configuration is given, use its storage options."""
    return build_of(config)[1]


def build_of(config: str | None) -> "tuple[Configuration | None, Storage]":
    """Return a build's configuration, or None, and access to stores with the configuration's options."""
    from segmint.infra.storage.storage import Storage

    if config is None:
        return None, Storage()
    from segmint.pipeline.config.config import load_config

    build = load_config(config)
    return build, Storage(build.storage)


def resources_of(build: "Configuration | None") -> "ResourcesConfig":
    """Return the resources of a build's configuration, or those of this machine without a configuration."""
    from segmint.pipeline.config.config import LOCAL

    return LOCAL if build is None else build.resources
