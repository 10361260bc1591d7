"""`segmint catalog`: make a catalog from a folder or bucket of images, and look over one that is there."""

from itertools import chain
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.console import FINDINGS, answer, answer_json, guarded, say

if TYPE_CHECKING:
    from catalogs.licenses import LicensePolicy
    from infra.storage import Storage

app = typer.Typer(name="catalog", help="Make and check catalogs of licensed images.", no_args_is_help=True)

ConfigOption = Annotated[
    str | None,
    typer.Option("--config", metavar="CONFIG", help="A build's configuration, whose storage options count here too."),
]


@app.command()
@guarded
def scan(
    uri: Annotated[str, typer.Argument(metavar="URI", help="A folder, or a bucket's prefix.")],
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="FILE", help="The catalog: .parquet, .jsonl or .csv.")
    ],
    license: Annotated[
        str | None,
        typer.Option(help="License of images without a sidecar file: an SPDX identifier or LicenseRef-…"),
    ] = None,
    provider: Annotated[str | None, typer.Option(help="Who supplied the images.")] = None,
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Make a catalog of the images below URI, with licenses from sidecar files or --license."""
    from catalogs.scan import scan as scan_images
    from catalogs.scan import write_catalog
    from infra.errors import UsageError

    storage, _ = _from_config(config)
    found = scan_images(uri, storage, license=license, provider=provider)
    first = next(found, None)
    if first is None:
        raise UsageError(f"there is no image below {uri}, so {output} was not written: expected a folder or prefix")
    rows = write_catalog(chain([first], found), output, storage)
    if as_json:
        answer_json({"catalog": output, "rows": rows})
    else:
        say(f"{output}: {rows:,} rows")


@app.command()
@guarded
def check(
    catalog: Annotated[str, typer.Argument(metavar="FILE", help="The catalog, as a path or URI.")],
    config: Annotated[
        str | None,
        typer.Option("--config", metavar="CONFIG", help="Judge by this configuration's license policy too."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Read a whole catalog and say what is in it; exit code 1 when something needs a look."""
    from catalogs.check import check as check_catalog
    from infra.errors import UsageError
    from infra.storage import NotFoundError

    storage, policy = _from_config(config)
    try:
        findings = check_catalog(catalog, storage, policy)
    except NotFoundError as error:
        raise UsageError(str(error)) from error
    if as_json:
        answer_json(findings.to_dict())
    else:
        for line in findings.lines():
            answer(line)
    if not findings.clean:
        raise typer.Exit(FINDINGS)


def _from_config(path: str | None) -> "tuple[Storage, LicensePolicy | None]":
    from datetime import UTC, datetime

    from infra.storage import Storage

    if path is None:
        return Storage(), None
    from pipeline.config import load_config

    config = load_config(path)
    return Storage(config.storage), config.license.policy(config.license.policy_date or datetime.now(UTC).date())
