"""Command line: assembles the commands of the other files in `commands/`.

A command's module is only imported when the command runs or shows its help. Heavy modules are only imported when the
command runs, so that help appears immediately.
"""

import atexit
import importlib
import os
import sys
import threading
from contextlib import suppress
from typing import Annotated, Any, NamedTuple

import typer
import typer.core
import typer.main

from segmint.infra.device import fix_products
from segmint.infra.stopping import is_stopping, stop_on_signals
from segmint.pipeline.commands.console import DEBUG_VARIABLE, print_json, print_line


class CommandPlace(NamedTuple):
    """Location of a command."""

    module: str  # below `segmint.pipeline.commands`
    name: str  # the function, or the `Typer` of a group
    help: str  # first line of its `--help`


PANELS = {
    "Build": {
        "init": CommandPlace("building", "init", "Write a commented configuration for `segmint build`."),
        "catalog": CommandPlace("catalog", "app", "Create, check, and curate catalogs of licensed images."),
        "plan": CommandPlace("building", "plan", "Estimate the images, hours, and cost of a build."),
        "build": CommandPlace("building", "build", "Build a dataset, or resume a build."),
        "status": CommandPlace("building", "status", "Show the progress of builds."),
        "demo": CommandPlace("building", "demo", "Build a small dataset of photographs, and draw its masks."),
        "masks": CommandPlace("masks", "masks", "Make masks for photographs."),
        "assets": CommandPlace("assets", "app", "List, download, verify, and export weight files."),
    },
    "Inspect": {
        "audit": CommandPlace("quality", "audit", "Check the files, licenses, and privacy of a dataset."),
        "report": CommandPlace("quality", "report", "Write a page, a dataset card, and statistics."),
        "view": CommandPlace("quality", "view", "Browse a dataset's images and masks in a web browser."),
        "study": CommandPlace("engine", "study_app", "Have people judge a sample of images, and score the results."),
        "verify": CommandPlace("quality", "verify", "Compare every byte with the recorded version."),
        "sign": CommandPlace("quality", "sign", "Sign a recorded version's digest and list of files."),
        "diff": CommandPlace("quality", "diff", "Show what changed between two versions or datasets."),
    },
    "Correct": {
        "takedown": CommandPlace("corrections", "takedown", "Remove images permanently, or prove that they're gone."),
        "redact": CommandPlace("corrections", "redact", "Redact more regions, or prove that former JPEGs are gone."),
        "amend": CommandPlace("corrections", "amend", "Correct the credits and countries of images."),
        "import": CommandPlace("corrections", "import_", "Import masks from a file or another dataset."),
        "apply": CommandPlace("corrections", "apply", "Make masks in a finished dataset, or add a column of a stage."),
        "label": CommandPlace("corrections", "label", "Label masks from a vocabulary with CLIP."),
        "merge": CommandPlace("corrections", "merge", "Merge annotators' submissions into the dataset's tables."),
        "repair": CommandPlace("corrections", "repair", "Restore missing or damaged files to their committed bytes."),
    },
    "Export": {
        "select": CommandPlace("export", "select", "Select images of a dataset, and pin them in a file for --select."),
        "export": CommandPlace("export", "export", "Export a dataset's images and masks for other tools."),
    },
    "Annotate and train": {
        "annotate": CommandPlace("engine", "annotate", "Make, correct, or rate masks in a web browser."),
        "evaluate": CommandPlace("engine", "app", "Evaluate weights against masks that people made."),
        "train": CommandPlace("engine", "train", "Train SAM or an object detector, or resume a run."),
    },
}
"""Commands in display order, grouped by their panel in `segmint --help`."""

PLACES = {name: place for panel in PANELS.values() for name, place in panel.items()}
_PACKAGES = ("torch", "torchvision", "numpy", "ray", "pyarrow", "pillow", "opencv-python-headless", "duckdb")


class Commands(typer.core.TyperGroup):
    """Group of all commands.

    It only imports requested commands, and lists the commands in panels without importing any.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the command names in the order of the panels."""
        return list(PLACES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command. If no command has this name, load all commands, so that typer can suggest similar names."""
        for name in [cmd_name] if cmd_name in PLACES else PLACES:
            if name not in self.commands:
                self.commands[name] = _load(name)
        return self.commands.get(cmd_name)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the panels."""
        width = max(map(len, PLACES))
        for panel, commands in PANELS.items():
            with formatter.section(panel):
                formatter.write_dl([(name.ljust(width), place.help) for name, place in commands.items()])


def _load(name: str) -> Any:
    place = PLACES[name]
    found = getattr(importlib.import_module(f"segmint.pipeline.commands.{place.module}"), place.name)
    parent = typer.Typer(rich_markup_mode=None)
    if isinstance(found, typer.Typer):
        parent.add_typer(found, name=name)
    else:
        parent.command(name)(found)
    return typer.main.get_group(parent).commands[name]


app = typer.Typer(
    name="segmint",
    cls=Commands,
    help="Build segmentation datasets: licensed photographs in, SA-1B-style shards with masks out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)


def main() -> None:
    """Run `segmint` and end the process with its exit code."""
    open_streams()
    stop_on_signals()
    # Threads that spin while they wait take cores from the processes that they wait for, which makes a prompt take
    # twenty times as long. torch's thread library reads this variable only once, when it loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    fix_products()
    try:
        app(prog_name="segmint")
    except SystemExit as end:
        # Arrow's threads release Python objects shortly after a read returns. If the interpreter is already being
        # finalized at that moment, the process crashes ("terminate called without an active exception"). Therefore,
        # end the process like multiprocessing does.
        if not is_stopping():  # otherwise, threads that retry a request could delay the exit
            threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        with suppress(OSError):  # the interpreter reports the error when it is finalized
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code if isinstance(end.code, int) else bool(end.code))
        raise


def open_streams() -> None:
    """Replace closed standard streams, which Python sets to None, by the null device.

    Otherwise, the next file that the process opens would get the descriptor of a standard stream, and native code would
    print into that file.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - stays open


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help=f"Show tracebacks (or set {DEBUG_VARIABLE}=1).")] = False,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --version, print JSON that includes the main dependencies' versions.")
    ] = False,
) -> None:
    """Options before the command's name."""
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"
    if version:
        _show_version(as_json)
        raise typer.Exit
    if as_json:
        context.fail("--json before a command requires --version. Put it after the command's name.")
    if context.invoked_subcommand is None:
        context.fail("Missing command.")


def _show_version(as_json: bool) -> None:
    from segmint.infra.version import VERSION

    if not as_json:
        print_line(f"segmint {VERSION}")
        return
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as version_of

    found: dict[str, str | None] = {"segmint": VERSION}
    for package in _PACKAGES:
        try:
            found[package] = version_of(package)
        except PackageNotFoundError:
            found[package] = None
    print_json(found)
