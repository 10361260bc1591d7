"""`segmint demo`: build a small dataset of real photographs."""

from pathlib import Path
from typing import Annotated

import typer

from segmint.pipeline.commands.common.arguments import AsJson
from segmint.pipeline.commands.common.console import guarded, print_json, print_line, print_message
from segmint.pipeline.commands.common.extras import needs


@guarded
@needs("demo")
def demo(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Output folder; created if missing.")],
    as_json: AsJson = False,
) -> None:
    """Build a small dataset of photographs, and draw its masks.

    The photographs ship with scikit-image and scikit-learn.
    """
    from segmint.pipeline.demo import run_demo

    accounting = run_demo(folder, print_message if as_json else print_line)
    if as_json:
        print_json(accounting.to_dict())
