"""Commands that hand out a dataset: `select` and `export`."""

from typing import Annotated

import typer

from segmint.catalogs.layout import parse_shards
from segmint.pipeline.commands.console import (
    AsJson,
    Config,
    Dataset,
    Select,
    guarded,
    print_next,
    print_result,
    storage_of,
)
from segmint.pipeline.export.formats import Format, Level


@guarded
def export(
    dataset: Dataset,
    format: Annotated[Format, typer.Option("--format", metavar="FORMAT", help=f"Output format: {', '.join(Format)}.")],
    output: Annotated[str, typer.Option("-o", "--output", metavar="OUT", help="Output folder or bucket prefix.")],
    shards: Annotated[
        str | None, typer.Option(metavar="A:B|K/N", help="Export only shards A to B-1, or part K of N (K from 0).")
    ] = None,
    select: Select = None,
    sample: Annotated[int | None, typer.Option(metavar="N", min=1, help="Export only N random images.")] = None,
    seed: Annotated[int, typer.Option(metavar="S", help="Random seed of --sample.")] = 0,
    vocabulary: Annotated[
        str | None, typer.Option(metavar="FILE", help="Labels in the order of their ids, one per line.")
    ] = None,
    level: Annotated[
        Level, typer.Option(help="Masks in label-maps and png-masks: all, or whole, without those in a larger mask.")
    ] = Level.ALL,
    no_images: Annotated[bool, typer.Option("--no-images", help="Export only annotations, without the JPEGs.")] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Export a dataset's images and masks for other tools."""
    span = parse_shards(shards) if shards is not None else None
    from segmint.infra.storage.location import Location
    from segmint.pipeline.export.categories import read_vocabulary
    from segmint.pipeline.export.export import ExportOptions, export_dataset

    storage = storage_of(config)
    names = None if vocabulary is None else read_vocabulary(Location(storage, vocabulary))
    options = ExportOptions(format, span, sample, seed, not no_images, names, select, level)
    exported = export_dataset(Location(storage, dataset), options, Location(storage, output))
    print_result(exported, as_json)


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
    from segmint.pipeline.export.export import select_images

    storage = storage_of(config)
    print_result(select_images(Location(storage, dataset), condition, Location(storage, output)), as_json)
    print_next(as_json, "export", dataset, "--select", output, "--format", "coco", "-o", "OUT")
