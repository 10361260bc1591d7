"""`segmint annotate`: make and correct masks in the browser."""

import os
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Annotated, Literal

import typer

from segmint.pipeline.commands.common.arguments import Browser, Config, DatasetOrFolder, Device, Port, storage_of
from segmint.pipeline.commands.common.console import guarded, print_line, print_message
from segmint.pipeline.commands.common.extras import needs


@guarded
@needs("web")
def annotate(
    dataset: DatasetOrFolder,
    stage: Annotated[
        Literal["assisted", "semi", "rate"],
        typer.Option(
            help="Task: make and correct masks with the model's help (assisted), add masks that are missing from the "
            "dataset's locked ones (semi), or rate single masks from 1 to 10 (rate)."
        ),
    ] = "assisted",
    select: Annotated[
        str | None,
        typer.Option(metavar="EXPR", help="Serve only images that match this SQL expression, as in 'masks < 10'."),
    ] = None,
    order: Annotated[
        Literal["number", "fewest", "lowest", "random"],
        typer.Option(help="Order: number, fewest masks first, lowest mean predicted IoU first, or random."),
    ] = "number",
    study: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Serve only the images or masks that `segmint study sample` drew."),
    ] = None,
    overlap: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of images that two people annotate independently.")
    ] = 0.0,
    names: Annotated[
        list[str] | None,
        typer.Option("--name", metavar="WHO", help="Annotator name for submissions; repeatable, one address each."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="NAME|PATH", help="Weights of the model. Default: those that made the dataset."),
    ] = None,
    device: Device = "auto",
    prefill: Annotated[
        str | None,
        typer.Option(
            metavar="detector:PATH",
            help="Prefill confident masks of the objects that this TorchScript detector finds (stage semi).",
        ),
    ] = None,
    masks: Annotated[
        int | None, typer.Option(metavar="N", help="Masks to rate, balanced over sources (stage rate). Default: 200.")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Random seed (stage rate). Default: 0.")] = None,
    port: Port = 8765,
    origin: Annotated[
        str | None,
        typer.Option(metavar="URL", help="URL of a proxy in front of the server, as in https://annotate.example.org."),
    ] = None,
    browser: Browser = True,
    config: Config = None,
) -> None:
    """Make, correct, or rate masks in a web browser.

    Submissions are saved in the dataset, or in the JSON files of a folder. Press Ctrl-C to stop the server.
    """
    # A click consists of many small steps. Waking a thread for each step takes longer than the step, so torch's threads
    # spin until the next step, for up to 2 to 10 ms depending on the CPU. Longer spinning would take cores from other
    # processes. torch's thread library reads this variable only once, when it loads.
    os.environ.setdefault("GOMP_SPINCOUNT", "200000")

    from segmint.catalogs.dataset.annotations.submissions import check_name
    from segmint.infra.errors import UsageError
    from segmint.infra.storage.location import Location
    from segmint.infra.wording import counted
    from segmint.pipeline.engine.annotate.access import parse_origin
    from segmint.pipeline.engine.annotate.app import make_app
    from segmint.pipeline.engine.annotate.queue import QueueOptions
    from segmint.pipeline.engine.annotate.server import AnnotateOptions, open_view, serve

    given = {
        "--order": order != "number",
        "--study": study is not None,
        "--overlap": overlap != 0,
        "--weights": weights is not None,
        "--device": device != "auto",
        "--prefill": prefill is not None,
        "--masks": masks is not None,
        "--seed": seed is not None,
    }
    refuse_needless(stage, {option for option, is_given in given.items() if is_given})
    kind, _, detector = (prefill or "").partition(":")
    if prefill is not None and (kind != "detector" or not detector):
        raise UsageError(f"--prefill {prefill!r}: expected detector:PATH, with a TorchScript object detector")
    who = [check_name(name) for name in names or ["annotator"]]
    public = None if origin is None else parse_origin(origin)
    place = Location(storage_of(config), dataset)
    from segmint.pipeline.commands.common.folder import check_place, folder_to_correct
    from segmint.pipeline.corrections.folder.images import is_photograph_folder

    check_place(dataset)
    is_folder = is_photograph_folder(dataset)

    def show(addresses: Mapping[str, str]) -> None:
        for name, address in addresses.items():
            print_line(address if len(addresses) == 1 else f"{name}: {address}")
        print_message("each address opens one browser, once; press Ctrl-C to stop")
        what, target = "ratings" if stage == "rate" else "masks", "the JSON files of the folder"
        print_message(f"{what} are saved to {target if is_folder else 'the dataset' if study is None else study}")

    serve_team = partial(serve, port=port, names=who, origin=public, open_browser=browser, on_ready=show)
    with ExitStack() as stack:
        files = None
        if is_folder:
            files = stack.enter_context(folder_to_correct(dataset))
            place = files.location
        else:
            print_message(f"reading the tables of {dataset}")
        if stage == "rate":
            from segmint.pipeline.engine.annotate.rating.app import make_rating_app
            from segmint.pipeline.engine.annotate.rating.rater_view import SampleOptions, open_rater_view
            from segmint.pipeline.quality.study.ratings import load_ratings

            if study is not None and (masks, seed, select) != (None, None, None):
                raise UsageError("--study sets the masks to rate: remove --masks, --seed, and --select")
            options = SampleOptions(200 if masks is None else masks, seed or 0, select)
            rated = None if study is None else load_ratings(Location(place.storage, study))
            annotator_view = stack.enter_context(open_rater_view(place, options, rated))
            print_message(f"{counted(len(annotator_view), 'mask')} to rate")
            serve_team(lambda team: make_rating_app(annotator_view, team))
            return
        sample = None if study is None else Location(place.storage, study)
        queue = QueueOptions(select, order, sample, overlap)
        opened = stack.enter_context(
            open_view(place, AnnotateOptions(queue, stage, weights, device, detector or None, files))
        )
        if opened.note is not None:
            print_message(f"note: {opened.note}")
        left = max(map(opened.annotator_view.left, who))
        print_message(f"{counted(left, 'image')} to annotate with {opened.annotator_view.about.weights}")
        serve_team(lambda team: make_app(opened.annotator_view, team))


def refuse_needless(stage: str, given: Collection[str]) -> None:
    """Raise `UsageError` for options that have no effect in a stage."""
    from segmint.infra.errors import UsageError

    rates = {"--masks", "--seed"}
    needless = set(given) - {*rates, "--study"} if stage == "rate" else set(given) & rates
    if stage == "assisted":
        needless |= set(given) & {"--prefill"}
    if needless:
        raise UsageError(f"{', '.join(sorted(needless))} can't be used with --stage {stage}")
