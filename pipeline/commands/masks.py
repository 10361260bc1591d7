"""`segmint masks`: make masks for single photographs or a folder of them."""

import sys
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from segmint.infra.assets import AUTO
from segmint.infra.errors import UsageError
from segmint.infra.progress import Progress
from segmint.infra.wording import counted, duration, is_terminal, listed
from segmint.pipeline.commands.console import (
    Device,
    YoloNames,
    exit_unless_clean,
    guarded,
    print_json,
    print_line,
    print_message,
    printable,
    require,
)

if TYPE_CHECKING:
    from segmint.pipeline.masks.options import MasksOptions
    from segmint.pipeline.masks.run import ImageResult, MasksPlan, Work


Profile = Literal["sa1b", "official", "sam2"]


@guarded
def masks(
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE|FOLDER|GLOB", help="Photographs, folders, or glob patterns.")
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE|DIR",
            help="JSON file for one photograph, or an output folder. Default: x.masks.json next to each photograph.",
        ),
    ] = None,
    recursive: Annotated[
        bool, typer.Option("--recursive", help="Include subfolders, and keep the folder tree.")
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Regenerate existing masks, including those made with different settings."),
    ] = False,
    profile: Annotated[
        Profile,
        typer.Option(
            help="Default settings: those of SA-1B (sa1b), or of the reference code of SAM (official) or SAM 2 (sam2)."
        ),
    ] = "sa1b",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="K=V", help="Override a setting, as in --set points_per_side=16; repeatable."),
    ] = None,
    weights: Annotated[
        str,
        typer.Option(
            metavar="NAME|PATH",
            help="Weights: auto (vit_h on a GPU, otherwise mobile_sam), mobile_sam, vit_b, vit_l, vit_h, or a path or "
            "URI.",
        ),
    ] = AUTO,
    device: Device = "auto",
    precision: Annotated[
        Literal["fp32", "bf16"],
        typer.Option(help="Numeric precision; bf16 needs a GPU, is faster, and changes a few pixels in ten thousand."),
    ] = "fp32",
    crop_layers: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=0, max=6, help="Crop layers (default: 0). Crops find smaller objects; SA-1B uses 2."
        ),
    ] = None,
    overlay: Annotated[bool, typer.Option("--overlay", help="Also write a PNG with the masks drawn.")] = False,
    cutouts: Annotated[
        bool, typer.Option("--cutouts", help="Also write each object as a transparent PNG, in the folder x.cutouts.")
    ] = False,
    points: Annotated[
        list[str] | None,
        typer.Option(
            "--point", metavar="X,Y[,0|1]", help="Point of one mask, in pixels; 0 marks background; repeatable."
        ),
    ] = None,
    boxes: Annotated[
        list[str] | None,
        typer.Option("--box", metavar="X,Y,W,H", help="Box of one mask, in pixels; repeatable without --point."),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option("--prompt", metavar="TEXT", help="One mask for 'box:X,Y,W,H point:X,Y[,0|1] …'; repeatable."),
    ] = None,
    box_file: Annotated[
        str | None,
        typer.Option(
            "--boxes", metavar="FILE|FOLDER", help="COCO file, or YOLO labels with --names: one mask for each box."
        ),
    ] = None,
    names: YoloNames = None,
    all_masks: Annotated[
        bool, typer.Option("--all-masks", help="Write the whole, part, and subpart per prompt, not only the best mask.")
    ] = False,
    full_frame: Annotated[
        bool,
        typer.Option(
            "--full-frame", help="Keep large photographs' full size, not a build's released size (profile sa1b)."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print each image's result as JSON.")] = False,
    open_viewer: Annotated[
        bool, typer.Option("--open", help="Then show the masks in a web browser, as `segmint view` does.")
    ] = False,
) -> None:
    """Make masks for photographs.

    By default, makes all masks. With points or boxes, makes only the prompted ones.
    """
    from segmint.infra.storage.storage import Storage
    from segmint.pipeline.masks.images import read_boxes
    from segmint.pipeline.masks.options import (
        MasksOptions,
        masks_config,
        read_prompts,
        release_config,
    )

    asked = read_prompts(points or [], boxes or [], prompts or [])
    if (names is not None and box_file is None) or (box_file is not None and (asked or all_masks)):
        raise UsageError(
            "--boxes makes one mask for each box of a file. It can't be combined with --point, --box, --prompt, or "
            "--all-masks, and --names needs it"
        )
    prompted = bool(asked) or box_file is not None
    in_settings, released = _split(overrides or [], automatic=not prompted and not full_frame, profile=profile)
    in_settings += [] if crop_layers is None else [f"crop_n_layers={crop_layers}"]
    _check_flags(prompted, in_settings, all_masks=all_masks, full_frame=full_frame, profile=profile)
    if open_viewer:
        require("web")
    options = MasksOptions(
        masks=masks_config(profile, in_settings),
        prompts=asked,
        all_masks=all_masks,
        weights=weights,
        device=device,
        precision=precision,
        overlay=overlay,
        cutouts=cutouts,
        release=release_config(released),
        full_frame=full_frame,
        boxes=None if box_file is None else read_boxes(Storage(), box_file, names),
    )
    planned, results = _run(images, output, options, recursive=recursive, overwrite=overwrite, as_json=as_json)
    if open_viewer:
        open_masks(planned, results, images)
    failed = [result for result in results if result.outcome == "failed"]
    is_drawn = any(result.overlay for result in results)
    if not (is_drawn or open_viewer or failed) and any(result.outcome in ("made", "skipped") for result in results):
        print_message("next: run the same command with --open to see the masks, or --overlay to draw them")
    exit_unless_clean([result for result in results if result.outcome == "refused"], failed)


def open_masks(planned: "MasksPlan", results: "list[ImageResult]", images: list[str]) -> None:
    """Open the viewer for the photographs that have masks, or for the whole folder if it also contains the masks."""
    from segmint.pipeline.commands.folder import photographs_to_view
    from segmint.pipeline.commands.quality import show_dataset, show_folder
    from segmint.pipeline.corrections.folder import is_photograph_folder

    is_flat = planned.outputs.next_to and all("/" not in task.image.place for task in planned.outputs.tasks)
    if is_flat and len(images) == 1 and is_photograph_folder(images[0]):
        show_folder(images[0])
        return
    made = {result.image for result in results if result.outcome in ("made", "skipped")}
    tasks = tuple(task for task in planned.outputs.tasks if task.image.name in made)
    if not tasks:
        print_message("no masks to show")
        return
    with photographs_to_view(tasks) as working:
        show_dataset(working.location)


def _check_flags(prompted: bool, settings: list[str], *, all_masks: bool, full_frame: bool, profile: Profile) -> None:
    if all_masks and not prompted:
        raise UsageError("--all-masks requires --point, --box, or --prompt: otherwise, all masks are written")
    if full_frame and (prompted or profile != "sa1b"):
        raise UsageError(
            "--full-frame is only for automatic masks with --profile sa1b: prompts and other profiles always use "
            "the photograph's own frame"
        )
    for setting in settings if prompted else ():
        if setting.strip().removeprefix("masks.").partition("=")[0].strip() != "stability_score_offset":
            raise UsageError(f"{setting} has no effect on prompts, which only use stability_score_offset. Remove it")


def _split(overrides: list[str], *, automatic: bool, profile: Profile) -> tuple[list[str], list[str]]:
    """Split overrides by section, `masks:` or `release:`. Raises `UsageError` if the frame isn't a released frame."""
    from segmint.pipeline.masks.options import RELEASE

    released = [override for override in overrides if override.strip().startswith(RELEASE)]
    if released and (not automatic or profile != "sa1b"):
        raise UsageError(
            f"--set {released[0]} is only for automatic masks with --profile sa1b and without --full-frame: no others "
            "use the released frame"
        )
    return [override for override in overrides if override not in released], released


def _run(
    images: list[str], output: str | None, options: "MasksOptions", *, recursive: bool, overwrite: bool, as_json: bool
) -> "tuple[MasksPlan, list[ImageResult]]":
    from segmint.pipeline.masks.run import ImageResult, make_masks, plan

    def announce(work: "Work") -> None:
        if work.photographs:
            print_message(work.line())

    planned = plan(images, output, options, recursive=recursive, overwrite=overwrite, announce=announce)
    for line in planned.photographs.passed_over:
        print_message(f"ignored: {line}")
    results: list[ImageResult] = []
    try:
        with ExitStack() as stack:
            display = _Display(planned, stack)

            def report(result: "ImageResult") -> None:
                results.append(result)
                display.add(results)

            make_masks(planned, report, display.show_points)
    finally:
        _sum_up(planned, results)
    for line in planned.photographs.unreadable:
        folder, _, error = line.rpartition(": ")
        results.append(ImageResult(folder, "failed", error=error))
    if options.boxes is not None:
        for line in options.boxes.unreadable:
            results.append(ImageResult(options.boxes.file, "failed", error=line))
    if as_json:
        print_json(list(map(asdict, results)))
        return planned, results
    for result in results:
        if result.outcome == "failed":
            print_line(f"not checked: {result.image}: {result.error}")
    return planned, results


class _Display:
    """Display of a line per photograph and, on a terminal, of progress bars, which `stack` closes."""

    def __init__(self, planned: "MasksPlan", stack: ExitStack) -> None:
        self._planned, self._done, self._bars = planned, 0, None
        work, self._photographs = planned.work, len(planned.outputs.tasks)
        self._points = 0 if work.options.prompts_each else work.photographs * work.points
        if is_terminal(sys.stderr) and (self._points or self._photographs > 1):
            self._bars = stack.enter_context(Progress())
            if self._points:
                self._bars.stage("points", self._points)
            if self._photographs > 1:
                self._bars.stage("photographs", self._photographs)

    def show_points(self, done: int, points: int) -> None:
        """Show that `done` of a photograph's points are decoded."""
        if self._bars is not None and self._points:
            self._bars.update("points", min(self._done + done, self._points))

    def add(self, results: "list[ImageResult]") -> None:
        """Print the line of the last result."""
        line = _line(results[-1])
        if self._planned.waits(self._planned.outputs.tasks[len(results) - 1]):
            self._done += self._planned.work.points
        if self._bars is not None:
            self._bars.line(printable(line))
            self.show_points(0, 0)
            if self._photographs > 1:
                self._bars.update("photographs", len(results))
            return
        if self._photographs > 1:
            line = f"[{len(results):,}/{self._photographs:,}] {line}"
        left = _left(self._planned, results)
        if left is not None:
            line += f"; about {duration(left, rough=True)} left"
        print_message(line)


def _left(planned: "MasksPlan", results: "list[ImageResult]") -> float | None:
    """Estimate the remaining seconds from the photographs processed so far. Return None before the first photograph."""
    made = [result.seconds for result in results if result.outcome == "made"]
    waiting = planned.work.photographs - sum(result.outcome != "skipped" for result in results)
    return sum(made) / len(made) * waiting if made and waiting > 0 else None


def _sum_up(planned: "MasksPlan", results: "list[ImageResult]") -> None:
    """Print a summary: counts by outcome, errors by photograph, the location of the masks, and how to retry."""
    folder, total = planned.outputs.folder, len(planned.outputs.tasks)
    outcomes = Counter(result.outcome for result in results)
    if total > 1 and results:
        seconds = sum(result.seconds for result in results)
        masks = sum(result.masks for result in results)
        counts = {
            "made": outcomes["made"],
            "already made": outcomes["skipped"],
            "refused": outcomes["refused"],
            "failed": outcomes["failed"],
            "not reached": total - len(results),
        }
        shown = listed(f"{count:,} {words}" for words, count in counts.items() if count)
        summary = f"{total:,} photographs: {shown}; {counted(masks, 'mask')}"
        if outcomes["made"]:
            summary += f" in {duration(round(seconds, 1))}"
        print_message(summary)
        for result in results:
            if result.error is not None:
                print_message(f"  {result.outcome}: {result.image}: {result.error}")
    written = outcomes["made"] + outcomes["skipped"]
    if written and (folder is not None or (planned.outputs.next_to and total > 1)):
        print_message(f"masks: {folder or 'next to the photographs'}, one SA-1B-style JSON file per photograph")
    if outcomes["failed"]:
        print_message("next: run the same command again to retry only the photographs that failed")


def _line(result: "ImageResult") -> str:
    if result.error is not None:
        return f"{result.outcome}: {result.image}: {result.error}"
    files = listed([file for file in (result.output, result.overlay, result.cutouts) if file is not None])
    if result.outcome == "skipped":
        return f"{result.image}: {counted(result.masks, 'mask')} already made → {files}"
    line = f"{result.image}: {counted(result.masks, 'mask')} in {result.seconds:.1f} s → {files}"
    if result.frame != result.source:
        line += f" ({_sizes(result)})"
    return line


def _sizes(result: "ImageResult") -> str:
    (width, height), (source_width, source_height) = result.frame or (0, 0), result.source or (0, 0)
    return f"{width} x {height} of {source_width} x {source_height} pixels, as in a build; --full-frame keeps all"
