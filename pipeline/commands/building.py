"""Commands that build: `init`, `plan`, `build`, `status`, and `demo`."""

import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segmint.catalogs.layout import parse_shards
from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.uris import LOCAL, local_path, scheme
from segmint.pipeline.commands.console import (
    AsJson,
    Config,
    ConfigFile,
    Overrides,
    exit_unless_clean,
    guarded,
    needs,
    print_checked,
    print_json,
    print_line,
    print_message,
    print_next,
    print_result,
    printable,
    storage_of,
)
from segmint.pipeline.config.yaml_file import template

if TYPE_CHECKING:
    from collections.abc import Callable

    from segmint.pipeline.building.status import Status, StatusTable


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
    from segmint.pipeline.building.request import names_configuration, parse_request

    given = [name for name, value in {"-o": output, "--license": license, "--allow": allow}.items() if value]
    request = None
    skipped: list[str] = []
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
        from segmint.pipeline.building.photographs import open_photographs, refused_licenses

        loaded, lines, skipped = open_photographs(request, grow=grow)
        for line in lines:
            print_message(line)
    from segmint.pipeline.build import run_build
    from segmint.pipeline.building.execution.accounting import NotRecordedError

    try:
        accounting = run_build(loaded, shards=span, grow=grow, retry_rejected=retry_rejected or [])
    except NotRecordedError as error:
        print_result(error.accounting, as_json)
        raise
    if skipped:
        accounting = replace(accounting, not_checked=skipped)
    print_result(accounting, as_json)
    if request is not None:
        for line in refused_licenses(loaded):
            print_message(line)
    print_next(as_json, "audit", loaded.output, config=source if request is None else request.config_file)
    exit_unless_clean((), skipped)


