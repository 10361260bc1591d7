"""Start of a build of photographs: scans them, and writes the catalog and the configuration beside the dataset.

A catalog's name contains the hash of its bytes. The configuration names the catalog and is written after it, so after a
kill, either both are complete or the next run scans again. Later runs compare their options with the configuration's.
"""

import getpass
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from segmint.catalogs.dataset.manifest import read_manifest
from segmint.catalogs.licenses import canonical_identifier
from segmint.catalogs.schema import SOURCE
from segmint.catalogs.source.scan import relative_rows, scan, write_catalog
from segmint.infra.assets.cache import sha256_of
from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.progress import Progress
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location, put_new_file
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import LOCAL, absolute, base_name, local_path, parent, scheme
from segmint.infra.wording import counted, some
from segmint.pipeline.building.dataset.dataset import open_or_create
from segmint.pipeline.building.dataset.request import BuildRequest, check_stores
from segmint.pipeline.config.config import Config
from segmint.pipeline.config.problems import Document
from segmint.pipeline.config.template import TemplateStart, template
from segmint.pipeline.config.yaml_file import apply_override, check, contradictions, parse_yaml

_MISSING = "missing"
_FOLDER, _LICENSE = b"segmint.photographs", b"segmint.license"
_CONFIG_BYTES = 1_000_000
_HASH_DIGITS = 12


@dataclass(frozen=True)
class RefusedLicenses:
    """Numbers of photographs whose license a dataset doesn't allow, by license. The key `missing` is for none."""

    counts: Mapping[str, int]

    @classmethod
    def of(cls, licenses: Mapping[str, int], allow: Iterable[str]) -> "RefusedLicenses":
        """Select the counts of the licenses that aren't in `allow`."""
        counts: Counter[str] = Counter()
        allowed = set(allow)
        for name, rows in licenses.items():
            identifier = canonical_identifier(name) or name
            if identifier not in allowed:
                counts[identifier] += rows
        return cls(dict(counts.most_common()))

    def lines(self) -> list[str]:
        """Return a line for each license, with the option that would allow it."""
        lines = []
        for name, rows in self.counts.items():
            found, option = name, f"--allow {name}"
            if name == _MISSING:
                found, option = "without a license", "--license ID, which asserts one"
            lines.append(f"not allowed {rows:>10,} {found}: {option}")
        if lines:
            lines.append("A dataset keeps its licenses. To allow more, build another one: add the option and change -o")
        return lines


@dataclass(frozen=True)
class Scanned:
    """Catalog that a scan wrote. `asserted_by` is None if no license was asserted."""

    catalog: Location
    licenses: Mapping[str, int]  # rows by license; the key `missing` is for none
    asserted: int
    asserted_by: str | None

    def lines(self) -> list[str]:
        """Return the number of photographs, and whose assertion the dataset will publish."""
        lines = [f"{self.catalog}: {counted(sum(self.licenses.values()), 'photograph')}"]
        if self.asserted_by is not None:
            lines.append(
                f"license asserted for {self.asserted:,} of them by {self.asserted_by}. The dataset publishes this name; "
                "to record another one, set LOGNAME"
            )
        return lines


@dataclass(frozen=True)
class PhotographBuild:
    """Configuration of a build of photographs. `scanned` is None if an earlier run scanned them."""

    config: Config
    scanned: Scanned | None


def open_photographs(request: BuildRequest, *, grow: bool = False) -> PhotographBuild:
    """Return the configuration of a build of photographs. If there is none yet, scan them and write it.

    With `grow`, scan them again into another catalog, whose new rows are added to the dataset. Raises `UsageError` if
    the photographs can't be scanned, if none has an allowed license, or if an earlier run had other options. Then,
    nothing is written.
    """
    asked = _asked(request)
    config = check(asked, Config)
    config.deidentify.require_packages()
    storage = Storage(config.storage)
    file = Location(storage, request.config_file)
    check_stores(request, storage)
    scanned = None
    if not file.exists():
        scanned = _scan(request, storage)
        asked.data["catalog"] = scanned.catalog.uri
        if not file.put_if_absent(_text(asked.data).encode()) and _read(file).data["catalog"] != scanned.catalog.uri:
            scanned.catalog.delete()  # another process was faster
    config = _written(request, file)
    if not grow or scanned is not None:
        return PhotographBuild(config, scanned)
    return _grown(request, config, file)


def _asked(request: BuildRequest) -> Document:
    """Return the configuration that the request describes. The scan determines the name of its catalog."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", base_name(request.output)).strip("-._")
    license = {"allow": list(request.allow)}
    flags = {"catalog": f"{request.catalogs}.parquet", "output": request.output, "license": license}
    asked = Document({"name": name[:100] or "dataset", **flags}, {}, "the command")
    wrong = list(contradictions(Document(flags, {}, "the command"), request.overrides))
    if wrong:
        raise UsageError(f"--set contradicts the other options: {some(wrong)}. Use -o, --license, and --allow for these")
    for override in request.overrides:
        apply_override(asked, override)
    return asked


def _text(data: Mapping[str, Any]) -> str:
    more = {key: value for key, value in data.items() if key not in ("name", "catalog", "output")}
    return template(TemplateStart(data["name"], data["catalog"], data["output"], (), more))


def _read(file: Location) -> Document:
    return parse_yaml(file.read(_CONFIG_BYTES).decode("utf-8", "replace"), str(file))


def _written(request: BuildRequest, file: Location) -> Config:
    """Return the written configuration with the request's overrides. Raises `UsageError` if they contradict it."""
    document = _read(file)
    written = check(document, Config)
    beginning = base_name(request.catalogs)
    name = base_name(written.catalog)
    if not name.startswith(beginning):
        raise UsageError(
            f"{file} names another catalog than those that this command writes, {written.catalog}: run `segmint build "
            f"{file}` without options for photographs"
        )
    catalog = Location(file.storage, request.catalogs + name.removeprefix(beginning))
    differences = [*_differences(request, catalog, written), *contradictions(document, request.overrides)]
    if differences:
        fix = "Repeat the options of the earlier run, or choose another -o"
        if read_manifest(Location(file.storage, request.output)) is None:
            fix += f". Nothing was built yet, so you can also delete {file} to start over"
        listed = "\n  ".join(differences)
        raise UsageError(f"this command contradicts {file}, which an earlier run wrote:\n  {listed}\n{fix}")
    for override in request.overrides:
        apply_override(document, override)
    # The file's paths may be relative to another working directory.
    document.data |= {"catalog": catalog.uri, "output": request.output}
    return check(document, Config)


