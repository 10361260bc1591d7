"""`segmint build`: build a dataset, or resume a build."""

from typing import Annotated

import typer

from segmint.catalogs.shard_ranges import parse_shards
from segmint.pipeline.commands.common.arguments import AsJson, ConfigFile, Overrides
from segmint.pipeline.commands.common.console import guarded, print_next, print_result
from segmint.pipeline.commands.common.extras import needs


@guarded
@needs("build")
def build(
    config: ConfigFile,
    overrides: Overrides = None,
    shards: Annotated[
        str | None,
        typer.Option(
            metavar="A:B|K/N",
            help="Build only shards A to B-1, or part K of N (K from 0); disjoint ranges can run at the same time.",
        ),
    ] = None,
    grow: Annotated[
        bool, typer.Option("--grow", help="Add the catalog's new rows to an existing dataset as new shards.")
    ] = False,
    retry_rejected: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REASON",
            help="Retry rows that committed shards rejected for this reason, such as not_found; repeatable.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Build a dataset, or resume a build."""
    from segmint.pipeline.config.config import load_config

    loaded = load_config(config, overrides or [])
    span = parse_shards(shards) if shards is not None else None
    from segmint.pipeline.build import run_build
    from segmint.pipeline.building.execution.accounting import NotRecordedError

    try:
        accounting = run_build(loaded, shards=span, grow=grow, retry_rejected=retry_rejected or [])
    except NotRecordedError as error:
        print_result(error.accounting, as_json)
        raise
    print_result(accounting, as_json)
    print_next(as_json, "audit", loaded.output, config=config)
