"""`segmint study`: have people judge a sample, to measure mask quality or the detectors' misses."""

from typing import Annotated

import typer

from segmint.pipeline.commands.common.arguments import AsJson, Config, Dataset, storage_of
from segmint.pipeline.commands.common.console import (
    Printable,
    guarded,
    print_checked,
    print_message,
    print_next,
    print_result,
)
from segmint.pipeline.quality.study.kind import IMAGES, StudyKind

app = typer.Typer(
    name="study", help="Have people judge a sample of images, and score the results.", no_args_is_help=True
)


@app.command()
@guarded
def sample(
    dataset: Dataset,
    output: Annotated[str, typer.Option("-o", "--output", metavar="DIR", help="Output folder or bucket prefix.")],
    kind: Annotated[
        StudyKind,
        typer.Option(
            help="Kind of study: correct masks, mark missed faces and plates (privacy), or rate models (ratings)."
        ),
    ] = StudyKind.MASKS,
    count: Annotated[
        int | None,
        typer.Option(
            "-n",
            "--images",
            metavar="N",
            min=1,
            help="Number of images, or of masks for ratings. Default: 500, or 3000 for privacy.",
        ),
    ] = None,
    predictions: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="COCO results of a model to rate, as for `evaluate points`; repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="S", help="Random seed of the sample.")] = 0,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Draw a sample of images for people to inspect.

    People correct masks, or mark missed faces and plates, in COCO tools, CVAT, Label Studio, or `segmint annotate`.
    """
    from segmint.infra.errors import UsageError
    from segmint.infra.storage.location import Location

    storage = storage_of(config)
    wanted = IMAGES[kind] if count is None else count
    if predictions and kind is not StudyKind.RATINGS:
        raise UsageError("--predictions needs --kind ratings")
    if kind is StudyKind.RATINGS:
        from segmint.pipeline.quality.study.ratings import sample_ratings

        models = [Location(storage, file) for file in predictions or ()]
        study = sample_ratings(Location(storage, dataset), models, wanted, seed, Location(storage, output))
        _print_sample(study, as_json, len(study.objects), count)
        print_next(as_json, "annotate", dataset, "--stage", "rate", "--study", output, config=config)
    elif kind is StudyKind.PRIVACY:
        from segmint.pipeline.quality.study.privacy.sample import sample_privacy

        privacy = sample_privacy(Location(storage, dataset), wanted, seed, Location(storage, output))
        _print_sample(privacy, as_json, privacy.images, count)
    else:
        from segmint.pipeline.quality.study.sample import sample_study

        masks = sample_study(Location(storage, dataset), wanted, seed, Location(storage, output))
        _print_sample(masks, as_json, masks.images, count)
        print_next(as_json, "annotate", dataset, "--study", output, config=config)
    answers = [] if kind is StudyKind.RATINGS else ["--corrected", "FILE" if kind is StudyKind.PRIVACY else dataset]
    print_next(as_json, "study", "score", output, *answers, config=config)


def _print_sample(sample: Printable, as_json: bool, drawn: int, asked: int | None) -> None:
    print_result(sample, as_json)
    if asked is not None and drawn < asked and not as_json:
        print_message(f"only {drawn:,} of {asked:,} could be drawn")


@app.command()
@guarded
def score(
    study: Annotated[str, typer.Argument(metavar="DIR", help="Folder that `segmint study sample` wrote.")],
    corrected: Annotated[
        str | None,
        typer.Option(
            "--corrected",
            metavar="FILE",
            help="COCO or Label Studio JSON, or the dataset, for its submissions. Default: DIR/corrected.json.",
        ),
    ] = None,
    regions: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write marked regions to this file, for `segmint redact` (kind privacy)."),
    ] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Compare masks with the corrected ones, following the SAM paper.

    For a privacy sample, computes the upper confidence bound on the share of images with a miss. For ratings, compares
    the models with one another and with the ground truth.
    """
    from segmint.infra.errors import UsageError
    from segmint.infra.storage.location import Location
    from segmint.pipeline.quality.study.files import kind_of

    storage = storage_of(config)
    folder = Location(storage, study)
    answers, written = (None if uri is None else Location(storage, uri) for uri in (corrected, regions))
    kind = kind_of(folder)
    if kind is StudyKind.RATINGS:
        from segmint.pipeline.quality.study.ratings import score_ratings

        if corrected or regions:
            raise UsageError(f"{study} is a ratings study: remove --corrected and --regions")
        ratings = score_ratings(folder)
        print_checked(ratings, as_json, not_checked=ratings.not_checked)
        return
    if kind is StudyKind.PRIVACY:
        from segmint.pipeline.quality.study.privacy.score import score_privacy

        privacy = score_privacy(folder, answers, written)
        print_checked(privacy, as_json, not_checked=privacy.not_checked)
        return
    from segmint.pipeline.quality.study.score import score_study

    if written is not None:
        raise UsageError(f"{study} is a mask study, which has no marked regions: remove --regions")
    masks = score_study(folder, answers)
    print_checked(masks, as_json, not_checked=masks.not_checked)


@app.command()
@guarded
def plan(
    difference: Annotated[float, typer.Option(metavar="X", help="Difference of mean ratings to detect.")],
    deviation: Annotated[
        float, typer.Option(metavar="X", help="Assumed standard deviation of the masks' differences.")
    ] = 2.0,
    power: Annotated[float, typer.Option(metavar="X", help="Probability of detecting the difference.")] = 0.9,
    comparisons: Annotated[int, typer.Option(metavar="N", min=1, max=1000, help="Pairs, ground truth included.")] = 1,
) -> None:
    """Compute the number of masks to rate."""
    from segmint.infra.errors import UsageError
    from segmint.pipeline.commands.common.console import print_line
    from segmint.pipeline.quality.study.ratings import CONFIDENCE, masks_for

    if not (0.001 <= difference <= 9 and 0 < deviation <= 9 and 0 < power < 1):
        raise UsageError("expected --difference from 0.001 to 9, --deviation over 0 to 9, and --power between 0 and 1")
    masks = masks_for(difference, deviation, power, 1 - (1 - CONFIDENCE) / comparisons)
    print_line(
        f"{masks:,} masks, each from a different image. If differences between ratings have a standard deviation "
        f"of {deviation:g}, a paired t-test at {100 * (1 - CONFIDENCE) / comparisons:.3g}% detects a mean "
        f"difference of {difference:g} with a probability of {power:g}"
    )
