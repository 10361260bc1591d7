"""`segmint catalog`: scan or collect images into a catalog, check it, and curate it."""

from datetime import UTC, datetime
from itertools import chain
from typing import TYPE_CHECKING, Annotated

import typer

from segmint.pipeline.commands.console import (
    AsJson,
    Catalog,
    Config,
    YoloNames,
    build_of,
    exit_unless_clean,
    guarded,
    needs,
    print_json,
    print_line,
    print_message,
    print_next,
    print_result,
    storage_of,
)

if TYPE_CHECKING:
    from segmint.catalogs.licenses import LicensePolicy
    from segmint.pipeline.config.config import Config as Configuration

app = typer.Typer(name="catalog", help="Create, check, and curate catalogs of licensed images.", no_args_is_help=True)


@app.command()
@guarded
@needs("build")
def scan(
    uri: Annotated[str, typer.Argument(metavar="URI", help="Folder, bucket prefix, or tar to scan.")],
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="FILE", help="Catalog to write: .parquet, .jsonl, or .csv.")
    ],
    license: Annotated[
        str | None,
        typer.Option(help="License (SPDX identifier or LicenseRef-…) of images without a sidecar file."),
    ] = None,
    provider: Annotated[str | None, typer.Option(help="Supplier of the images.")] = None,
    attribution: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Credit for images whose sidecar file doesn't give one."),
    ] = None,
    absolute: Annotated[
        bool, typer.Option("--absolute", help="Write absolute instead of relative URIs, which a dataset publishes.")
    ] = False,
    hashed: Annotated[
        bool, typer.Option("--hash", help="Record the SHA-256 of each image, which builds verify.")
    ] = False,
    config: Annotated[
        str | None,
        typer.Option("--config", metavar="CONFIG", help="Build configuration, for its storage and license policy."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a catalog of the images below a folder or prefix.

    This includes images in tars. Licenses come from sidecar files or from --license.
    """
    from segmint.catalogs.source.check import check as check_catalog
    from segmint.catalogs.source.scan import check_relative, relative_rows, write_catalog
    from segmint.catalogs.source.scan import scan as scan_images
    from segmint.infra.errors import SegmintError, UsageError
    from segmint.infra.storage.location import Location, refuse_existing
    from segmint.infra.storage.stores import warn_of_skipped
    from segmint.infra.uris import LOCAL, local_path, scheme
    from segmint.infra.wording import counted, some

    build, storage = build_of(config)
    folder, catalog = Location(storage, uri), Location(storage, output)
    check_relative(folder, catalog, absolute=absolute)
    refuse_existing(catalog)
    skipped: list[str] = []

    def skip(name: str, why: str) -> None:
        warn_of_skipped(name, why)
        skipped.append(f"{name}: {why}")

    found = scan_images(
        folder, license=license, provider=provider, attribution=attribution, on_skip=skip, hashed=hashed
    )
    first = next(found, None)
    if first is None and skipped:
        raise SegmintError(f"{output} wasn't written: no image below {uri} can be listed: {some(skipped)}")
    if first is None and scheme(uri) == LOCAL and not local_path(uri).exists():
        raise UsageError(f"{uri} does not exist: expected a folder or tar with images")
    if first is None:
        raise UsageError(
            f"no images below {uri}, so {output} wasn't written: expected a folder or prefix with images or tars"
        )
    images = chain([first], found)
    rows = write_catalog(images if absolute else relative_rows(images, catalog), catalog)
    findings = check_catalog(catalog, _policy(build))
    if as_json:
        counts = {"rows": rows, "skipped": len(skipped), "unusable": findings.rows - findings.accepted}
        print_json({"catalog": output, **counts, "findings": findings.to_dict(), "not_checked": skipped})
    else:
        print_message(f"{output}: {counted(rows, 'row')}")
        for line in skipped:
            print_line(f"not checked: {line}")
        for line in (*findings.unusable_lines(), *findings.outlook_lines()):
            print_message(line)
    print_next(as_json, "catalog", "check", output, config=config)
    exit_unless_clean((), skipped)


@app.command()
@guarded
@needs("build")
def check(
    catalog: Catalog,
    config: Annotated[
        str | None,
        typer.Option("--config", metavar="CONFIG", help="Also check licenses against this build configuration."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a whole catalog and report its contents.

    Exits with code 1 if there are findings.
    """
    from segmint.catalogs.source.check import check as check_catalog
    from segmint.infra.errors import UsageError
    from segmint.infra.storage.errors import NotFoundError
    from segmint.infra.storage.location import Location

    build, storage = build_of(config)
    try:
        findings = check_catalog(Location(storage, catalog), _policy(build))
    except NotFoundError as error:
        raise UsageError(str(error)) from error
    print_result(findings, as_json)
    if build is not None:
        print_next(as_json, "plan", str(config), "--sample", "20")
    exit_unless_clean([] if findings.clean else [findings])


@app.command()
@guarded
@needs("build")
def curate(
    catalog: Catalog,
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="FILE", help="Curated .parquet catalog, next to the original.")
    ],
    config: Annotated[
        str,
        typer.Option(
            "--config", metavar="CONFIG", help="Build configuration: its curate, license, ingest, and storage parts."
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="K=V", help="Override a key, as in --set curate.duplicates.mirror=true."),
    ] = None,
    distributions: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Plot the distributions of the images' measures (.png, .svg, or .pdf); write no catalog.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Reject the duplicates and unfit images of a catalog."""
    from segmint.pipeline.building.curate import run_curate
    from segmint.pipeline.building.decide import ending
    from segmint.pipeline.config.config import load_config

    loaded = load_config(config, overrides or [])
    if distributions is not None:
        ending(distributions)
    print_result(run_curate(loaded, catalog, output, distributions=distributions), as_json)
    if distributions is None:
        print_next(as_json, "catalog", "check", output, config=config)


@app.command()
@guarded
@needs("build")
def collect(
    catalog: Catalog,
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="FOLDER", help="Folder or bucket prefix for the tars and catalog.")
    ],
    column: Annotated[
        str | None,
        typer.Option("--bytes", metavar="COLUMN", help="Binary Parquet column with the images, such as image.bytes."),
    ] = None,
    per_host: Annotated[int, typer.Option(metavar="N", min=1, max=16, help="Connections to the same host.")] = 4,
    config: Annotated[
        str | None,
        typer.Option("--config", metavar="CONFIG", help="Build configuration, for its storage and ingest.max_bytes."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Copy images from URLs or Parquet bytes into tars.

    Builds can read the tars. The same command resumes after the last complete tar. Exits with code 3 if servers didn't
    respond.
    """
    from segmint.catalogs.source.collect import collect as collect_images
    from segmint.infra.errors import UnfinishedError
    from segmint.infra.https import Downloader
    from segmint.infra.storage.location import Location
    from segmint.infra.wording import counted
    from segmint.operators.prepare.ingest_config import IngestConfig

    build, storage = build_of(config)
    ingest = IngestConfig() if build is None else build.ingest
    downloader = Downloader(ingest.max_bytes, per_host)
    folder = Location(storage, output.rstrip("/"))
    done = collect_images(Location(storage, catalog), folder, downloader, column, tell=print_message)
    print_result(done, as_json)
    if done.left:
        raise UnfinishedError(
            f"servers gave no answer about {counted(done.left, 'row')}, which {folder}/ doesn't contain yet: run the "
            "same command again later"
        )
    print_next(as_json, "catalog", "check", f"{folder}/", config=config)


@app.command()
@guarded
@needs("build")
def prompts(
    catalog: Catalog,
    output: Annotated[
        str,
        typer.Option("-o", "--output", metavar="FILE", help="New .parquet catalog, next to the original."),
    ],
    coco: Annotated[
        str | None, typer.Option(metavar="FILE", help="COCO file with boxes, such as a detector's annotations.")
    ] = None,
    yolo: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Folder of YOLO's label files, one for each image.")
    ] = None,
    names: YoloNames = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Add boxes from a COCO file or YOLO labels to a catalog.

    Each image of the file must fit exactly one row. Exits with code 3 if a box can't be read.
    """
    from segmint.infra.errors import UsageError
    from segmint.infra.storage.errors import NotFoundError
    from segmint.infra.storage.location import Location
    from segmint.operators.annotations.coco import parse_coco, read_coco_boxes
    from segmint.operators.annotations.image import yolo_boxes
    from segmint.pipeline.building.curate import add_prompts

    storage = storage_of(config)
    try:
        if coco is not None and yolo is None and names is None:
            boxes = read_coco_boxes(parse_coco(Location(storage, coco).read(), coco))
        elif coco is None and yolo is not None and names is not None:
            boxes = yolo_boxes(Location(storage, yolo), Location(storage, names))
        else:
            raise UsageError("pass either --coco, or --yolo and --names")
    except NotFoundError as error:
        raise UsageError(str(error)) from error
    result = add_prompts(Location(storage, catalog), Location(storage, output), boxes, with_endings=coco is not None)
    print_result(result, as_json)
    print_next(as_json, "catalog", "check", output, config=config)
    exit_unless_clean((), result.unreadable)


def _policy(build: "Configuration | None") -> "LicensePolicy | None":
    """Return the license policy of a build that starts today, or None without a configuration."""
    if build is None:
        return None
    return build.license.policy(build.license.policy_date or datetime.now(UTC).date())
