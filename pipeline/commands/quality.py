"""Commands that inspect a dataset: `audit`, `report`, `view`, `verify`, `sign`, and `diff`.

`segmint audit`: check a dataset's integrity, licenses, and privacy, and compute its statistics.

`pipeline/quality/audit/content.py` checks the files of one shard, and `pipeline/quality/audit/audit.py` runs the
whole audit.

`segmint report`: write a page about a dataset with plots and numbers, a card, a disclosure, and a Croissant file.
"""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from segmint.infra.wording import is_terminal
from segmint.pipeline.commands.console import (
    AsJson,
    Browser,
    Config,
    Dataset,
    DatasetOrFolder,
    DetectorConfig,
    Port,
    build_of,
    exit_unless_clean,
    guarded,
    needs,
    print_checked,
    print_line,
    print_message,
    print_next,
    print_result,
    print_whole,
    resources_of,
    storage_of,
)

if TYPE_CHECKING:
    from segmint.infra.storage.location import Location


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
    from segmint.catalogs.findings import REPAIRABLE
    from segmint.infra.storage.location import Location
    from segmint.infra.wording import not_checked_lines, terminal_width
    from segmint.pipeline.quality.audit.integrity import RAY_FROM_MASKS, audit_integrity, with_missing_commits
    from segmint.pipeline.quality.audit.result import not_checked, result_lines, to_json

    where = Location(storage, dataset)
    if output is not None:
        refuse_inside(where, Location(storage, output), "-o")
    if integrity_only:
        report = audit_integrity(where, sample, resources=resources_of(build), ray_from=RAY_FROM_MASKS)
        report = with_missing_commits(report) if complete else report
    else:
        from segmint.infra.device import resolve_compute
        from segmint.operators.audit.privacy import DetectorSpec
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
            from segmint.pipeline.quality.evidence import check_target, write_evidence
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
    if report.kind == "segmint" and REPAIRABLE & report.findings.counts.keys():
        print_next(as_json, "repair", dataset, config=config)
    elif report.kind == "segmint" and not integrity_only:
        print_next(as_json, "report", dataset, config=config)
    exit_unless_clean(report.findings.counts, not_checked(report))


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


@guarded
@needs("web")
def view(
    dataset: DatasetOrFolder,
    port: Port = 0,
    browser: Browser = True,
    config: Config = None,
    audit: Annotated[
        str | None,
        typer.Option("--audit", metavar="FILE", help="Show findings from `segmint audit --json -o FILE` output."),
    ] = None,
) -> None:
    """Browse a dataset's images and masks in a web browser.

    To show the masks of a folder of photographs, segmint keeps a working copy in FOLDER/.segmint. The viewer is
    read-only. Press Ctrl-C to stop it.
    """
    from segmint.infra.errors import UsageError
    from segmint.infra.storage.location import Location
    from segmint.pipeline.commands.folder import check_place
    from segmint.pipeline.corrections.folder import is_photograph_folder

    check_place(dataset)
    if not is_photograph_folder(dataset, pairs=False):
        storage = storage_of(config)
        print_message(f"reading the tables of {dataset}")
        findings = None if audit is None else Location(storage, audit)
        show_dataset(Location(storage, dataset), port, open_browser=browser, findings=findings)
        return
    if audit is not None or config is not None:
        raise UsageError(f"{dataset} is a folder of photographs: remove --audit and --config")
    show_folder(dataset, port, open_browser=browser)


def show_folder(folder: str, port: int = 0, *, open_browser: bool = True) -> None:
    """Serve the viewer of a folder's photographs and masks until it is stopped."""
    from segmint.pipeline.commands.folder import FolderAnnotator, folder_to_view

    with ExitStack() as stack:
        working = stack.enter_context(folder_to_view(folder))
        annotator = FolderAnnotator(folder)
        stack.callback(annotator.stop)
        show_dataset(working.location, port, open_browser=open_browser, annotator=annotator.start)


def show_dataset(
    dataset: "Location",
    port: int = 0,
    *,
    open_browser: bool = True,
    findings: "Location | None" = None,
    annotator: Callable[[], str] | None = None,
) -> None:
    """Serve the viewer of a dataset until it is stopped. `annotator` starts an annotator and returns its URL."""
    from segmint.infra.wording import counted
    from segmint.pipeline.quality.view.app import open_viewer, serve

    def show_address(address: str) -> None:
        print_line(address)
        print_message("open this address in a browser on this machine; it works once. Press Ctrl-C to stop the viewer.")

    with open_viewer(dataset, findings) as viewer:
        viewer.annotator = annotator
        images, masks = viewer.summary["images"], viewer.summary["masks"]
        print_message(f"{counted(images, 'image')} with {counted(masks, 'mask')}")
        if viewer.note is not None:
            print_message(f"note: {viewer.note}")
        if viewer.version is not None:
            print_message(viewer.version.line())
        serve(viewer, port, open_browser=open_browser, on_ready=show_address)


RecordedVersion = Annotated[
    str | None,
    typer.Option("--version", metavar="N", help="Recorded version, by number or digest. Default: the latest."),
]


@guarded
def verify(
    dataset: Dataset,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="PUBLIC.pem", help="Require a signature of the version by this key."),
    ] = None,
    version: RecordedVersion = None,
    require_pinned: Annotated[
        bool,
        typer.Option("--require-pinned", help="Require --key, or --version with a full digest."),
    ] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Compare every byte with the recorded version.

    Exits with code 1 if anything differs, and with code 3 if something couldn't be checked.
    """
    from segmint.infra.storage.location import Location
    from segmint.pipeline.quality.verify import verify_dataset

    storage = storage_of(config)
    public = None if key is None else Location(storage, key)
    verified = verify_dataset(Location(storage, dataset), version, public, require_pinned)
    print_checked(verified, as_json, verified.problems, verified.not_checked)


@guarded
def sign(
    dataset: Dataset,
    key: Annotated[str, typer.Option("--key", metavar="PRIVATE", help="Private Ed25519 key in PEM or OpenSSH format.")],
    version: RecordedVersion = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Sign a recorded version's digest and list of files.

    Check the signature with `segmint verify --key`.
    """
    from segmint.infra.storage.location import Location
    from segmint.pipeline.quality.signatures import sign_version

    def ask() -> str:
        return str(typer.prompt("Passphrase of the key", hide_input=True, err=True))

    storage = storage_of(config)
    places = (Location(storage, dataset), Location(storage, key))
    print_result(sign_version(*places, version, ask if is_terminal(sys.stdin) else None), as_json)


@guarded
@needs("audit")
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="Dataset folder or bucket prefix.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another dataset, or the same one.")],
    version_a: Annotated[
        str | None, typer.Option(metavar="N", help="Version of A, by number or digest. Default: its current state.")
    ] = None,
    version_b: Annotated[str | None, typer.Option(metavar="N", help="Version of B. Default: the current one.")] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show what changed between two versions or datasets.

    Covers images, masks, licenses, redactions, and settings.
    """
    from segmint.infra.storage.location import Location
    from segmint.pipeline.quality.diff import diff_datasets

    storage = storage_of(config)
    print_result(diff_datasets(Location(storage, a), Location(storage, b), version_a, version_b), as_json)
