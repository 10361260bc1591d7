"""`segmint audit`: check a dataset's integrity, licenses, and privacy, and compute its statistics.

`pipeline/quality/audit/shard.py` checks the files of one shard. `pipeline/quality/audit/audit.py` runs the whole audit.
"""

import sys
from typing import Annotated

import typer

from segmint.pipeline.commands.common.arguments import AsJson, DetectorConfig, build_of
from segmint.pipeline.commands.common.console import (
    exit_unless_clean,
    guarded,
    print_line,
    print_message,
    print_next,
    print_whole,
)
from segmint.pipeline.commands.common.extras import needs

_SAMPLE = 100
_PRIVACY_SAMPLE = 20
_ALL = "all"


@guarded
@needs("audit")
def audit(
    datasets: Annotated[
        list[str],
        typer.Argument(
            metavar="DATASET",
            help="Dataset, or data in the layout of SA-1B, COCO, or YOLO: a folder, a bucket prefix, or COCO files.",
        ),
    ],
    images: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Folder of the images of COCO files or YOLO labels, if it is elsewhere."),
    ] = None,
    integrity_only: Annotated[
        bool, typer.Option("--integrity-only", help="Only check that all files are intact and consistent.")
    ] = False,
    complete: Annotated[
        bool, typer.Option("--complete", help="Require a finished dataset: report shards without a commit as findings.")
    ] = False,
    sample: Annotated[
        int,
        typer.Option(metavar="N", min=0, help="Number of images whose JPEG and masks are decoded, spread evenly."),
    ] = _SAMPLE,
    privacy_sample: Annotated[
        str, typer.Option(metavar="N|all", help="Number of images to search with the detectors again, spread evenly.")
    ] = str(_PRIVACY_SAMPLE),
    attributions: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write each image's attribution to this .csv, .jsonl, or .md file."),
    ] = None,
    regions: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write remaining detections to this file, for `segmint redact`."),
    ] = None,
    pictures: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Write a JPEG per remaining detection to this folder, the rest pixelated."),
    ] = None,
    detector: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND=PATH",
            help="Also search with this detector (TorchScript or ONNX) of kind face or plate; repeatable.",
        ),
    ] = None,
    evidence: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Write the audit to this empty folder as evidence that others can check."),
    ] = None,
    study: Annotated[
        str | None,
        typer.Option(metavar="FILE.json", help="Add this privacy study score (`study score --json`) to the evidence."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Also report detections that the build recorded and left.")
    ] = False,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda[:N]", help="Device to run detectors on.")] = "cpu",
    config: DetectorConfig = None,
    as_json: AsJson = False,
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="FILE", help="Write the result to this path or URI.")
    ] = None,
) -> None:
    """Check the files, licenses, and privacy of a dataset.

    Exits with code 1 if there are findings, and with code 3 if something couldn't be checked.
    """
    from segmint.infra.errors import UsageError

    if privacy_sample != _ALL and not privacy_sample.isdecimal():
        raise UsageError(f"--privacy-sample is {privacy_sample!r}: expected a whole number from 0, or {_ALL}")
    wanted = {"--attributions": attributions, "--regions": regions, "--pictures": pictures}
    given = {**wanted, "--detector": detector, "--evidence": evidence, "--study": study, "--strict": strict}
    needless = [name for name, value in given.items() if value]
    if integrity_only and needless:
        raise UsageError(f"{', '.join(needless)} can't be combined with --integrity-only")
    if privacy_sample.isdecimal() and not int(privacy_sample) and (regions or pictures):
        raise UsageError("--regions and --pictures require detections: remove --privacy-sample 0")
    if study is not None and evidence is None:
        raise UsageError("--study requires --evidence, because the score is added to the evidence")
    build, storage = build_of(config)
    dataset, *more = datasets
    listed = bool(more or images)
    if listed and (integrity_only or evidence):
        raise UsageError("--integrity-only and --evidence are only for one dataset from segmint, without --images")
    from segmint.catalogs.dataset.outputs import note_output, refuse_inside
    from segmint.infra.storage.location import Location
    from segmint.infra.wording import not_checked_lines, terminal_width
    from segmint.pipeline.config.config import LOCAL
    from segmint.pipeline.quality.audit.integrity import RAY_FROM_MASKS, audit_integrity, with_missing_commits
    from segmint.pipeline.quality.audit.result_json import to_json
    from segmint.pipeline.quality.audit.result_text import not_checked, result_lines

    where = Location(storage, dataset)
    if output is not None:
        refuse_inside(where, Location(storage, output), "-o")
    if integrity_only:
        resources = LOCAL if build is None else build.resources
        report = audit_integrity(where, sample, resources=resources, ray_from=RAY_FROM_MASKS)
        report = with_missing_commits(report) if complete else report
    else:
        from segmint.infra.device import resolve_compute
        from segmint.operators.audit.detectors import DetectorSpec
        from segmint.pipeline.quality.audit.audit import AuditOptions, audit_dataset

        searched = None if privacy_sample == _ALL else int(privacy_sample)
        files = {name: None if uri is None else Location(storage, uri) for name, uri in wanted.items()}
        options = AuditOptions(
            sample,
            searched,
            attributions=files["--attributions"],
            regions=files["--regions"],
            pictures=files["--pictures"],
            strict=strict,
            detectors=tuple(DetectorSpec.of(each) for each in detector or ()),
            device=device if device == "cpu" else resolve_compute(device).device,
            build=build,
            complete=complete,
            more=tuple(Location(storage, each) for each in more),
            images=None if images is None else Location(storage, images),
            ray_from=RAY_FROM_MASKS,
        )
        if evidence is None:
            report = audit_dataset(where, options)
        else:
            from segmint.pipeline.quality.evidence.evidence import check_target, write_evidence
            from segmint.pipeline.quality.statistics.ratings import check_sampled, read_score

            folder = Location(storage, evidence)
            check_target(where, folder)
            people = None if study is None else check_sampled(read_score(Location(storage, study)), study, where)
            report = audit_dataset(where, options)
            print_message(write_evidence(where, report, options, folder, people).line())
    lines = result_lines(report, terminal_width(sys.stdout) if output is None else None)
    text = to_json(report) if as_json else "\n".join(lines)
    if output is None:
        (print_whole if as_json else print_line)(text)
    else:
        written = Location(storage, output)
        written.put(f"{text}\n".encode())
        note_output(where, "audit -o", written, {written.name: written.sha256()})
        print_message(f"{lines[0]}; written to {output}")
        for line in not_checked_lines(not_checked(report)):
            print_line(line)
    if not integrity_only and report.kind == "segmint":
        print_next(as_json, "report", dataset, config=config)
    exit_unless_clean(report.findings.counts, not_checked(report))
