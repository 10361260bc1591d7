"""`segmint report`: a dataset as a page, with its plots, numbers, card and Croissant file."""

from typing import Annotated

import typer

from segmint.pipeline.commands.arguments import AsJson, DetectorConfig, build_of
from segmint.pipeline.commands.console import answer_with, guarded


@guarded
def report(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="The dataset, or a folder in the manner of SA-1B.")],
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="DIR", help="Where to; DATASET/report without it."),
    ] = None,
    audit: Annotated[
        str | None,
        typer.Option("--audit", metavar="FILE.json", help="What `segmint audit --json` wrote, instead of auditing."),
    ] = None,
    sample: Annotated[
        int, typer.Option(metavar="N", min=0, help="Images whose pixels are looked at, spread evenly.")
    ] = 100,
    config: DetectorConfig = None,
    as_json: AsJson = False,
) -> None:
    """Write a page that shows a dataset: verdict, plots beside SA-1B's, samples; numbers, dataset card, Croissant."""
    from segmint.pipeline.audit.audit import AuditOptions
    from segmint.pipeline.report.report import write_report

    build, storage = build_of(config)
    written = write_report(dataset, storage, output, audit, AuditOptions(sample, build=build))
    answer_with(written, as_json)
