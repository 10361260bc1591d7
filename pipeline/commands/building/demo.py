"""`segmint demo`: a small dataset of real photographs."""

from pathlib import Path
from typing import Annotated

import typer

from segmint.pipeline.commands.common.console import answer, answer_json, guarded, say
from segmint.pipeline.commands.common.extras import needs


@guarded
@needs("demo")
def demo(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder for everything; created if missing.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the accounting as JSON.")] = False,
) -> None:
    """Build a small dataset of real photographs, and draw its masks.

    The photographs come with scikit-image and scikit-learn.
    """
    from segmint.pipeline.demo import run_demo

    accounting = run_demo(folder, say if as_json else answer)
    if as_json:
        answer_json(accounting.to_dict())
