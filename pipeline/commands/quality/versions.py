"""`segmint verify`, `sign`, and `diff`: check the bytes of a version, vouch for it, and compare versions."""

import sys
from typing import Annotated

import typer

from segmint.infra.wording import is_terminal
from segmint.pipeline.commands.common.arguments import AsJson, Config, Dataset, storage_of
from segmint.pipeline.commands.common.console import guarded, print_checked, print_result
from segmint.pipeline.commands.common.extras import needs

RecordedVersion = Annotated[
    str | None,
    typer.Option("--version", metavar="N", help="Recorded version, by number or digest. Default: the latest."),
]


@guarded
def verify(
    dataset: Dataset,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="PUBLIC.pem", help="Require a signature of the version by this key."),
    ] = None,
    version: RecordedVersion = None,
    require_pinned: Annotated[
        bool,
        typer.Option("--require-pinned", help="Require --key, or --version with a full digest."),
    ] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Compare every byte with the recorded version.

    Exits with code 1 if anything differs, and with code 3 if something couldn't be checked.
    """
    from segmint.infra.storage.location import Location
    from segmint.pipeline.quality.versions.verify import verify_dataset

    storage = storage_of(config)
    public = None if key is None else Location(storage, key)
    verified = verify_dataset(Location(storage, dataset), version, public, require_pinned)
    print_checked(verified, as_json, verified.problems, verified.not_checked)


@guarded
def sign(
    dataset: Dataset,
    key: Annotated[str, typer.Option("--key", metavar="PRIVATE", help="Private Ed25519 key in PEM or OpenSSH format.")],
    version: RecordedVersion = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Sign a recorded version's digest and list of files.

    Check the signature with `segmint verify --key`.
    """
    from segmint.infra.storage.location import Location
    from segmint.pipeline.quality.evidence.signatures import sign_version

    def ask() -> str:
        return str(typer.prompt("Passphrase of the key", hide_input=True, err=True))

    storage = storage_of(config)
    places = (Location(storage, dataset), Location(storage, key))
    print_result(sign_version(*places, version, ask if is_terminal(sys.stdin) else None), as_json)


@guarded
@needs("audit")
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="Dataset folder or bucket prefix.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another dataset, or the same one.")],
    version_a: Annotated[
        str | None, typer.Option(metavar="N", help="Version of A, by number or digest. Default: its current state.")
    ] = None,
    version_b: Annotated[str | None, typer.Option(metavar="N", help="Version of B. Default: the current one.")] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show what changed between two versions or datasets.

    Covers images, masks, licenses, redactions, and settings.
    """
    from segmint.infra.storage.location import Location
    from segmint.pipeline.quality.versions.diff import diff_datasets

    storage = storage_of(config)
    print_result(diff_datasets(Location(storage, a), Location(storage, b), version_a, version_b), as_json)
