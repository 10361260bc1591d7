"""`segmint view`: a dataset in the browser."""

from typing import Annotated

import typer

from pipeline.console import answer, guarded, say


@guarded
def view(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="The dataset, a folder or a bucket's prefix.")],
    port: Annotated[
        int, typer.Option(metavar="N", min=0, max=65535, help="The port of 127.0.0.1; 0 takes a free one.")
    ] = 0,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Whether to open the address in a browser.")
    ] = True,
    config: Annotated[
        str | None,
        typer.Option("--config", metavar="CONFIG", help="A build's configuration, whose storage options count here."),
    ] = None,
    audit: Annotated[
        str | None,
        typer.Option("--audit", metavar="FILE", help="What `segmint audit --json -o FILE` wrote, to show findings."),
    ] = None,
) -> None:
    """Look at a dataset's images and masks in the browser; it is only read, and ctrl-C ends it."""
    from infra.storage import Storage
    from pipeline.view_server import open_viewer, serve

    options = {}
    if config is not None:
        from pipeline.config import load_config

        options = load_config(config).storage

    def tell(address: str) -> None:
        answer(address)
        say("open this address in a browser of this machine; ctrl-C ends the viewer")

    say(f"reading the tables of {dataset}")
    with open_viewer(dataset, Storage(options), audit) as viewer:
        images, masks = viewer.summary["images"], viewer.summary["masks"]
        say(f"{images:,} images with {masks:,} masks")
        serve(viewer, port, open_browser=browser, tell=tell)
