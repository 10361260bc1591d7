"""`segmint import`: masks that people made, as the next generation of a dataset's images."""

from typing import TYPE_CHECKING, Annotated

import typer

from segmint.pipeline.commands.common.arguments import AsJson, Config, storage_of
from segmint.pipeline.commands.common.confirm import confirm, require_terminal
from segmint.pipeline.commands.common.console import answer_with, guarded, say_next
from segmint.pipeline.commands.common.extras import needs

if TYPE_CHECKING:
    from segmint.pipeline.corrections.imports.merge import Mode


@guarded
@needs("build")
def import_(
    format: Annotated[
        str | None, typer.Argument(metavar="FORMAT", help="coco, label-studio or folder; none with --from.")
    ] = None,
    file: Annotated[str | None, typer.Argument(metavar="FILE", help="The file or folder with the masks.")] = None,
    into: Annotated[str | None, typer.Option("--into", metavar="DATASET", help="The dataset that gets them.")] = None,
    source_dataset: Annotated[
        str | None, typer.Option("--from", metavar="DATASET", help="Carry the masks of people in another dataset.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="The masks of the images in the file become those in the file.")
    ] = False,
    add: Annotated[bool, typer.Option("--add", help="Masks are added to those that the images have.")] = False,
    source: Annotated[
        str | None,
        typer.Option(metavar="S", help="What masks that correct none are: imported (default), manual or assisted."),
    ] = None,
    license_id: Annotated[
        str | None, typer.Option("--license", metavar="L", help="The license of the masks in the file.")
    ] = None,
    annotator: Annotated[
        str | None, typer.Option(metavar="NAME", help="The name of the person who looked at the images.")
    ] = None,
    match: Annotated[
        str,
        typer.Option(metavar="BY", help="How file names name images: number (sa_17.jpg), image-id or uri."),
    ] = "number",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be changed.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; needed where there is no terminal.")] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Bring in masks that people corrected or made.

    They come from a file or from another dataset.
    """
    from segmint.infra.errors import UsageError
    from segmint.infra.storage.location import Location
    from segmint.pipeline.corrections.imports.files import ImportFormat
    from segmint.pipeline.corrections.imports.imports import Asked, import_masks, list_import
    from segmint.pipeline.corrections.imports.matching import Match

    if into is None:
        raise UsageError("--into is missing: name the dataset that gets the masks")
    if match not in set(Match):
        raise UsageError(f"--match {match!r}: expected one of {', '.join(Match)}")
    if source_dataset is not None:
        given = {"--source": source, "--license": license_id, "--annotator": annotator, "a FORMAT": format}
        extra = [name for name, value in given.items() if value is not None]
        if extra:
            raise UsageError(
                f"{', '.join(extra)} with --from: masks of another dataset keep what is said of them there"
            )
        if match != Match.NUMBER:
            raise UsageError(f"--match {match} with --from: images of another dataset are found by their source")
        named, kind = source_dataset, None
    else:
        if format is None or file is None or format not in set(ImportFormat):
            raise UsageError(
                f"expected `segmint import FORMAT FILE --into DATASET`, FORMAT one of {', '.join(ImportFormat)}; or "
                "`segmint import --from DATASET --into DATASET`"
            )
        named, kind = file, ImportFormat(format)
    storage = storage_of(config)
    asked = Asked(
        where=Location(storage, named),
        format=kind,
        mode=_mode(replace, add, carried=kind is None),
        source=source or "imported",
        license=license_id,
        annotator=annotator,
        match=Match(match),
    )
    dataset = Location(storage, into)
    if dry_run:
        answer_with(list_import(dataset, asked), as_json)
        return
    if not yes:
        require_terminal("import")
    answer_with(import_masks(dataset, asked, None if yes else confirm), as_json)
    say_next(as_json, "audit", into, config=config)


def _mode(replace: bool, add: bool, *, carried: bool) -> "Mode":
    from segmint.infra.errors import UsageError
    from segmint.pipeline.corrections.imports.merge import Mode

    if replace == add:
        raise UsageError(
            "name one of --replace and --add: whether the images' masks give way to these, or these are added to them"
        )
    if add:
        return Mode.ADD
    return Mode.CARRY if carried else Mode.REPLACE