def _differences(request: BuildRequest, catalog: Location, written: Config) -> Iterator[str]:
    """Yield a sentence for each difference between the request and the one that the catalog was scanned for."""
    try:
        with catalog.open() as stream:
            found = pq.read_schema(stream).metadata or {}
    except NotFoundError as error:
        raise UsageError(f"{catalog} is missing: restore this catalog, from which the dataset was built") from error
    before = [found.get(_FOLDER, b"").decode(), found.get(_LICENSE, b"").decode(), ", ".join(sorted(written.license.allow))]
    now = [_folder(request), request.license or "", ", ".join(sorted(request.allow))]
    for name, was, is_now in zip(("photographs", "--license", "allowed licenses"), before, now, strict=True):
        if was != is_now:
            yield f"{name}: {was or 'none'} before, {is_now or 'none'} now"


def _folder(request: BuildRequest) -> str:
    """Return the photographs' URI. A local path is relative to the dataset's folder, so both can be moved together."""
    if scheme(request.photographs) != LOCAL:
        return request.photographs.rstrip("/")
    above = os.path.realpath(parent(str(local_path(request.output).absolute())))
    return os.path.relpath(os.path.realpath(local_path(request.photographs)), above)


def _scan(request: BuildRequest, storage: Storage) -> Scanned:
    """Scan the photographs into a new catalog."""
    folder = Location(storage, request.photographs)
    asserted = f"{_user()}, {datetime.now(UTC).date()}"
    licenses: Counter[str] = Counter()
    without = Counter[str]()

    def rows(progress: Progress) -> Iterator[dict[str, Any]]:
        for row in scan(folder):
            if "license" not in row:
                without["rows"] += 1
                if request.license is not None:
                    row |= {"license": request.license, "license_asserted": asserted}
            licenses[row.get("license", _MISSING)] += 1
            progress.update("scan", licenses.total())
            yield row
        _require_allowed(request, licenses)

    metadata = {_FOLDER: _folder(request), _LICENSE: request.license or ""}
    with ScratchFolder() as scratch, Progress() as progress:
        path = Path(scratch) / "catalog.parquet"
        named = relative_rows(rows(progress), Location(storage, f"{request.catalogs}.parquet"))
        write_catalog(named, Location(storage, str(path)), SOURCE.with_metadata(metadata))
        catalog = Location(storage, f"{request.catalogs}{sha256_of(path)[:_HASH_DIGITS]}.parquet")
        put_new_file(catalog, path)
    asserted_rows = 0 if request.license is None else without["rows"]
    return Scanned(catalog, licenses, asserted_rows, asserted if asserted_rows else None)


def _require_allowed(request: BuildRequest, licenses: Mapping[str, int]) -> None:
    """Raise `UsageError` if no photograph has an allowed license."""
    refused = RefusedLicenses.of(licenses, request.allow)
    found = sum(licenses.values())
    if not found:
        raise UsageError(f"there are no photographs below {request.photographs}: expected a folder or prefix with images")
    if sum(refused.counts.values()) == found:
        listed = some([f"{rows:,} {name}" for name, rows in refused.counts.items()])
        raise UsageError(
            f"nothing was built: none of the {counted(found, 'photograph')} below {request.photographs} has an allowed "
            f"license ({', '.join(request.allow)}), but {listed}. Allow licenses that photographs state with --allow, "
            "or assert the license of those without one with --license"
        )


def _user() -> str:
    """Return the name of the user who runs this command."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container, a user may have no name
        return f"user {os.getuid()}"


def _grown(request: BuildRequest, config: Config, file: Location) -> PhotographBuild:
    """Scan the photographs again, and add the new rows to the dataset.

    The configuration names the new catalog as soon as the dataset contains its rows. If it has no new rows, or if the
    dataset can't take them, the new catalog is deleted.
    """
    storage = Storage(config.storage)
    before = Location(storage, config.catalog)
    scanned = _scan(request, storage)
    if scanned.catalog.uri == before.uri:
        return PhotographBuild(config, scanned)
    grown = config.model_copy(update={"catalog": absolute(scanned.catalog.uri)})
    try:
        dataset = open_or_create(grown, storage, grow=True)
    except SegmintError:
        scanned.catalog.delete()
        raise
    if dataset.manifest.catalog[-1].source_sha256 == before.sha256():
        scanned.catalog.delete()
        return PhotographBuild(config, None)
    text = file.read(_CONFIG_BYTES).decode()
    file.put(text.replace(before.name, scanned.catalog.name).encode())
    return PhotographBuild(grown, scanned)
