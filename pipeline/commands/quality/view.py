"""`segmint view`: browse a dataset, or the masks of a folder, in the browser."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from segmint.pipeline.commands.common.arguments import Browser, Config, DatasetOrFolder, Port, storage_of
from segmint.pipeline.commands.common.console import guarded, print_line, print_message
from segmint.pipeline.commands.common.extras import needs

if TYPE_CHECKING:
    from segmint.infra.storage.location import Location


@guarded
@needs("web")
def view(
    dataset: DatasetOrFolder,
    port: Port = 0,
    browser: Browser = True,
    config: Config = None,
    audit: Annotated[
        str | None,
        typer.Option("--audit", metavar="FILE", help="Show findings from `segmint audit --json -o FILE` output."),
    ] = None,
) -> None:
    """Browse a dataset's images and masks in a web browser.

    To show the masks of a folder of photographs, segmint keeps a working copy in FOLDER/.segmint. The viewer is
    read-only. Press Ctrl-C to stop it.
    """
    from segmint.infra.errors import UsageError
    from segmint.infra.storage.location import Location
    from segmint.pipeline.commands.common.folder import check_place
    from segmint.pipeline.corrections.folder.images import is_photograph_folder

    check_place(dataset)
    if not is_photograph_folder(dataset, pairs=False):
        storage = storage_of(config)
        print_message(f"reading the tables of {dataset}")
        findings = None if audit is None else Location(storage, audit)
        show_dataset(Location(storage, dataset), port, open_browser=browser, findings=findings)
        return
    if audit is not None or config is not None:
        raise UsageError(f"{dataset} is a folder of photographs: remove --audit and --config")
    show_folder(dataset, port, open_browser=browser)


def show_folder(folder: str, port: int = 0, *, open_browser: bool = True) -> None:
    """Serve the viewer of a folder's photographs and masks until it is stopped."""
    from segmint.pipeline.commands.common.folder import FolderAnnotator, folder_to_view

    with ExitStack() as stack:
        working = stack.enter_context(folder_to_view(folder))
        annotator = FolderAnnotator(folder)
        stack.callback(annotator.stop)
        show_dataset(working.location, port, open_browser=open_browser, annotator=annotator.start)


def show_dataset(
    dataset: "Location",
    port: int = 0,
    *,
    open_browser: bool = True,
    findings: "Location | None" = None,
    annotator: Callable[[], str] | None = None,
) -> None:
    """Serve the viewer of a dataset until it is stopped. `annotator` starts an annotator and returns its URL."""
    from segmint.infra.wording import counted
    from segmint.pipeline.quality.view.app import open_viewer, serve

    def show_address(address: str) -> None:
        print_line(address)
        print_message("open this address in a browser on this machine; it works once. Press Ctrl-C to stop the viewer.")

    with open_viewer(dataset, findings) as viewer:
        viewer.annotator = annotator
        images, masks = viewer.summary["images"], viewer.summary["masks"]
        print_message(f"{counted(images, 'image')} with {counted(masks, 'mask')}")
        if viewer.note is not None:
            print_message(f"note: {viewer.note}")
        if viewer.version is not None:
            print_message(viewer.version.line())
        serve(viewer, port, open_browser=open_browser, on_ready=show_address)
