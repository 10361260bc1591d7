"""Start of a build of photographs: scans them, and writes the catalog and the configuration beside the dataset.

A catalog's name contains the hash of its bytes. The configuration names the catalog and is written after it, so after a
kill, either both are complete or the next run scans again. Later runs compare their options with the configuration's.
"""

import getpass
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from segmint.catalogs.dataset.manifest import load_manifest
from segmint.catalogs.findings import Reason
from segmint.catalogs.layout import MANIFEST
from segmint.catalogs.licenses import canonical_identifier
from segmint.catalogs.source.files import catalog_sha256
from segmint.catalogs.source.scan import SIDECAR_ENDINGS, relative_rows, scan, write_catalog
from segmint.infra.assets import resolve, sha256_of
from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.progress import Progress
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.location import Location, put_new_file
from segmint.infra.storage.storage import Storage
from segmint.infra.storage.stores import warn_of_skipped
from segmint.infra.uris import base_name, parent
from segmint.infra.wording import counted, some, yaml_text
from segmint.operators.rows import Row
from segmint.pipeline.building.dataset import open_or_create
from segmint.pipeline.building.first_numerics import require_gpu_for_bf16
from segmint.pipeline.building.request import NOTHING_BUILT, BuildRequest, check_stores
from segmint.pipeline.config.config import Config
from segmint.pipeline.config.yaml_file import Document, apply_override, check, contradictions, parse_yaml

_NOTE = "# This command wrote this file, and compares itself with the first line. docs/configuration.md lists all keys."
_KEPT = "A dataset keeps its licenses. To allow more, build another one: add the option, and change -o."
_MISSING = "missing"
_HASH_DIGITS = 12
_SHARDS, _FEWEST_IMAGES = 20, 16
"""Number of shards of a new dataset, and minimum size of one. A crash repeats the shards in progress, so small datasets
have small shards."""


