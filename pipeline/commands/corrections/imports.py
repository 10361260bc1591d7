"""`segmint import`: import masks made by people as the next generation of a dataset's shards."""

from typing import TYPE_CHECKING, Annotated

import typer

from segmint.pipeline.commands.common.arguments import AsJson, Config, DryRun, Yes, storage_of
from segmint.pipeline.commands.common.console import confirmation, guarded, print_next, print_result
from segmint.pipeline.commands.common.extras import needs

if TYPE_CHECKING:
    from segmint.pipeline.corrections.imports.merge import ImportMode


@guarded
@needs("build")
def import_(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="The dataset that gets the masks.")],
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="A file or folder with masks, or another dataset: its masks of people."),
    ],
    format: Annotated[
        str | None,
        typer.Option(
            metavar="F", help="coco, label-studio, folder or dataset; needed only where the content does not decide."
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="The masks of the images in the file become those in the file.")
    ] = False,
    add: Annotated[bool, typer.Option("--add", help="Masks are added to those that the images have.")] = False,
    mask_source: Annotated[
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
    dry_run: DryRun = False,
    yes: Yes = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Import masks from a file or another dataset.

    The masks come from a file or from another dataset.
    """
    from segmint.infra.errors import UsageError
    from segmint.infra.storage.location import Location
    from segmint.pipeline.corrections.imports.files import ImportFormat, detect_format
    from segmint.pipeline.corrections.imports.imports import ImportRequest, import_masks, list_import
    from segmint.pipeline.corrections.imports.matching import MatchMode

    for option, value, choices in (("--format", format, ImportFormat), ("--match", match, MatchMode)):
        if value is not None and value not in set(choices):
            raise UsageError(f"{option} {value!r}: expected one of {', '.join(choices)}")
    storage = storage_of(config)
    target, where = Location(storage, dataset), Location(storage, file)
    kind = detect_format(where) if format is None else ImportFormat(format)
    carried = kind is ImportFormat.DATASET
    if carried:
        given = {"--mask-source": mask_source, "--license": license_id, "--annotator": annotator}
        extra = [name for name, value in given.items() if value is not None]
        if extra:
            raise UsageError(
                f"{', '.join(extra)} with another dataset: its masks keep what is said of them there; leave it out"
            )
        if match != MatchMode.NUMBER:
            raise UsageError(f"--match {match} with another dataset: its images are found by their source")
    asked = ImportRequest(
        where=where,
        format=kind,
        mode=_mode(replace, add, carried=carried),
        source=mask_source or "imported",
        license=license_id,
        annotator=annotator,
        match=MatchMode(match),
    )
    if dry_run:
        print_result(list_import(target, asked), as_json)
        return
    print_result(import_masks(target, asked, confirmation("import", yes)), as_json)
    print_next(as_json, "audit", dataset, config=config)


def _mode(replace: bool, add: bool, *, carried: bool) -> "ImportMode":
    from segmint.infra.errors import UsageError
    from segmint.pipeline.corrections.imports.merge import ImportMode

    if replace == add:
        raise UsageError(
            "name one of --replace and --add: whether the images' masks give way to these, or these are added to them"
        )
    if add:
        return ImportMode.ADD
    return ImportMode.CARRY if carried else ImportMode.REPLACE
