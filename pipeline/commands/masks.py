"""`segmint masks`: masks for single photographs."""

import re
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from segmint.infra.errors import UsageError
from segmint.infra.wording import counted
from segmint.pipeline.commands.common.console import FAILED, answer_json, guarded, say

if TYPE_CHECKING:
    from segmint.pipeline.masks.run import Box, ImageResult, Point


class Profile(StrEnum):
    """The defaults of automatic mask generation."""

    SA1B = "sa1b"
    OFFICIAL = "official"


class Precision(StrEnum):
    """The floating-point format that the model computes in."""

    FP32 = "fp32"
    BF16 = "bf16"


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
    overlay: Annotated[bool, typer.Option("--overlay", help="Also write PNGs with the masks drawn.")] = False,
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
        bool, typer.Option("--all-masks", help="For prompts: write whole, part and subpart, not only the best.")
    ] = False,
    full_frame: Annotated[
        bool,
        typer.Option(
            "--full-frame", help="For sa1b: keep the frame of a large photograph, where a build's is the released one."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print each image's result as JSON.")] = False,
) -> None:
    """Make masks for photographs: all masks, or those for points and boxes in pixels."""
    from segmint.pipeline.masks.run import RELEASE, MasksOptions, Prompts, make_masks, masks_config, release_config

    layers = [] if crop_layers is None else [f"crop_n_layers={crop_layers}"]
    prompts = Prompts(tuple(map(parse_point, points or [])), tuple(map(parse_box, boxes or [])))
    if all_masks and not prompts:
        raise UsageError("--all-masks belongs to --point and --box: without them all masks are written anyway")
    if full_frame and (prompts or profile is not Profile.SA1B):
        raise UsageError(
            "--full-frame belongs to automatic masks of profile sa1b: --point, --box and profile official always work "
            "in the photograph's own frame"
        )
    released = [override for override in overrides or [] if override.strip().startswith(RELEASE)]
    if released and (prompts or full_frame or profile is not Profile.SA1B):
        raise UsageError(
            f"--set {released[0]}: expected automatic masks of profile sa1b, without --full-frame: no others are in "
            "the released frame"
        )
    wanted = MasksOptions(
        masks=masks_config(profile.value, [*(each for each in overrides or [] if each not in released), *layers]),
        prompts=prompts,
        all_masks=all_masks,
        weights=weights,
        device=device,
        precision=precision.value,
        overlay=overlay,
        release=release_config(released),
        full_frame=full_frame,
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
        frame = "" if result.frame == result.source else f" ({_sizes(result)})"
        say(f"{result.image}: {counted(result.masks, 'mask')} in {result.seconds:.1f} s → {result.output}{frame}")


def _sizes(result: "ImageResult") -> str:
    (width, height), (source_width, source_height) = result.frame or (0, 0), result.source or (0, 0)
    return f"as in a build, {width} x {height} of {source_width} x {source_height} pixels; --full-frame keeps all"


def parse_point(text: str) -> "Point":
    """Parse "X,Y" or "X,Y,LABEL"; raises `UsageError` for anything else."""
    numbers = _numbers(text)
    if len(numbers) not in (2, 3) or (len(numbers) == 3 and numbers[2] not in (0, 1)):
        raise UsageError(f"--point {text!r}: expected X,Y or X,Y,LABEL in pixels; LABEL is 1 (foreground) or 0")
    return numbers[0], numbers[1], int(numbers[2]) if len(numbers) == 3 else 1


def parse_box(text: str) -> "Box":
    """Parse "X,Y,W,H"; raises `UsageError` for anything else."""
    numbers = _numbers(text)
    if len(numbers) != 4 or numbers[2] <= 0 or numbers[3] <= 0:
        raise UsageError(f"--box {text!r}: expected X,Y,W,H in pixels, with a width and a height over 0")
    return numbers[0], numbers[1], numbers[2], numbers[3]


def _numbers(text: str) -> list[float]:
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"-?\d+(\.\d*)?|-?\.\d+", part, re.ASCII) for part in parts):
        return []
    return [float(part) for part in parts]
