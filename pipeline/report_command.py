"""`segmint report`: a dataset as a page, with its plots, numbers, card and Croissant file."""

from typing import Annotated

import typer

from pipeline.console import answer, answer_json, guarded


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
    config: Annotated[
        str | None,
        typer.Option(
            "--config", metavar="CONFIG", help="A build's configuration: its storage options and detectors count."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The answer as JSON.")] = False,
) -> None:
    """Write a page that shows a dataset: verdict, plots beside SA-1B's, samples; numbers, dataset card, Croissant."""
    from infra.storage import Storage
    from pipeline.audit_dataset import AuditOptions
    from pipeline.config import load_config
    from pipeline.report import write_report

    build = None if config is None else load_config(config)
    storage = Storage(build.storage if build is not None else {})
    written = write_report(dataset, storage, output, audit, AuditOptions(sample, build=build))
    if as_json:
        answer_json(written.to_dict())
    else:
        for line in written.lines():
            answer(line)
