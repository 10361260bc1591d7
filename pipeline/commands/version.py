"""`segmint version`, and the option `--version`."""

from typing import Annotated

import typer

from segmint.pipeline.commands.common.console import answer, answer_json


def version(
    as_json: Annotated[
        bool, typer.Option("--json", help="As JSON, with the versions of the main dependencies.")
    ] = False,
) -> None:
    """Show the version."""
    from segmint.infra.version import VERSION

    if not as_json:
        answer(f"segmint {VERSION}")
        return
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as version_of

    found: dict[str, str | None] = {"segmint": VERSION}
    for package in (
        "torch",
        "torchvision",
        "numpy",
        "ray",
        "pyarrow",
        "pillow",
        "opencv-python-headless",
        "duckdb",
    ):
        try:
            found[package] = version_of(package)
        except PackageNotFoundError:
            found[package] = None
    answer_json(found)


def show_version(value: bool) -> None:
    """Show the version and end the command, where `--version` is given."""
    if value:
        version()
        raise typer.Exit
