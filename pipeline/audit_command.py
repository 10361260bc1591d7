"""`segmint audit`: whether what stands in a dataset is whole and agrees with itself."""

import json
from typing import Annotated

import typer

from pipeline.console import FINDINGS, answer, guarded, say

_SAMPLE = 100


@guarded
def audit(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="The dataset, a folder or a bucket's prefix.")],
    integrity_only: Annotated[
        bool,
        typer.Option("--integrity-only", help="Whether its files are whole and agree with one another; required."),
    ] = False,
    sample: Annotated[
        int, typer.Option(metavar="N", min=0, help="Images whose JPEG and masks are decoded, spread evenly.")
    ] = _SAMPLE,
    config: Annotated[
        str | None,
        typer.Option("--config", metavar="CONFIG", help="A build's configuration, whose storage options count here."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The answer as JSON.")] = False,
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="FILE", help="Write the answer there, a path or URI.")
    ] = None,
) -> None:
    """Read a dataset's files and name what is missing, damaged or in contradiction; exit code 1 when anything is."""
    from infra.errors import UsageError
    from infra.storage import Storage

    if not integrity_only:
        raise UsageError(
            "audit looks at a dataset's integrity alone so far, and not at licenses, privacy or statistics: "
            "say so with --integrity-only"
        )
    options = {}
    if config is not None:
        from pipeline.config import load_config

        options = load_config(config).storage
    from pipeline.audit import audit_integrity

    storage = Storage(options)
    report = audit_integrity(dataset, storage, sample)
    lines = report.lines()
    text = json.dumps(report.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) if as_json else "\n".join(lines)
    if output is None:
        answer(text)
    else:
        storage.put(output, f"{text}\n".encode())
        say(f"{lines[-1]}; written to {output}")
    if report.findings.total:
        raise typer.Exit(FINDINGS)
