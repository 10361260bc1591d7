"""The command line. What is heavy is imported by the command that needs it, so that help comes at once."""

import os
import re
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segmint.infra.errors import UsageError
from segmint.pipeline.commands import assets as assets_commands
from segmint.pipeline.commands import audit as audit_command
from segmint.pipeline.commands import catalog as catalog_commands
from segmint.pipeline.commands import corrections as correction_commands
from segmint.pipeline.commands import export as export_command
from segmint.pipeline.commands import report as report_command
from segmint.pipeline.commands import study as study_commands
from segmint.pipeline.commands import view as view_command
from segmint.pipeline.commands.console import DEBUG_VARIABLE, FAILED, answer, answer_json, answer_with, guarded, say
from segmint.pipeline.shard_ranges import parse_shards

if TYPE_CHECKING:
    from segmint.pipeline.masks import Box, ImageResult, Point

app = typer.Typer(
    name="segmint",
    help="Mints segmentation datasets: licensed photographs in, SA-1B-style shards with masks out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)
app.add_typer(catalog_commands.app)
app.add_typer(assets_commands.app)
app.add_typer(study_commands.app)


class Profile(StrEnum):
    """Where the settings of automatic mask generation start from."""

    SA1B = "sa1b"
    OFFICIAL = "official"


class Precision(StrEnum):
    """What the model computes in."""

    FP32 = "fp32"
    BF16 = "bf16"


def main() -> None:
    """The command `segmint`; ends the process with its exit code."""
    # Threads that wait for one another by spinning take the cores from those that they wait for, as soon as another
    # process works too: a prompt then takes twenty times as long. Read once, when torch's library of threads loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app(prog_name="segmint")


def _version(value: bool) -> None:
    if value:
        from segmint.infra.version import VERSION

        answer(f"segmint {VERSION}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help=f"Show tracebacks (also {DEBUG_VARIABLE}=1).")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options before the command's name."""
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"


@app.command()
@guarded
def build(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="The YAML configuration, a path or URI.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="K=V", help="Override a key, as in --set masks.points_per_side=16; repeatable."),
    ] = None,
    shards: Annotated[
        str | None,
        typer.Option(
            metavar="A:B|K/N",
            help="Only shards A to B-1, or part K of N from 0; disjoint ranges may be built at the same time.",
        ),
    ] = None,
    grow: Annotated[
        bool, typer.Option("--grow", help="Add the catalog's new rows to a dataset that was begun, as new shards.")
    ] = False,
    retry_rejected: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REASON",
            help="Take rows again that committed shards refused for this reason, such as not_found; repeatable.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the accounting as JSON.")] = False,
) -> None:
    """Build a dataset, or go on with what is missing of it."""
    from segmint.catalogs.reasons import reasons_to_retry
    from segmint.pipeline.config.config import load_config

    loaded = load_config(config, overrides or [])
    span = parse_shards(shards) if shards is not None else None
    reasons = reasons_to_retry(retry_rejected or [])
    from segmint.pipeline.build import run_build

    accounting = run_build(loaded, shards=span, grow=grow, retry_rejected=reasons)
    answer_with(accounting, as_json)


