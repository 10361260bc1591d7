"""Arguments that commands on a dataset share."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from infra.storage import Storage

Dataset = Annotated[str, typer.Argument(metavar="DATASET", help="The dataset, a folder or a bucket's prefix.")]
Config = Annotated[
    str | None,
    typer.Option("--config", metavar="CONFIG", help="A build's configuration, whose storage options count here."),
]
AsJson = Annotated[bool, typer.Option("--json", help="The answer as JSON.")]


def storage_of(config: str | None) -> "Storage":
    """Access to stores with the options of a build's configuration, or without any."""
    from infra.storage import Storage

    if config is None:
        return Storage()
    from pipeline.config import load_config

    return Storage(load_config(config).storage)
