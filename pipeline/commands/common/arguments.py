"""Arguments that several commands take."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from segmint.infra.storage.storage import Storage
    from segmint.pipeline.config.config import Config as Configuration

ConfigFile = Annotated[str, typer.Argument(metavar="CONFIG", help="Path or URI of the YAML configuration.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="K=V", help="Override a configuration key, as in --set output=street; repeatable."),
]
Catalog = Annotated[str, typer.Argument(metavar="CATALOG", help="Path or URI of the catalog.")]
Dataset = Annotated[str, typer.Argument(metavar="DATASET", help="Dataset folder or bucket prefix.")]
DatasetOrFolder = Annotated[
    str, typer.Argument(metavar="DATASET|FOLDER", help="Dataset, or local folder of photographs with masks.")
]
YoloNames = Annotated[
    str | None, typer.Option(metavar="FILE", help="YAML file with the names of YOLO's classes, such as data.yaml.")
]
Ignore = Annotated[
    list[int] | None,
    typer.Option("--ignore", metavar="N", help="Number in label maps to ignore, besides 0; repeatable."),
]
Config = Annotated[
    str | None,
    typer.Option("--config", metavar="CONFIG", help="Take storage options from this build configuration."),
]
DetectorConfig = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="CONFIG",
        help="Take storage options, detectors, and the Ray address from this build configuration.",
    ),
]
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda[:N]", help="Device to compute on.")]
Select = Annotated[
    str | None,
    typer.Option(
        "--select",
        metavar="SQL|FILE",
        help="Only images that meet this condition, as in 'masks > 20', or a file that `segmint select` wrote.",
    ),
]
Browser = Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a web browser.")]
Port = Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="Port on 127.0.0.1; 0 picks a free one.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="List the changes without making them.")]
Yes = Annotated[bool, typer.Option("--yes", help="Don't ask for confirmation; required without a terminal.")]
At = Annotated[
    list[str] | None,
    typer.Option(
        "--at", metavar="NAME=URI", help="New location of a recorded output that was moved, for --prove; repeatable."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def storage_of(config: str | None) -> "Storage":
    """Return access to stores. If a build's configuration is given, use its storage options."""
    return build_of(config)[1]


def build_of(config: str | None) -> "tuple[Configuration | None, Storage]":
    """Return a build's configuration, or None, and access to stores with the configuration's options."""
    from segmint.infra.storage.storage import Storage

    if config is None:
        return None, Storage()
    from segmint.pipeline.config.config import load_config

    build = load_config(config)
    return build, Storage(build.storage)
