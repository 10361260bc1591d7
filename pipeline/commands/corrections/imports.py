"""`segmint import`: import masks made by people as the next generation of a dataset's shards."""

from typing import TYPE_CHECKING, Annotated

import typer

from segmint.pipeline.commands.common.arguments import AsJson, Config, DryRun, Ignore, Yes, storage_of
from segmint.pipeline.commands.common.console import confirmation, guarded, print_revision
from segmint.pipeline.commands.common.extras import needs

if TYPE_CHECKING:
    from segmint.pipeline.corrections.imports.merge import ImportMode


@guarded
@needs("build")
def import_(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Dataset to import masks into.")],
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="File or folder with masks, or another dataset with annotated masks."),
    ],
    format: Annotated[
        str | None,
        typer.Option(
            metavar="F",
            help="Format: coco, label-studio, hf, yolo, folder, or dataset; needed only if the content is ambiguous.",
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the masks of the file's images with those in the file.")
    ] = False,
    add: Annotated[bool, typer.Option("--add", help="Add the masks, and keep those of the images.")] = False,
    mask_source: Annotated[
        str | None,
        typer.Option(metavar="S", help="Source of new masks: imported (default), manual, or assisted."),
    ] = None,
    license_id: Annotated[
        str | None, typer.Option("--license", metavar="L", help="License of the masks in the file.")
    ] = None,
    annotator: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the person who annotated the images.")
    ] = None,
    match: Annotated[
        str,
        typer.Option(metavar="BY", help="Match file names to images by number (sa_17.jpg), image-id, or uri."),
    ] = "number",
    ignore: Ignore = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Import masks from a file or another dataset.

    Requires either --replace or --add.
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
                f"{', '.join(extra)} can't be combined with another dataset, whose masks keep their own values"
            )
        if match != MatchMode.NUMBER:
            raise UsageError(f"--match {match} can't be combined with another dataset, whose images match by source")
    asked = ImportRequest(
        where=where,
        format=kind,
        mode=_mode(replace, add, carried=carried),
        source=mask_source or "imported",
        license=license_id,
        annotator=annotator,
        match=MatchMode(match),
        ignore=tuple(ignore or ()),
    )
    imported = list_import(target, asked) if dry_run else import_masks(target, asked, confirmation("import", yes))
    print_revision(imported, as_json, dataset, config)


def _mode(replace: bool, add: bool, *, carried: bool) -> "ImportMode":
    from segmint.infra.errors import UsageError
    from segmint.pipeline.corrections.imports.merge import ImportMode

    if replace == add:
        raise UsageError("pass either --replace or --add: replace the images' masks with these, or add these to them")
    if add:
        return ImportMode.ADD
    return ImportMode.CARRY if carried else ImportMode.REPLACE
