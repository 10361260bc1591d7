"""The command line: one file for each command in `commands/`, assembled here.

A command imports what is heavy when it runs, so that help comes at once.
"""

import os
from typing import Annotated

import typer

from segmint.pipeline.commands import assets
from segmint.pipeline.commands.building import catalog
from segmint.pipeline.commands.building.build import build
from segmint.pipeline.commands.building.demo import demo
from segmint.pipeline.commands.building.init import init
from segmint.pipeline.commands.building.plan import plan
from segmint.pipeline.commands.building.status import status
from segmint.pipeline.commands.common.console import DEBUG_VARIABLE
from segmint.pipeline.commands.corrections.corrections import amend, redact, repair, takedown
from segmint.pipeline.commands.corrections.imports import import_
from segmint.pipeline.commands.engine import annotate, evaluate
from segmint.pipeline.commands.engine.train import train
from segmint.pipeline.commands.export import export
from segmint.pipeline.commands.masks import masks
from segmint.pipeline.commands.quality import study
from segmint.pipeline.commands.quality.audit import audit
from segmint.pipeline.commands.quality.report import report
from segmint.pipeline.commands.quality.versions import diff, sign, verify
from segmint.pipeline.commands.quality.view import view
from segmint.pipeline.commands.version import show_version, version

app = typer.Typer(
    name="segmint",
    help="Mints segmentation datasets: licensed photographs in, SA-1B-style shards with masks out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)
for command in (
    *(init, build, plan, status, demo, masks, audit, report, export, view, train),
    *(takedown, redact, amend, repair, verify, sign, diff),
):
    app.command()(command)
app.command("import")(import_)
app.command()(version)
for group in (catalog, assets, study, evaluate, annotate):
    app.add_typer(group.app)


def main() -> None:
    """The command `segmint`; ends the process with its exit code."""
    # Threads that wait by spinning take the cores from those they wait for as soon as another process works too: a
    # prompt then takes twenty times as long. Read once, when torch's thread library loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app(prog_name="segmint")


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help=f"Show tracebacks (also {DEBUG_VARIABLE}=1).")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options before the command's name."""
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"
