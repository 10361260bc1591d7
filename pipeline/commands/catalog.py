"""`segmint catalog`: make a catalog of a folder or bucket of images, and check catalogs."""

from datetime import UTC, datetime
from itertools import chain
from typing import Annotated

import typer

from segmint.pipeline.commands.common.arguments import Config, build_of, storage_of
from segmint.pipeline.commands.common.console import FINDINGS, answer_json, answer_with, guarded, say
from segmint.pipeline.commands.common.extras import needs

app = typer.Typer(name="catalog", help="Make and check catalogs of licensed images.", no_args_is_help=True)


@app.command()
@guarded
@needs("build")
def scan(
    uri: Annotated[str, typer.Argument(metavar="URI", help="A folder or a bucket prefix.")],
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="FILE", help="The catalog: .parquet, .jsonl or .csv.")
    ],
    license: Annotated[
        str | None,
        typer.Option(help="License of images without a sidecar file: an SPDX identifier or LicenseRef-…"),
    ] = None,
    provider: Annotated[str | None, typer.Option(help="Who supplied the images.")] = None,
    config: Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Make a catalog of the images below URI, with licenses from sidecar files or --license."""
    from segmint.catalogs.source.scan import scan as scan_images
    from segmint.catalogs.source.scan import write_catalog
    from segmint.infra.errors import UsageError
    from segmint.infra.storage.location import Location
    from segmint.infra.storage.stores import warn_of_skipped
    from segmint.infra.wording import counted

    storage = storage_of(config)
    skipped: list[str] = []

    def skip(name: str, why: str) -> None:
        warn_of_skipped(name, why)
        skipped.append(name)

    found = scan_images(Location(storage, uri), license=license, provider=provider, on_skip=skip)
    first = next(found, None)
    if first is None:
        raise UsageError(f"no images below {uri}, so {output} was not written: expected a folder or prefix with images")
    rows = write_catalog(chain([first], found), Location(storage, output))
    if as_json:
        answer_json({"catalog": output, "rows": rows, "skipped": len(skipped)})
    else:
        left_out = f"; {counted(len(skipped), 'file')} skipped, named above" if skipped else ""
        say(f"{output}: {counted(rows, 'row')}{left_out}")


@app.command()
@guarded
@needs("build")
def check(
    catalog: Annotated[str, typer.Argument(metavar="FILE", help="The catalog, as a path or URI.")],
    config: Annotated[
        str | None,
        typer.Option("--config", metavar="CONFIG", help="Also check against this configuration's license policy."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Read a whole catalog and report what is in it; exit code 1 when it has findings."""
    from segmint.catalogs.source.check import check as check_catalog
    from segmint.infra.errors import UsageError
    from segmint.infra.storage.errors import NotFoundError
    from segmint.infra.storage.location import Location

    build, storage = build_of(config)
    policy = None
    if build is not None:
        policy = build.license.policy(build.license.policy_date or datetime.now(UTC).date())
    try:
        findings = check_catalog(Location(storage, catalog), policy)
    except NotFoundError as error:
        raise UsageError(str(error)) from error
    answer_with(findings, as_json)
    if not findings.clean:
        raise typer.Exit(FINDINGS)
