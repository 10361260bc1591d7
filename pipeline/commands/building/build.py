"""`segmint build`: build a dataset from a configuration or a folder of photographs, or resume a build."""

from typing import Annotated

import typer

from segmint.catalogs.shard_ranges import parse_shards
from segmint.infra.errors import UsageError
from segmint.pipeline.commands.common.arguments import AsJson, Overrides
from segmint.pipeline.commands.common.console import guarded, print_message, print_next, print_result
from segmint.pipeline.commands.common.extras import needs


@guarded
@needs("build")
def build(
    source: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG|PHOTOGRAPHS",
            help="Path or URI of the YAML configuration, or a folder or bucket prefix of photographs.",
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="DATASET", help="With PHOTOGRAPHS: dataset folder or bucket prefix."),
    ] = None,
    license: Annotated[
        str | None,
        typer.Option(
            metavar="ID", help="With PHOTOGRAPHS: license that you assert for those without a sidecar file, and allow."
        ),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="With PHOTOGRAPHS: license to allow in sidecar files; repeatable."),
    ] = None,
    overrides: Overrides = None,
    shards: Annotated[
        str | None,
        typer.Option(
            metavar="A:B|K/N",
            help="Build only shards A to B-1, or part K of N (K from 0); disjoint ranges can run at the same time.",
        ),
    ] = None,
    grow: Annotated[
        bool,
        typer.Option("--grow", help="Add new rows of the catalog, or new photographs, to a dataset as new shards."),
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
    """Build a dataset, or resume a build.

    From photographs, this first writes their catalog and a configuration beside the dataset. All photographs whose
    license neither --license nor --allow names are rejected.
    """
    from segmint.pipeline.building.dataset.request import names_configuration, parse_request

    given = [name for name, value in {"-o": output, "--license": license, "--allow": allow}.items() if value]
    request = None
    if not names_configuration(source, flagged=bool(given)):
        request = parse_request(source, output, license, allow or [], overrides or [])
    elif given:
        raise UsageError(
            f"{', '.join(given)} can't be used with a configuration, which sets output and license.allow: change them "
            f"in {source}, or name a folder of photographs instead"
        )
    else:
        from segmint.pipeline.config.config import load_config

        loaded = load_config(source, overrides or [])
    span = parse_shards(shards) if shards is not None else None
    if request is not None:
        from segmint.pipeline.building.dataset.photographs import open_photographs, refused_licenses

        loaded, lines = open_photographs(request, grow=grow)
        for line in lines:
            print_message(line)
    from segmint.pipeline.build import run_build
    from segmint.pipeline.building.execution.accounting import NotRecordedError

    try:
        accounting = run_build(loaded, shards=span, grow=grow, retry_rejected=retry_rejected or [])
    except NotRecordedError as error:
        print_result(error.accounting, as_json)
        raise
    print_result(accounting, as_json)
    if request is not None:
        for line in refused_licenses(loaded):
            print_message(line)
    print_next(as_json, "audit", loaded.output, config=source if request is None else request.config_file)
