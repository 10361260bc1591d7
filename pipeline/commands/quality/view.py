"""`segmint view`: browse a dataset in the browser."""

from typing import Annotated

import typer

from segmint.pipeline.commands.common.arguments import Browser, Config, Dataset, Port, storage_of
from segmint.pipeline.commands.common.console import guarded, print_line, print_message
from segmint.pipeline.commands.common.extras import needs


@guarded
@needs("web")
def view(
    dataset: Dataset,
    port: Port = 0,
    browser: Browser = True,
    config: Config = None,
    audit: Annotated[
        str | None,
        typer.Option("--audit", metavar="FILE", help="Show findings from `segmint audit --json -o FILE` output."),
    ] = None,
) -> None:
    """Browse a dataset's images and masks in a web browser.

    The viewer is read-only. Press Ctrl-C to stop it.
    """
    from segmint.infra.storage.location import Location
    from segmint.infra.wording import counted
    from segmint.pipeline.quality.view.app import open_viewer, serve

    def show_address(address: str) -> None:
        print_line(address)
        print_message("open this address in a browser on this machine; it works once. Press Ctrl-C to stop the viewer.")

    storage = storage_of(config)
    print_message(f"reading the tables of {dataset}")
    findings = None if audit is None else Location(storage, audit)
    with open_viewer(Location(storage, dataset), findings) as viewer:
        images, masks = viewer.summary["images"], viewer.summary["masks"]
        print_message(f"{counted(images, 'image')} with {counted(masks, 'mask')}")
        if viewer.note is not None:
            print_message(f"note: {viewer.note}")
        if viewer.version is not None:
            print_message(viewer.version.line())
        serve(viewer, port, open_browser=browser, on_ready=show_address)
