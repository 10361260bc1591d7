"""`segmint assets`: list, fetch, and verify the known weight files, and export them as ONNX."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from segmint.infra.errors import SegmintError, UsageError
from segmint.pipeline.commands.console import (
    AsJson,
    Config,
    exit_unless_clean,
    guarded,
    needs,
    print_json,
    print_line,
    print_result,
    storage_of,
)

app = typer.Typer(name="assets", help="List, download, verify, and export weight files.", no_args_is_help=True)


@app.command("list")
@guarded
def list_assets(as_json: AsJson = False) -> None:
    """List the known weight files with their licenses.

    Shows the path of a verified copy of each, if there is one.
    """
    from segmint.infra.assets import ASSETS, locate

    found = [(asset, locate(asset.name)) for asset in ASSETS.values()]
    if as_json:
        listed = []
        for asset, path in found:
            values = asdict(asset)
            del values["package"], values["url"]
            sources = [str(source) for source in (asset.package, asset.url) if source is not None]
            listed.append({**values, "sources": sources, "path": path})
        print_json(listed)
        return
    for asset, path in found:
        where = path or "not on this machine"
        print_line(f"{asset.name:<12} {asset.size / 1e6:>8,.0f} MB  {asset.license:<12} {where}")


@app.command()
@guarded
def fetch(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="Names from `segmint assets list`.")],
    mirror: Annotated[
        str | None,
        typer.Option("--mirror", metavar="URI", help="Folder or bucket prefix that contains the files."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fetch weight files into the cache and check their hashes."""
    from segmint.infra.assets import AssetError, resolve

    try:
        paths = {name: resolve(_known(name), mirror=mirror) for name in names}
    except AssetError as error:
        raise SegmintError(str(error)) from error
    if as_json:
        print_json(paths)
    else:
        for path in paths.values():
            print_line(str(path))


@app.command()
@guarded
def verify(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME[=PATH]", help="Known name, or a name with the file to check."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check the hashes of weight files.

    Checks the named files, or all on this machine.
    """
    from segmint.infra.assets import ASSETS, AssetError, cache_folder, locate
    from segmint.infra.assets import verify as verify_file

    verified: dict[str, Path] = {}
    wrong: list[str] = []
    missing: list[str] = []
    if not names and not any(map(locate, ASSETS)):
        missing.append("no known weight file is on this machine")
    for text in names or list(ASSETS):
        name, _, given = text.partition("=")
        asset = ASSETS[_known(name)]
        path = Path(given or cache_folder() / asset.file_name)
        try:
            if path.exists():
                verify_file(path, asset)
                verified[name] = path
            elif not given and (found := locate(name)):
                verified[name] = found
            elif names:
                absent = f"not on this machine. Run `segmint assets fetch {name}`"
                missing.append(f"{text}: {'no such file' if given else absent}")
        except AssetError as error:
            wrong.append(str(error))
    if as_json:
        print_json({"verified": verified, "wrong": wrong, "not_checked": missing})
    else:
        for line in (
            *(f"{name}: {path} has the expected SHA-256" for name, path in verified.items()),
            *(f"problem: {each}" for each in wrong),
            *(f"not checked: {each}" for each in missing),
        ):
            print_line(line)
    exit_unless_clean(wrong, missing)


@app.command("export-onnx")
@guarded
@needs("onnx")
def export_onnx(
    weights: Annotated[
        str, typer.Argument(metavar="NAME|PATH", help="Weights: mobile_sam, vit_b, vit_l, vit_h, or a path or URI.")
    ],
    output: Annotated[str, typer.Option("-o", "--output", metavar="FILE", help="Path or URI of the ONNX file.")],
    part: Annotated[
        Literal["decoder", "encoder"],
        typer.Option(help="Part to export: image to embedding (encoder), or embedding and prompts to masks (decoder)."),
    ] = "decoder",
    single_mask: Annotated[
        bool, typer.Option("--single-mask", help="Return only the best mask instead of all four; decoder only.")
    ] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Write SAM's decoder or image encoder as ONNX.

    For programs and web pages that don't use torch.
    """
    if single_mask and part == "encoder":
        raise UsageError("--single-mask requires --part decoder: the encoder doesn't predict masks")
    from segmint.infra.storage.location import Location
    from segmint.pipeline.masks.onnx_export import export

    print_result(export(weights, Location(storage_of(config), output), part, single_mask), as_json)


def _known(name: str) -> str:
    from segmint.infra.assets import ASSETS

    if name not in ASSETS:
        raise UsageError(f"{name!r} is not a known weight file: expected one of {', '.join(ASSETS)}")
    return name
