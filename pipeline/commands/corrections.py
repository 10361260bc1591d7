"""Commands that correct a dataset: `takedown`, `redact`, `amend`, `import`, `apply`, `label`, `merge`, `repair`."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from segmint.pipeline.commands.console import (
    AsJson,
    At,
    Config,
    Dataset,
    Device,
    DryRun,
    Ignore,
    Select,
    Yes,
    build_of,
    confirmation,
    guarded,
    needs,
    print_checked,
    print_dry_run,
    print_result,
    print_revision,
    resources_of,
    storage_of,
)

if TYPE_CHECKING:
    from segmint.pipeline.config.config import SegmenterConfig, StageConfig
    from segmint.pipeline.corrections.import_merge import ImportMode


@guarded
@needs("build")
def takedown(
    dataset: Dataset,
    reason: Annotated[
        str | None, typer.Option("--reason", metavar="TEXT", help="Reason to record in the tombstone.")
    ] = None,
    ids: Annotated[
        str | None, typer.Option("--ids", metavar="FILE", help="Text file with one image_id or id to remove per line.")
    ] = None,
    license_id: Annotated[
        str | None, typer.Option("--license", metavar="L", help="Remove all images with this license.")
    ] = None,
    provider: Annotated[
        str | None, typer.Option("--provider", metavar="P", help="Remove all images from this provider.")
    ] = None,
    with_copies: Annotated[
        bool,
        typer.Option("--with-copies", help="Also remove images with the same bytes from other providers or licenses."),
    ] = False,
    with_similar: Annotated[
        bool, typer.Option("--with-similar", help="Also remove images that look like the requested ones.")
    ] = False,
    without_fingerprints: Annotated[
        bool, typer.Option("--without-fingerprints", help="Don't store hashes that recognize copies of the images.")
    ] = False,
    forgotten: Annotated[
        str | None,
        typer.Option("--forget-fingerprints", metavar="ID", help="Remove the stored hashes of an image for good."),
    ] = None,
    other: Annotated[
        str | None,
        typer.Option(
            "--other-picture", metavar="ID", help="Record that an image isn't a copy of a tombstone's pictures."
        ),
    ] = None,
    of: Annotated[
        str | None, typer.Option("--of", metavar="TOMBSTONE", help="Tombstone for --other-picture, by its file name.")
    ] = None,
    proved: Annotated[
        str | None,
        typer.Option("--prove", metavar="ID", help="Search for a taken-down image; exit with code 1 if it's found."),
    ] = None,
    at: At = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Remove images permanently, or prove that they're gone.

    Removes everything that names the images, except for a tombstone.
    """
    from segmint.catalogs.dataset.manifest import load_manifest
    from segmint.infra.errors import UsageError
    from segmint.infra.storage.location import Location
    from segmint.pipeline.corrections.correction import forget, tell_apart
    from segmint.pipeline.corrections.proof import prove
    from segmint.pipeline.corrections.takedown import list_takedown, read_request
    from segmint.pipeline.corrections.takedown import takedown as take_down

    build, storage = build_of(config)
    location, file = Location(storage, dataset), None if ids is None else Location(storage, ids)
    apart = {"--prove": proved, "--forget-fingerprints": forgotten, "--other-picture": other}
    given = [option for option, value in apart.items() if value is not None]
    others = ("--ids", "--license", "--provider", "--dry-run")
    if len(given) > 1 or (given and (ids or license_id or provider or (dry_run and proved is None))):
        raise UsageError(
            f"{given[0]} doesn't take down any images. Run it separately, without {', '.join([*given[1:], *others])}"
        )
    if proved is not None:
        proof = prove(location, proved, at or ())
        print_checked(proof, as_json, proof.found, proof.not_checked)
        return
    if at:
        raise UsageError("--at needs --prove")
    if (other is None) != (of is None):
        raise UsageError("--other-picture and --of must be used together")
    if forgotten is not None:
        print_result(forget(location, forgotten, confirmation("takedown", yes)), as_json)
        return
    if reason is None:
        raise UsageError("--reason is required, because the dataset records it")
    if other is not None and of is not None:
        print_result(tell_apart(location, other, of, reason), as_json)
        return
    asked = read_request(
        *(file, license_id, provider),
        with_copies=with_copies,
        with_similar=with_similar,
        fingerprints=not without_fingerprints,
    )
    catalog = None if build is None else build.catalog
    if dry_run:
        listed = list_takedown(location, load_manifest(location), asked, reason, catalog_uri=catalog)
        print_dry_run(listed, as_json)
        return
    ask = confirmation("takedown", yes)
    print_result(take_down(location, asked, reason, None, catalog, ask, resources_of(build)), as_json)


