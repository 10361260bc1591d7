"""Arguments that several commands take."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from segmint.infra.storage.storage import Storage
    from segmint.pipeline.config.config import Config as Configuration

ConfigFile = Annotated[str, typer.Argument(metavar="CONFIG", help="The YAML configuration: a path or URI.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="K=V", help="Override a key, as in --set masks.points_per_side=16; repeatable."),
]
Dataset = Annotated[str, typer.Argument(metavar="DATASET", help="The dataset: a folder or a bucket prefix.")]
Config = Annotated[
    str | None,
    typer.Option("--config", metavar="CONFIG", help="A build's configuration, for its storage options."),
]
DetectorConfig = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="CONFIG",
        help="A build's configuration, for its storage options, detectors and Ray address.",
    ),
]
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where to compute; also cuda:N.")]
Browser = Annotated[bool, typer.Option("--browser/--no-browser", help="Whether to open a browser.")]
Port = Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only list what would be changed.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask; needed where there is no terminal.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def storage_of(config: str | None) -> "Storage":
    """Return access to stores, with the storage options of a build's configuration if one is given."""
    return build_of(config)[1]


def build_of(config: str | None) -> "tuple[Configuration | None, Storage]":
    """Return a build's configuration, if one is given, and access to stores with its options."""
    from segmint.infra.storage.storage import Storage

    if config is None:
        return None, Storage()
    from segmint.pipeline.config.config import load_config

    build = load_config(config)
    return build, Storage(build.storage)
