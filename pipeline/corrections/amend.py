"""`segmint amend`: corrects whom images are credited to and where they are from, by a catalog."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.manifest import DatasetManifest, load_latest_manifest, put_with_parts
from segmint.catalogs.dataset.outputs import line_of, read_notes
from segmint.catalogs.dataset.versions.record import VersionName, put_version
from segmint.catalogs.layout import part_path
from segmint.catalogs.source.amendments import (
    AMENDABLE,
    SHOWN,
    AmendedValue,
    Amendments,
    Difference,
    amend_parts,
    stage_amendments,
)
from segmint.catalogs.source.conform import shown
from segmint.catalogs.source.whole import WholeCatalog
from segmint.infra.assets.hashes import sha256_of
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.wording import counted, listed
from segmint.operators.shards.cataloged_rows import cataloged
from segmint.operators.shards.committed_rows import read_file
from segmint.operators.shards.replace import check_purge
from segmint.operators.shards.revise import Change
from segmint.operators.shards.tables import read_table
from segmint.pipeline.config.config import ResourcesConfig
from segmint.pipeline.corrections.common import release_config, remove_parts, while_unchanged
from segmint.pipeline.corrections.revision import LOCAL, Revision, revise

_WHY_FIXED = (
    "Only attribution, provider, source_url and country are amended: the others say which image was taken in, and on "
    "which terms. Put these values back or leave them empty; an image whose license is another one by now is taken "
    "down, and added again under a new image_id"
)


@dataclass(frozen=True)
class AmendmentList:
    """What an amendment would change."""

    dataset: str
    catalog: str
    name: str
    rows: int  # of the dataset's catalog, with another value
    values: Mapping[str, int]  # how many, by column
    examples: tuple[AmendedValue, ...]
    matched: int  # rows of the dataset that the catalog names
    unknown: int  # rows of the catalog that name no row of the dataset
    first_unknown: str | None
    shards: tuple[int, ...]  # with a row that the catalog names, committed or not
    outputs: tuple[str, ...]  # made from the dataset and noted in it

    def to_dict(self) -> dict[str, Any]:
        """Return the list for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the list as lines for people."""
        values = sum(self.values.values())
        return [
            f"{counted(self.rows, 'row')} of {self.dataset} would be amended"
            + (f": {listed(f'{name} of {count:,}' for name, count in self.values.items())}" if values else ""),
            *(
                f"  {shown(one.image_id)}: {one.column} {_said(one.before)} -> {_said(one.now)}"
                for one in self.examples
            ),
            *([f"  and {values - SHOWN:,} more values"] if values > SHOWN else []),
            *self._unknown_lines(),
            *(f"made from this dataset, and not reached: {output}" for output in self.outputs),
        ]

    def _unknown_lines(self) -> list[str]:
        if not self.unknown:
            return []
        return [
            f"{counted(self.unknown, 'row')} of {self.catalog} not in the dataset, such as {shown(self.first_unknown)}"
        ]


@dataclass(frozen=True)
class Amended:
    """The result of an amendment."""

    dataset: str
    rows: int  # of the dataset's catalog, changed by this run
    values: Mapping[str, int]  # how many, by column
    unknown: int  # rows of the catalog that name no row of the dataset
    images: int  # changed in committed shards by this run
    changed_shards: tuple[int, ...]
    version: VersionName
    outputs: tuple[str, ...] = ()  # made from the dataset and noted in it: they may have the former values
    removed_links: tuple[str, ...] = ()  # of report/, with what they led to, which was left alone

    def to_dict(self) -> dict[str, Any]:
        """Return the answer for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the answer as lines for people."""
        values = f": {listed(f'{name} of {count:,}' for name, count in self.values.items())}" if self.values else ""
        return [
            f"{counted(self.rows, 'row')} of the catalog amended{values}; {counted(self.images, 'image')} changed in "
            f"{counted(len(self.changed_shards), 'shard')}",
            *([f"{counted(self.unknown, 'row')} not in the dataset, and left out"] if self.unknown else []),
            "what was there before is gone, older versions included",
            *(f"made from this dataset, and yours to make again: {output}" for output in self.outputs),
            *(f"only the link was removed, look where it led: {link}" for link in self.removed_links),
            self.version.line(),
        ]


def list_amendment(dataset: Location, catalog: Location, *, clear: bool = False) -> AmendmentList:
    """List what `amend` would change; raises what it raises before anything is changed."""
    with tempfile.TemporaryDirectory(prefix="segmint-") as name:
        return _looks(dataset, catalog, clear, Path(name))().listed


def amend(
    dataset: Location,
    catalog: Location,
    reason: str | None = None,
    *,
    clear: bool = False,
    now: datetime | None = None,
    confirm: Callable[[AmendmentList], None] | None = None,
    resources: ResourcesConfig = LOCAL,
) -> Amended:
    """Give the images that `catalog` names, by image_id, its values of the columns `AMENDABLE`.

    An absent value stays as it is; with `clear` it is removed, in the columns that the catalog has. `reason` is
    recorded (default: the catalog's name and SHA-256). `confirm` is called with what will be changed, and may raise to
    stop it. `resources` say where Ray runs if many shards are to be changed.

    First the amended parts of the catalog are put, with the manifest's generation that names them, so that builds,
    growth and repairs take the values from there; then each shard's next generation. After an interruption at any
    point, the same call completes the work. Before anything is changed, raises `UsageError` for a catalog that cannot
    be read, names no row of the dataset, or says otherwise in a column of `FIXED`, and for a store whose older versions
    cannot be removed.
    """
    if reason is not None and not reason.strip():
        raise UsageError("--reason is empty: say why, or leave it away")
    reason = reason or f"from {catalog.name}, SHA-256 {catalog.sha256()[:12]}"
    with tempfile.TemporaryDirectory(prefix="segmint-") as name:
        look = _looks(dataset, catalog, clear, Path(name))
        looked = look()
        check_purge(dataset)
        if confirm is not None:
            confirm(looked.listed)
        looked = _amend_catalog(dataset, looked, look)
    manifest, found = looked.manifest, looked.found
    change = cataloged(dataset)
    outcome = revise(
        dataset,
        manifest,
        Revision(
            shards=frozenset(found.shards),
            change=change,
            with_images=release_config(manifest).format == "images",
            needed=lambda commit: _differs(dataset, commit, change),
            images_only=True,
        ),
        resources,
    )
    remove_parts(dataset)
    return Amended(
        dataset=str(dataset),
        rows=found.rows,
        values=found.values,
        unknown=found.unknown,
        images=sum(each.rows for each in outcome.changed.values()),
        changed_shards=tuple(outcome.changed),
        version=put_version(dataset, "amend", reason, now),
        outputs=tuple(line_of(note) for note in read_notes(dataset)),
        removed_links=outcome.removed_links,
    )


@dataclass(frozen=True)
class _Look:
    """What a catalog corrects in the generation of the manifest that held."""

    manifest: DatasetManifest
    generation: int
    found: Amendments
    listed: AmendmentList


def _looks(dataset: Location, catalog: Location, clear: bool, folder: Path) -> Callable[[], _Look]:
    """Read the catalog; return a function that compares it with the dataset. Both write into `folder`."""
    asked = stage_amendments(catalog, folder)

    def look() -> _Look:
        manifest, generation = load_latest_manifest(dataset)
        own = Path(tempfile.mkdtemp(dir=folder))
        found = _compare(dataset, catalog, manifest, asked, own, clear)
        listed = AmendmentList(
            dataset=str(dataset),
            catalog=str(catalog),
            name=manifest.name,
            rows=found.rows,
            values=found.values,
            examples=tuple(found.examples),
            matched=found.matched,
            unknown=found.unknown,
            first_unknown=found.first_unknown,
            shards=tuple(sorted(found.shards)),
            outputs=tuple(line_of(note) for note in read_notes(dataset)),
        )
        return _Look(manifest, generation, found, listed)

    return lambda: while_unchanged(dataset, look)


def _amend_catalog(dataset: Location, looked: _Look, look: Callable[[], _Look]) -> _Look:
    """Put the amended parts, and the manifest that names them; return the look whose manifest holds.

    If a build that grows, or another correction, is faster, its parts are amended.
    """
    while looked.found.parts:
        parts = list(looked.manifest.catalog)
        new = {}  # files of parts that are put here, by path
        for number, file in looked.found.parts.items():
            digest = sha256_of(file)
            path = part_path(number, digest)
            new[path] = file
            parts[number] = parts[number].model_copy(update={"path": path, "sha256": digest})
        amended = looked.manifest.model_copy(update={"catalog": tuple(parts)})
        won = put_with_parts(dataset, amended, looked.generation + 1, new)
        if won and load_latest_manifest(dataset).generation == looked.generation + 1:
            return replace(looked, manifest=amended)
        looked = look()
    return looked


def _compare(
    dataset: Location, catalog: Location, manifest: DatasetManifest, asked: Path, folder: Path, clear: bool
) -> Amendments:
    parts = []
    for number, part in enumerate(manifest.catalog):
        path = folder / f"part-{number}.parquet"
        (dataset / part.path).get_file(path)
        parts.append(path)
    cleared = set(WholeCatalog(catalog).schema.names) & set(AMENDABLE) if clear else ()
    found = amend_parts(asked, parts, folder, images_per_shard=manifest.images_per_shard, clear=cleared)
    if not found.matched:
        raise UsageError(
            f"{catalog} names no row of {dataset}: its rows are matched by image_id, and the first of them is "
            f"{shown(found.first_unknown)}. Nothing was changed"
            if found.unknown
            else f"{catalog} has no rows: nothing was changed"
        )
    if found.different:
        lines = [_difference_line(column, difference) for column, difference in found.different.items()]
        raise UsageError(
            "\n  ".join([f"{catalog} does not fit {dataset}, so nothing was changed:", *lines, _WHY_FIXED])
        )
    return found


def _difference_line(column: str, difference: Difference) -> str:
    return (
        f"{counted(difference.rows, 'row')} with another {column}, the first is row {difference.row}, image_id "
        f"{shown(difference.image_id)}: {shown(difference.pinned)} in the dataset, {shown(difference.found)} there"
    )


def _differs(dataset: Location, commit: Commit, change: Change) -> bool:
    """Return whether a shard has an image with other values than the catalog that holds."""
    table = read_table(read_file(dataset, commit.file("images")), "images")
    rows = table.select(["ordinal", "image_id", *AMENDABLE]).to_pylist()
    return any(one is not other for one, other in zip(rows, change(commit, rows), strict=True))


def _said(value: str | None) -> str:
    return "nothing" if value is None else shown(value)
