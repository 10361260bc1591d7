"""`segmint init`: write a configuration to start from."""

from pathlib import Path
from typing import Annotated

import typer

from segmint.infra.errors import UsageError
from segmint.infra.uris import LOCAL, local_path, scheme
from segmint.pipeline.commands.common.console import guarded, print_line, print_next
from segmint.pipeline.config.template import template


@guarded
def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Configuration file to write.")] = Path("build.yaml"),
    name: Annotated[str, typer.Option(help="Name of the dataset.")] = "my-dataset",
    catalog: Annotated[str, typer.Option(metavar="URI", help="Path or URI of the catalog.")] = "catalog.parquet",
    output: Annotated[str, typer.Option(metavar="URI", help="Dataset folder or bucket prefix.")] = "dataset",
    licenses: Annotated[
        list[str] | None,
        typer.Option("--license", metavar="ID", help="License that images may have; repeatable."),
    ] = None,
) -> None:
    """Write a commented configuration for `segmint build`.

    Existing files are never overwritten.
    """
    from segmint.pipeline.config.config import Config
    from segmint.pipeline.config.yaml_file import check, parse_yaml

    text = template(name, catalog, output, licenses or ("CC0-1.0", "CC-BY-4.0"))
    check(parse_yaml(text, str(file)), Config)
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError as error:
        raise UsageError(f"{file} exists and is not overwritten: name another file") from error
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror or error}") from error
    print_line(f"written to {file}")
    if scheme(catalog) == LOCAL and not local_path(catalog).exists():
        print_next(False, "catalog", "scan", "FOLDER", "-o", catalog, "--license", "ID", config=str(file))
    print_next(False, "catalog", "check", catalog, config=str(file))
    print_next(False, "plan", str(file), "--sample", "20")