@app.command()
@guarded
def plan(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="The YAML configuration, a path or URI.")],
    sample: Annotated[
        int | None, typer.Option(metavar="N", help="Measure N real rows, spread evenly over the catalog.")
    ] = None,
    gpus: Annotated[int | None, typer.Option(metavar="N", help="Plan for so many GPUs; those here without it.")] = None,
    price: Annotated[
        float | None, typer.Option(metavar="X", help="Price of a GPU-hour; of a core-hour on a CPU.")
    ] = None,
    share: Annotated[
        float | None, typer.Option(metavar="X", help="Share of the ceiling to assume where none is measured; 0.3.")
    ] = None,
    flops: Annotated[
        float | None,
        typer.Option(metavar="X", help="Peak of a GPU that is not here, operations a second, as in 9.9e14."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="K=V", help="Override a key, as in --set masks.points_per_side=16; repeatable."),
    ] = None,
    shards: Annotated[str | None, typer.Option(metavar="A:B|K/N", help="Only these shards, as in a build.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Say what a build takes and gives, before anything is spent: images, bytes, hours, days and cost."""
    from segmint.pipeline.config.config import load_config

    loaded = load_config(config, overrides or [])
    span = parse_shards(shards) if shards is not None else None
    from segmint.pipeline.plan.plan import PlanOptions, make_plan

    planned = make_plan(loaded, PlanOptions(span, sample, gpus, price, share, flops), say)
    answer_with(planned, as_json)


@app.command()
@guarded
def demo(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where everything goes; made if it is not there.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the accounting as JSON.")] = False,
) -> None:
    """Build a small dataset of photographs that scikit-image and scikit-learn bring, draw its masks, and show crops."""
    from segmint.pipeline.demo import run_demo

    accounting = run_demo(folder, say if as_json else answer)
    if as_json:
        answer_json(accounting.to_dict())


@app.command()
@guarded
def masks(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE", help="Photographs, as paths or URIs.")],
    output: Annotated[
        str,
        typer.Option("-o", "--output", metavar="FILE|DIR", help="The JSON for one image; a folder for several."),
    ],
    profile: Annotated[
        Profile,
        typer.Option(help="sa1b: as SA-1B was made, with crops; official: the reference code's defaults."),
    ] = Profile.SA1B,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="K=V", help="Override a setting, as in --set points_per_side=16; repeatable."),
    ] = None,
    weights: Annotated[
        str,
        typer.Option(metavar="NAME|PATH", help="mobile_sam, vit_b, vit_l, vit_h, or a checkpoint's path."),
    ] = "mobile_sam",
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where to compute; also cuda:N.")] = "auto",
    precision: Annotated[
        Precision, typer.Option(help="bf16 is faster, and changes a few pixels in ten thousand.")
    ] = Precision.FP32,
    crop_layers: Annotated[
        int | None, typer.Option(metavar="N", help="Layers of crops, as --set crop_n_layers=N.")
    ] = None,
    overlay: Annotated[bool, typer.Option("--overlay", help="Write PNGs with the masks drawn, beside.")] = False,
    points: Annotated[
        list[str] | None,
        typer.Option(
            "--point", metavar="X,Y[,0|1]", help="One mask for all points given; 0 marks background; repeatable."
        ),
    ] = None,
    boxes: Annotated[
        list[str] | None, typer.Option("--box", metavar="X,Y,W,H", help="A mask for this box; repeatable.")
    ] = None,
    all_masks: Annotated[
        bool, typer.Option("--all-masks", help="For prompts: whole, part and subpart, not only the best.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what came of each image as JSON.")] = False,
) -> None:
    """Make masks for photographs: all of them, or those for points and boxes given in pixels."""
    from segmint.pipeline.masks import MasksOptions, Prompts, make_masks, masks_config

    layers = [] if crop_layers is None else [f"crop_n_layers={crop_layers}"]
    prompts = Prompts(tuple(map(parse_point, points or [])), tuple(map(parse_box, boxes or [])))
    if all_masks and not prompts:
        raise UsageError("--all-masks belongs to --point and --box: without them all masks are written anyway")
    wanted = MasksOptions(
        masks=masks_config(profile.value, [*(overrides or []), *layers]),
        prompts=prompts,
        all_masks=all_masks,
        weights=weights,
        device=device,
        precision=precision.value,
        overlay=overlay,
    )
    results = make_masks(images, output, wanted, _tell)
    if as_json:
        answer_json([asdict(result) for result in results])
    failed = sum(result.error is not None for result in results)
    if failed:
        say(f"{failed} of {len(results)} images failed")
        raise typer.Exit(FAILED)


def _tell(result: "ImageResult") -> None:
    if result.error is not None:
        say(f"error: {result.image}: {result.error}")
    else:
        count = "1 mask" if result.masks == 1 else f"{result.masks} masks"
        say(f"{result.image}: {count} in {result.seconds:.1f} s → {result.output}")


app.command()(audit_command.audit)
app.command()(report_command.report)
app.command()(export_command.export)
app.command()(view_command.view)
app.command()(correction_commands.takedown)
app.command()(correction_commands.redact)
app.command()(correction_commands.repair)


@app.command()
def version(
    as_json: Annotated[bool, typer.Option("--json", help="With the versions of what it stands on.")] = False,
) -> None:
    """Show the version."""
    from segmint.infra.version import VERSION

    if not as_json:
        answer(f"segmint {VERSION}")
        return
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as version_of

    found: dict[str, str | None] = {"segmint": VERSION}
    for package in (
        "torch",
        "torchvision",
        "numpy",
        "ray",
        "pyarrow",
        "pillow",
        "opencv-python-headless",
        "duckdb",
    ):
        try:
            found[package] = version_of(package)
        except PackageNotFoundError:
            found[package] = None
    answer_json(found)


def parse_point(text: str) -> "Point":
    """A point from "X,Y" or "X,Y,LABEL"; raises `UsageError` for anything else."""
    numbers = _numbers(text)
    if len(numbers) not in (2, 3) or (len(numbers) == 3 and numbers[2] not in (0, 1)):
        raise UsageError(f"--point {text!r}: expected X,Y or X,Y,LABEL in pixels; LABEL is 1 (foreground) or 0")
    return numbers[0], numbers[1], int(numbers[2]) if len(numbers) == 3 else 1


def parse_box(text: str) -> "Box":
    """A box from "X,Y,W,H"; raises `UsageError` for anything else."""
    numbers = _numbers(text)
    if len(numbers) != 4 or numbers[2] <= 0 or numbers[3] <= 0:
        raise UsageError(f"--box {text!r}: expected X,Y,W,H in pixels, with a width and a height over 0")
    return numbers[0], numbers[1], numbers[2], numbers[3]


def _numbers(text: str) -> list[float]:
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"-?\d+(\.\d*)?|-?\.\d+", part) for part in parts):
        return []
    return [float(part) for part in parts]