@guarded
@needs("build")
def redact(
    dataset: Dataset,
    regions: Annotated[
        str | None,
        typer.Option(
            "--regions", metavar="FILE", help="JSON Lines or Parquet file: id, kind, x, y, w, h in released pixels."
        ),
    ] = None,
    proved: Annotated[
        str | None,
        typer.Option(
            "--prove",
            metavar="ID",
            help="Search for a redacted image's former JPEGs; exit with code 1 if one is found.",
        ),
    ] = None,
    at: At = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Redact more regions, or prove that former JPEGs are gone."""
    from segmint.infra.errors import UsageError
    from segmint.infra.storage.location import Location
    from segmint.pipeline.corrections.proof import prove_redaction
    from segmint.pipeline.corrections.redact import list_redaction
    from segmint.pipeline.corrections.redact import redact as redact_images

    build, storage = build_of(config)
    location = Location(storage, dataset)
    if (regions is None) == (proved is None) or (at and proved is None):
        raise UsageError("expected --regions FILE, or --prove ID, which also takes --at")
    if proved is not None:
        proof = prove_redaction(location, proved, at or ())
        print_checked(proof, as_json, proof.found, proof.not_checked)
        return
    wanted = Location(storage, str(regions))
    if dry_run:
        print_dry_run(list_redaction(location, wanted), as_json)
        return
    print_result(redact_images(location, wanted, confirmation("redact", yes), resources_of(build)), as_json)


@guarded
@needs("build")
def amend(
    dataset: Dataset,
    catalog: Annotated[
        str,
        typer.Argument(
            metavar="CATALOG",
            help="Catalog with the corrected attribution, provider, source_url, and country, by image_id.",
        ),
    ],
    reason: Annotated[
        str | None, typer.Option("--reason", metavar="TEXT", help="Reason to record in the version.")
    ] = None,
    clear: Annotated[
        bool, typer.Option("--clear", help="Remove the dataset's values where the catalog's are empty.")
    ] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Correct the credits and countries of images.

    Amends attribution, provider, source URL, and country, but never the license.
    """
    from segmint.catalogs.source.files import require_catalog
    from segmint.infra.storage.location import Location
    from segmint.pipeline.corrections.amend import amend as amend_images
    from segmint.pipeline.corrections.amend import list_amendment

    build, storage = build_of(config)
    location, file = Location(storage, dataset), Location(storage, catalog)
    require_catalog(file)
    if dry_run:
        print_dry_run(list_amendment(location, file, clear=clear), as_json)
        return
    ask = confirmation("amend", yes)
    amended = amend_images(location, file, reason, clear=clear, confirm=ask, resources=resources_of(build))
    print_result(amended, as_json)


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
    from segmint.pipeline.corrections.import_staging import MatchMode
    from segmint.pipeline.corrections.imports import (
        ImportFormat,
        ImportRequest,
        detect_format,
        import_masks,
        list_import,
    )

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
    from segmint.pipeline.corrections.import_merge import ImportMode

    if replace == add:
        raise UsageError("pass either --replace or --add: replace the images' masks with these, or add these to them")
    if add:
        return ImportMode.ADD
    return ImportMode.CARRY if carried else ImportMode.REPLACE


Settings = TypeVar("Settings", "SegmenterConfig", "StageConfig")


@guarded
@needs("build")
def apply(
    dataset: Dataset,
    masks: Annotated[
        str | None,
        typer.Option("--masks", metavar="replace|add", help="Replace the automatic masks, or add masks to them."),
    ] = None,
    segmenter: Annotated[
        str | None, typer.Option("--segmenter", metavar="CLASS", help="Dotted name of the segmenter's class.")
    ] = None,
    stage: Annotated[
        str | None,
        typer.Option("--stage", metavar="CLASS", help="Dotted name of the stage's class, whose column is added."),
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the column that the stage added.")] = False,
    arguments: Annotated[
        str, typer.Option("--arguments", metavar="JSON", help="Arguments of the class, as a JSON object.")
    ] = "{}",
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            metavar="CONFIG",
            help="Make the masks with the segmenter, or the SAM and mask settings, of this build configuration. With "
            "--segmenter, only take storage options and the Ray address from it.",
        ),
    ] = None,
    select: Select = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Make masks in a finished dataset, or add a column of a stage.

    Masks that people made, changed, or labeled are kept.
    """
    from functools import partial

    from segmint.infra.errors import UsageError
    from segmint.infra.storage.location import Location
    from segmint.pipeline.config.config import LOCAL, Config, SegmenterConfig, StageConfig
    from segmint.pipeline.corrections.apply.columns import apply_column, list_column, list_removal, remove_column
    from segmint.pipeline.corrections.apply.engine import STALL_TIMEOUT_S
    from segmint.pipeline.corrections.apply.masks import MasksMode, apply_masks, list_masks

    if stage is not None and (masks is not None or segmenter is not None):
        raise UsageError("--stage adds a column: it can't be combined with --masks or --segmenter")
    if remove and (stage is None or arguments != "{}" or select is not None):
        raise UsageError("--remove needs --stage CLASS, and neither --arguments nor --select")
    build, storage = build_of(config)
    resources, stall_timeout = LOCAL, STALL_TIMEOUT_S
    if build is not None:
        resources, stall_timeout = build.resources, build.stall_timeout
    location = Location(storage, dataset)
    planned: Callable[[], Any]
    work: Callable[..., Any]
    if stage is not None and remove:
        planned, work = partial(list_removal, location, stage), partial(remove_column, location, stage)
    elif stage is not None:
        of_build = [] if build is None or arguments != "{}" else [each for each in build.stages if each.stage == stage]
        found = of_build[0] if of_build else _settings(StageConfig, "--stage", stage, arguments)
        planned = partial(list_column, location, found, select)
        work = partial(apply_column, location, found, select, stall_timeout=stall_timeout)
    else:
        if masks not in set(MasksMode):
            raise UsageError(f"--masks {masks!r}: expected one of {', '.join(MasksMode)}")
        maker: SegmenterConfig | Config
        if segmenter is not None:
            maker = _settings(SegmenterConfig, "--segmenter", segmenter, arguments)
        elif arguments != "{}":
            raise UsageError("--arguments needs --segmenter CLASS or --stage CLASS")
        elif build is not None:
            maker = build.segmenter or build
        else:
            raise UsageError(
                "expected --segmenter CLASS, or --config CONFIG with the segmenter or SAM that makes the masks"
            )
        planned = partial(list_masks, location, maker, MasksMode(masks), select)
        work = partial(apply_masks, location, maker, MasksMode(masks), select, stall_timeout=stall_timeout)
    done: Any = planned() if dry_run else work(confirm=confirmation("apply", yes), resources=resources)
    print_revision(done, as_json, dataset, config)


def _settings(kind: type[Settings], option: str, name: str, arguments: str) -> Settings:
    """Return the configuration of the class `name`. Raise `UsageError` if the arguments are invalid."""
    from pydantic import ValidationError

    from segmint.infra.errors import UsageError

    try:
        return kind(stage=name, arguments=json.loads(arguments))
    except ValidationError as error:
        raise UsageError(f"{option} {name!r}: {error.errors()[0]['msg']}") from error
    except ValueError as error:
        raise UsageError(f"--arguments {arguments!r} isn't a JSON object: {error}") from error


@guarded
@needs("build")
def label(
    dataset: Dataset,
    vocabulary: Annotated[
        str | None, typer.Option("--vocabulary", metavar="FILE", help="Text file with one label per line.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="PATH", help="CLIP folder or TorchScript file, at the same path on all nodes."),
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove all labels that models set.")] = False,
    device: Device = "cpu",
    dry_run: DryRun = False,
    yes: Yes = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Label masks from a vocabulary with CLIP.

    Labels from people and imports aren't changed. Uses Ray only on CPUs.
    """
    from segmint.infra.errors import UsageError
    from segmint.infra.storage.location import Location
    from segmint.pipeline.corrections.apply.columns import label as label_masks
    from segmint.pipeline.corrections.apply.columns import list_labels

    if remove == (vocabulary is not None) or remove == (model is not None):
        raise UsageError("expected --vocabulary FILE and --model PATH, or --remove")
    build, storage = build_of(config)
    stage = None
    if vocabulary is not None and model is not None:
        from pathlib import Path

        from segmint.infra.device import resolve_compute
        from segmint.operators.custom.contract import load_stage
        from segmint.operators.text import MaskLabels
        from segmint.pipeline.export.categories import read_vocabulary

        texts = list(read_vocabulary(Location(storage, vocabulary)))
        arguments: dict[str, Any] = {"model": str(Path(model).resolve()), "vocabulary": texts}
        arguments["device"] = resolve_compute(device, "fp32").device
        MaskLabels.version(**arguments)  # check the arguments here, so that the errors of `version` aren't wrapped
        stage = load_stage(f"{MaskLabels.__module__}.{MaskLabels.__name__}", arguments)
    location = Location(storage, dataset)
    if dry_run:
        print_dry_run(list_labels(location, stage), as_json)
        return
    done = label_masks(location, stage, confirmation("label", yes), resources=resources_of(build))
    print_checked(done, as_json, not_checked=done.listed.not_checked)


@guarded
@needs("build")
def merge(
    dataset: Dataset,
    dry_run: DryRun = False,
    yes: Yes = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Merge annotators' submissions into the dataset's tables.

    Submissions that are already merged are skipped.
    """
    from segmint.infra.storage.location import Location
    from segmint.pipeline.corrections.merge import list_merge, merge_submissions

    location = Location(storage_of(config), dataset)
    merged = list_merge(location) if dry_run else merge_submissions(location, confirmation("merge", yes))
    print_revision(merged, as_json, dataset, config)


@guarded
@needs("build")
def repair(
    dataset: Dataset,
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            metavar="CONFIG",
            help="The build's configuration, for its storage options and to rebuild files that can't be restored.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Restore missing or damaged files to their committed bytes.

    Exits with code 1 if some files can't be restored.
    """
    from segmint.infra.storage.location import Location
    from segmint.pipeline.corrections.repair import repair as repair_files

    build, storage = build_of(config)
    repaired = repair_files(Location(storage, dataset), build)
    print_checked(repaired, as_json, (*repaired.not_repaired, *repaired.lost, *repaired.unfinished))
