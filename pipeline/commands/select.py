"""`segmint select`: pin a subset of a dataset in a file."""

from typing import Annotated

import typer

from segmint.pipeline.commands.common.arguments import AsJson, Config, Dataset, storage_of
from segmint.pipeline.commands.common.console import guarded, print_next, print_result


@guarded
def select(
    dataset: Dataset,
    condition: Annotated[
        str, typer.Argument(metavar="SQL", help="Condition over the columns of `images`, as in \"country = 'US'\".")
    ],
    output: Annotated[str, typer.Option("-o", "--output", metavar="FILE", help="File to write, such as subset.json.")],
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Select images of a dataset, and pin them in a file for --select."""
    from segmint.infra.storage.location import Location
    from segmint.pipeline.export.select import select_images

    storage = storage_of(config)
    print_result(select_images(Location(storage, dataset), condition, Location(storage, output)), as_json)
    print_next(as_json, "export", dataset, "--select", output, "--format", "coco", "-o", "OUT")
