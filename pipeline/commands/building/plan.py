"""`segmint plan`: estimate a build before it runs."""

from typing import Annotated

import typer

from segmint.catalogs.shard_ranges import parse_shards
from segmint.pipeline.commands.common.arguments import ConfigFile, Overrides
from segmint.pipeline.commands.common.console import guarded, print_message, print_next, print_result
from segmint.pipeline.commands.common.extras import needs


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
    from segmint.pipeline.building.plan.options import PlanOptions
    from segmint.pipeline.building.plan.plan import make_plan

    options = PlanOptions(span, sample, gpu, gpus, price, share, flops, megapixels, cores)
    planned = make_plan(loaded, options, print_message)
    print_result(planned, as_json)
    if planned.rows:
        print_next(as_json, "build", config)
