"""`segmint build`: build a dataset from a configuration or a folder of photographs, or resume a build."""

from typing import TYPE_CHECKING, Annotated

import typer

from segmint.catalogs.shard_ranges import parse_shards
from segmint.pipeline.commands.common.arguments import AsJson, Overrides
from segmint.pipeline.commands.common.console import (
    guarded,
    json_value,
    print_json,
    print_line,
    print_message,
    print_next,
    print_result,
)
from segmint.pipeline.commands.common.extras import needs

if TYPE_CHECKING:
    from segmint.pipeline.building.dataset.request import BuildRequest
    from segmint.pipeline.building.execution.accounting import Accounting
    from segmint.pipeline.config.config import Config


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
    """Build a dataset from a configuration or from photographs, or resume a build.

    With photographs, write their catalog and a configuration beside the dataset first. Only photographs with a license
    that --license or --allow names are used.
    """
    from segmint.infra.errors import UsageError
    from segmint.pipeline.building.dataset.request import names_configuration, parse_request

    span = parse_shards(shards) if shards is not None else None
    flags = {"-o": output, "--license": license, "--allow": allow}
    given = [name for name, value in flags.items() if value is not None]
    request = None
    file = source
    if not names_configuration(source, flagged=bool(given)):
        request = parse_request(source, output, license, allow or [], overrides or [])
        file = request.config_file
        loaded = _open(request, grow=grow)
    elif given:
        raise UsageError(
            f"{', '.join(given)} can't be used with a configuration: {source} sets output and license.allow. Change "
            "them there, or name a folder of photographs instead"
        )
    else:
        from segmint.pipeline.config.config import load_config

        loaded = load_config(source, overrides or [])
    from segmint.pipeline.build import run_build
    from segmint.pipeline.building.execution.accounting import NotRecordedError

    try:
        accounting = run_build(loaded, shards=span, grow=grow, retry_rejected=retry_rejected or [])
    except NotRecordedError as error:
        _print(error.accounting, loaded, request, as_json)
        raise
    _print(accounting, loaded, request, as_json)
    print_next(as_json, "audit", loaded.output, config=file)


def _open(request: "BuildRequest", *, grow: bool) -> "Config":
    """Return the configuration of a build of photographs. If they had to be scanned, print what was found."""
    from segmint.pipeline.building.dataset.photographs import RefusedLicenses, open_photographs

    opened = open_photographs(request, grow=grow)
    if opened.scanned is not None:
        for line in (*opened.scanned.lines(), *RefusedLicenses.of(opened.scanned.licenses, request.allow).lines()):
            print_message(line)
    return opened.config


def _print(accounting: "Accounting", config: "Config", request: "BuildRequest | None", as_json: bool) -> None:
    """Print the accounting. In a build of photographs, add how many have licenses that it doesn't allow."""
    if request is None:
        print_result(accounting, as_json)
        return
    from segmint.catalogs.dataset.manifest import load_manifest
    from segmint.infra.storage.location import Location
    from segmint.infra.storage.storage import Storage
    from segmint.pipeline.building.dataset.photographs import RefusedLicenses

    manifest = load_manifest(Location(Storage(config.storage), config.output))
    refused = RefusedLicenses.of(manifest.licenses, config.license.allow)
    if as_json:
        print_json({**json_value(accounting), "not_allowed": refused.counts})
        return
    for line in (*accounting.lines(), *refused.lines()):
        print_line(line)