def open_photographs(request: BuildRequest, *, grow: bool = False) -> tuple[Config, list[str], list[str]]:
    """Return the configuration of a build of photographs. If there is none yet, scan them and write it.

    With `grow`, scan them again into another catalog, whose new rows are added to the dataset. Also returns lines that
    describe what was scanned, and the files that couldn't be scanned. Raises `UsageError` if the photographs can't be
    scanned, if none has an allowed license, or if an earlier run had other options.
    """
    asked = _asked(request)
    config = check(asked, Config)
    storage = Storage(config.storage)
    config.deidentify.require_bundled(partial(resolve, mirror=config.assets, storage=storage))
    config.load_stages()  # before a configuration is written that no later command could correct
    file = Location(storage, request.config_file)
    check_stores(request, storage)
    lines: list[str] = []
    skipped: list[str] = []
    scanned = not file.exists()
    if scanned:
        require_gpu_for_bf16(config)
        catalog, rows, lines, skipped = scan_request(request, storage)
        asked.data["catalog"] = catalog.uri
        asked.data.setdefault("images_per_shard", min(max(_FEWEST_IMAGES, rows // _SHARDS), config.images_per_shard))
        text = f"{request.head}\n{_NOTE}\n{yaml_text(asked.data)}"
        if not file.put_if_absent(text.encode()):  # another process was faster
            check_stores(request, storage)
            scanned, lines, skipped = False, [], []  # they describe a catalog that isn't used
    elif not (Location(storage, request.output) / MANIFEST).exists():
        lines = [f"{file}: continuing the build that an earlier run began; its options hold. {NOTHING_BUILT} {file}"]
    config = _written(request, file)
    if grow and not scanned:
        config.load_stages()
        return _grown(request, config, file)
    if not (scanned or lines):
        lines = [f"{config.catalog}: the photographs that another run found. --grow adds new ones"]
    return config, lines, skipped


def refused_licenses(config: Config) -> list[str]:
    """Return the lines about the photographs of the built dataset whose licenses it doesn't allow."""
    manifest = load_manifest(Location(Storage(config.storage), config.output))
    return _refused_for_good(manifest.licenses, config.license.allow)


def _refused_for_good(licenses: Mapping[str, int], allow: Collection[str]) -> list[str]:
    """Return the lines of `_refused_lines`, if any, and one that says that they won't change."""
    lines = _refused_lines(licenses, allow)
    return [*lines, _KEPT] if lines else []


def _refused_lines(licenses: Mapping[str, int], allow: Collection[str]) -> list[str]:
    """Return a line for each license that isn't in `allow`, with its number of photographs and the option to allow it.

    The key `missing` counts those without a license, and `taken_down` those that a takedown removed.
    """
    counts: Counter[str] = Counter()
    for name, rows in licenses.items():
        counts[canonical_identifier(name) or name] += rows
    lines = []
    for name, rows in sorted(counts.items()):
        found, option = name, f"--allow {name}"
        if name == _MISSING:
            found, option = "without a license", "--license ID asserts one for them"
        if name not in (*allow, Reason.TAKEN_DOWN):
            lines.append(f"not allowed {rows:>10,} {found}: {option}")
    return lines


def _asked(request: BuildRequest) -> Document:
    """Return the configuration that the request describes. The scan determines the name of its catalog."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", base_name(request.output)).strip("-._")[:100]
    asked = Document({"name": name or "dataset", "catalog": f"{request.catalogs}.parquet"}, {}, "this command")
    for override in _overrides(request):
        apply_override(asked, override)
    _require_alike(asked, request)
    return asked


def _overrides(request: BuildRequest) -> list[str]:
    """Return the request's overrides, preceded by those that its other options stand for."""
    allow = f"license.allow={yaml_text(list(request.allow))}"
    return [f"output={yaml_text(request.output)}", allow, *request.overrides]


def _require_alike(document: Document, request: BuildRequest, advice: str = "") -> None:
    """Raise `UsageError` with the advice if a key of the document has another value in the request."""
    found = list(contradictions(document, _overrides(request)))
    if found:
        raise UsageError(f"{document.source} and its options contradict each other: {'; '.join(found)}{advice}")


def _written(request: BuildRequest, file: Location) -> Config:
    """Return the written configuration with the request's overrides. Raises `UsageError` if they contradict it."""
    document = parse_yaml(file.read().decode(errors="replace"), str(file))
    _require_alike(document, request, f". {NOTHING_BUILT} {file}")
    for override in request.overrides:
        apply_override(document, override)
    return check(document, Config)


def scan_request(
    request: BuildRequest, storage: Storage, *, again: bool = False
) -> tuple[Location, int, list[str], list[str]]:
    """Scan the photographs into a new catalog.

    Also returns its number of rows, lines that describe it, and the files that couldn't be scanned, each with the
    reason. If they are scanned `again`, the dataset keeps the rows that it has.
    """
    asserted = f"{_user()}, {datetime.now(UTC).date()}"
    licenses: Counter[str] = Counter()
    asserted_rows = 0
    strays: list[str] = []
    skipped: list[str] = []

    def skip(name: str, why: str) -> None:
        warn_of_skipped(name, why)
        skipped.append(f"{name}: {why}")
        if name.lower().endswith(SIDECAR_ENDINGS):
            strays.append(name)

    def rows() -> Iterator[Row]:
        nonlocal asserted_rows
        for row in scan(Location(storage, request.photographs), on_skip=skip):
            if request.license is not None and "license" not in row:
                row |= {"license": request.license, "license_asserted": asserted}
                asserted_rows += 1
            licenses[row.get("license", _MISSING)] += 1
            progress.update("scan", licenses.total())
            yield row
        if strays and request.license is not None:
            raise UsageError(
                f"no photograph has the exact name that these sidecar files state, so {request.license} might be "
                f"asserted for one with another license: rename or remove {some(strays)}"
            )
        if not licenses:
            raise UsageError(f"there are no photographs below {request.photographs}: name their folder or prefix")
        if not any(canonical_identifier(name) in request.allow for name in licenses):
            listed = "\n".join(_refused_lines(licenses, request.allow))
            raise UsageError(f"no photograph has one of the allowed licenses, so nothing was built:\n{listed}")

    with ScratchFolder() as scratch, Progress() as progress:
        path = Path(scratch) / "catalog.parquet"
        relative = relative_rows(rows(), Location(storage, request.catalogs))
        write_catalog(relative, Location(storage, str(path)))
        catalog = Location(storage, f"{request.catalogs}-{sha256_of(path)[:_HASH_DIGITS]}.parquet")
        put_new_file(catalog, path)
    lines = [f"{catalog}: {counted(licenses.total(), 'photograph')}"]
    if asserted_rows:
        which = " for those that are new" if again else ""
        lines.append(
            f"license asserted for {counted(asserted_rows, 'photograph')} by {asserted}, which the dataset publishes"
            f"{which}. To record another name, set LOGNAME."
        )
    return catalog, licenses.total(), [*lines, *_refused_for_good(licenses, request.allow)], skipped


def _user() -> str:
    """Return the name of the user who runs this command."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container, a user may have no name
        return f"user {os.getuid()}"


def _grown(request: BuildRequest, config: Config, file: Location) -> tuple[Config, list[str], list[str]]:
    """Scan the photographs again, and add the new rows to the dataset. Then, the file names the new catalog."""
    storage = Storage(config.storage)
    folder = Location(storage, parent(request.catalogs))
    known = {entry.name for entry in folder.list(beginning=base_name(request.catalogs))}
    catalog, _, lines, skipped = scan_request(request, storage, again=True)
    if catalog == Location(storage, config.catalog):
        return config, lines, skipped
    grown = config.model_copy(update={"catalog": catalog.uri})
    try:
        open_or_create(grown, storage, grow=True)
    except SegmintError:  # for example, because photographs are gone
        if catalog.name not in known:  # another run may use it
            catalog.delete()
        raise
    now = _written(request, file)  # another run may have changed it
    before = Location(storage, now.catalog)
    last = load_manifest(Location(storage, config.output)).catalog[-1].source_sha256
    if catalog_sha256(catalog) != last and before.exists() and catalog_sha256(before) == last:
        if catalog.name not in known:
            catalog.delete()
        return now, [f"{before}: no new photographs were found", *lines[1:]], skipped
    old, new, ours = before.name, catalog.name, base_name(request.catalogs)
    if old.startswith(ours):  # YAML may fold or escape this part, but not the hash
        old, new = old.removeprefix(ours), new.removeprefix(ours)
    file.put(file.read().replace(old.encode(), new.encode()))
    return grown, lines, skipped
