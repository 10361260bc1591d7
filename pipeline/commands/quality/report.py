"""`segmint report`: write a page about a dataset with plots and numbers, a card, a disclosure, and a Croissant file."""

from typing import Annotated

import typer

from segmint.pipeline.commands.common.arguments import AsJson, DetectorConfig, build_of
from segmint.pipeline.commands.common.console import exit_unless_clean, guarded, print_next, print_result
from segmint.pipeline.commands.common.extras import needs


@guarded
@needs("report")
def report(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Dataset, or SA-1B-style folder.")],
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="DIR", help="Output folder or bucket prefix. Default: DATASET/report."),
    ] = None,
    audit: Annotated[
        str | None,
        typer.Option("--audit", metavar="FILE.json", help="Use `segmint audit --json` output instead of auditing."),
    ] = None,
    sample: Annotated[
        int, typer.Option(metavar="N", min=0, help="Number of images that the audit decodes, spread evenly.")
    ] = 100,
    study: Annotated[
        str | None,
        typer.Option("--study", metavar="FILE.json", help="Show this privacy study score (`study score --json`)."),
    ] = None,
    beside: Annotated[
        str | None,
        typer.Option(metavar="DATASET", help="Compare the masks with those of this dataset or SA-1B-style folder."),
    ] = None,
    config: DetectorConfig = None,
    as_json: AsJson = False,
) -> None:
    """Write a page, a dataset card, and statistics.

    The page contains the verdict, plots next to SA-1B's, and samples. A dataset card, a disclosure of training data,
    and a Croissant file go next to it.
    """
    from segmint.infra.storage.location import Location
    from segmint.pipeline.quality.audit.audit import AuditOptions
    from segmint.pipeline.quality.report.report import write_report

    build, storage = build_of(config)
    given = (output, audit, study, beside)
    folder, audited, people, other = (None if uri is None else Location(storage, uri) for uri in given)
    options = AuditOptions(sample, build=build)
    written = write_report(Location(storage, dataset), folder, audited, options, people, other)
    print_result(written, as_json)
    print_next(as_json, "view", dataset, config=config)
    exit_unless_clean((), written.not_checked)
