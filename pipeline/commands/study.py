"""`segmint study`: the quality of masks, measured by people's corrections of a sample."""

from typing import Annotated

import typer

from segmint.pipeline.commands.common.arguments import AsJson, Config, Dataset, storage_of
from segmint.pipeline.commands.common.console import answer_with, guarded

app = typer.Typer(name="study", help="Have people correct a sample of masks, and score it.", no_args_is_help=True)


@app.command()
@guarded
def sample(
    dataset: Dataset,
    output: Annotated[str, typer.Option("-o", "--output", metavar="DIR", help="Output folder or bucket prefix.")],
    count: Annotated[int, typer.Option("-n", "--images", metavar="N", min=1, help="Images to draw.")] = 500,
    seed: Annotated[int, typer.Option(metavar="S", help="Seed of the draw.")] = 0,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Draw images evenly over numbers of masks and countries, for COCO tools and Label Studio."""
    from segmint.infra.storage.location import Location
    from segmint.pipeline.study.sample import sample_study

    storage = storage_of(config)
    drawn = sample_study(Location(storage, dataset), count, seed, Location(storage, output))
    answer_with(drawn, as_json)


@app.command()
@guarded
def score(
    study: Annotated[str, typer.Argument(metavar="DIR", help="The folder that `study sample` wrote.")],
    corrected: Annotated[
        str | None,
        typer.Option("--corrected", metavar="FILE", help="COCO or Label Studio JSON; default DIR/corrected.json."),
    ] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Compare a sample's masks with the corrected ones, as the SAM paper does."""
    from segmint.infra.storage.location import Location
    from segmint.pipeline.study.score import score_study

    storage = storage_of(config)
    masks = None if corrected is None else Location(storage, corrected)
    result = score_study(Location(storage, study), masks)
    answer_with(result, as_json)