@guarded
@needs("build")
def plan(
    config: ConfigFile,
    sample: Annotated[
        int | None, typer.Option(metavar="N", help="Measure N real rows, spread evenly over the catalog.")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(metavar="NAME", help="Another machine's GPU, such as H200, A100, or L4.")
    ] = None,
    gpus: Annotated[int | None, typer.Option(metavar="N", help="Number of GPUs. Default: this machine's.")] = None,
    price: Annotated[
        float | None, typer.Option(metavar="X", help="Price per GPU-hour, or per core-hour on a CPU.")
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(metavar="X", help="Share of the ceiling to assume instead of recorded rates."),
    ] = None,
    flops: Annotated[
        float | None,
        typer.Option(metavar="X", help="Peak operations per second of a GPU that --gpu doesn't know, such as 9.9e14."),
    ] = None,
    megapixels: Annotated[
        float | None,
        typer.Option(metavar="X", help="Average megapixels of the originals if no sample reads them. Default: 16.3."),
    ] = None,
    cores: Annotated[
        int | None,
        typer.Option(metavar="N", help="CPU cores per GPU of the GPU nodes. Default: this machine's, or enough."),
    ] = None,
    overrides: Overrides = None,
    shards: Annotated[str | None, typer.Option(metavar="A:B|K/N", help="Shards to plan, as in a build.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Estimate the images, hours, and cost of a build."""
    from segmint.pipeline.config.config import load_config

    loaded = load_config(config, overrides or [])
    span = parse_shards(shards) if shards is not None else None
    from segmint.pipeline.building.plan import PlanOptions, make_plan

    options = PlanOptions(span, sample, gpu, gpus, price, share, flops, megapixels, cores)
    planned = make_plan(loaded, options, print_message)
    print_result(planned, as_json)
    if planned.rows and not overrides and span is None:  # else, the plan isn't that of this command
        print_next(as_json, "build", config)


@guarded
def status(
    datasets: Annotated[
        list[str],
        typer.Argument(metavar="DATASET", help="Dataset folders or bucket prefixes; several become a table."),
    ],
    watch: Annotated[bool, typer.Option("--watch", help="Repeat until all datasets are complete.")] = False,
    every: Annotated[float, typer.Option("--every", metavar="S", help="Seconds between updates of --watch.")] = 30.0,
    price: Annotated[
        float | None, typer.Option(metavar="X", help="Hourly price per GPU or, without --gpus, of the whole cluster.")
    ] = None,
    gpus: Annotated[int, typer.Option(metavar="N", help="Number of GPUs of the build, each at --price.")] = 1,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show the progress of builds.

    Shows progress, pace, remaining time and cost, rejections, drift, shards on hold, annotated masks, and trainings.
    """
    if watch and as_json:
        raise UsageError("--watch can't be combined with --json")
    if not 1 <= every <= 86_400:
        raise UsageError(f"--every is {every:g}: expected 1 to 86400 seconds")
    from segmint.infra.storage.location import Location
    from segmint.pipeline.building.status import Prices, StatusReader, StatusTable

    storage, prices = storage_of(config), Prices(price, gpus)
    readers = [StatusReader(Location(storage, dataset), prices) for dataset in datasets]

    def read() -> "Status | StatusTable":
        rows = [reader.read() for reader in readers]
        return rows[0] if len(rows) == 1 else StatusTable(rows)

    if watch:
        exit_unless_clean((), _watch(read, every))
        return
    now = read()
    print_checked(now, as_json, not_checked=now.not_checked)


def _watch(read: "Callable[[], Status | StatusTable]", every: float) -> list[str]:
    """Show the status until all datasets are complete, and return the parts that couldn't be read.

    Ctrl-C also ends the display and doesn't count as an error here. A terminal shows one display, which is updated in
    place. Any other output receives a new copy each time. Faults after the first read don't end the display.
    """
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    now = read()
    with suppress(KeyboardInterrupt), Live(console=Console(file=sys.stdout), auto_refresh=False) as live:
        shown = now.lines()
        while True:
            if live.console.is_terminal:
                live.update(Text("\n".join(map(printable, shown))), refresh=True)
            else:
                print_line("\n".join([*shown, ""]))
            if now.complete:
                return now.not_checked
            time.sleep(every)
            try:
                now = read()
                shown = now.lines()
            except SegmintError as error:
                shown = [*now.lines(), f"couldn't be updated: {error}"]
    return []


@guarded
def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Configuration file to write.")] = Path("build.yaml"),
    name: Annotated[str, typer.Option(help="Name of the dataset.")] = "my-dataset",
    catalog: Annotated[str, typer.Option(metavar="URI", help="Path or URI of the catalog.")] = "catalog.parquet",
    output: Annotated[str, typer.Option(metavar="URI", help="Dataset folder or bucket prefix.")] = "dataset",
    licenses: Annotated[
        list[str] | None,
        typer.Option("--license", metavar="ID", help="License that images may have; repeatable."),
    ] = None,
) -> None:
    """Write a commented configuration for `segmint build`.

    Existing files are never overwritten.
    """
    from segmint.pipeline.config.config import Config
    from segmint.pipeline.config.yaml_file import check, parse_yaml

    text = template(name, catalog, output, licenses or ("CC0-1.0", "CC-BY-4.0"))
    check(parse_yaml(text, str(file)), Config)
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError as error:
        raise UsageError(f"{file} exists and is not overwritten: name another file") from error
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror or error}") from error
    print_line(f"written to {file}")
    if scheme(catalog) == LOCAL and not local_path(catalog).exists():
        print_next(False, "catalog", "scan", "FOLDER", "-o", catalog, "--license", "ID", config=str(file))
    print_next(False, "catalog", "check", catalog, config=str(file))
    print_next(False, "plan", str(file), "--sample", "20")


@guarded
@needs("demo")
def demo(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Output folder; created if missing.")],
    as_json: AsJson = False,
) -> None:
    """Build a small dataset of photographs, and draw its masks.

    The photographs ship with scikit-image and scikit-learn.
    """
    from segmint.pipeline.demo import run_demo

    accounting = run_demo(folder, print_message if as_json else print_line)
    if as_json:
        print_json(accounting.to_dict())
