"""`segmint takedown`: remove images from a dataset for good, so that only a tombstone names them.

Rows that a takedown would remove: the requested rows, other rows of the same images, and their shards.
"""

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segmint.catalogs.dataset.commits import REJECTED, Commit, CommitLog
from segmint.catalogs.dataset.digest import current_digest
from segmint.catalogs.dataset.inventory import unknown_files
from segmint.catalogs.dataset.manifest import DatasetHandle, DatasetManifest, load_latest_manifest
from segmint.catalogs.dataset.outputs import OTHER_CACHES, forget_dataset, line_of, read_notes, shown_outputs
from segmint.catalogs.dataset.selection import (
    Measured,
    NamedRows,
    image_of,
    number_of,
    possible_ids,
    read_ids,
    rows_at,
    rows_named,
    same_request,
    select_rows,
    with_copies,
)
from segmint.catalogs.dataset.submissions import purge_of_images
from segmint.catalogs.dataset.tombstones import (
    BLANK,
    NO_NAMES,
    Fingerprint,
    Removals,
    RemovedImage,
    RemovedNames,
    TakedownRequest,
    Tombstone,
    by_shard,
    digests_of,
    forget_fingerprints,
    put_fingerprints,
    put_tombstone,
    read_fingerprints,
    read_tombstones,
    removed_images,
)
from segmint.catalogs.dataset.versions import VersionName
from segmint.catalogs.findings import Reason
from segmint.catalogs.layout import image_stem
from segmint.catalogs.parquet import RowGroupWriter, normalized_schema
from segmint.infra.assets import sha256_of
from segmint.infra.errors import UsageError, raise_problems
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.location import Location
from segmint.infra.uris import fit_to_keep, split_member
from segmint.infra.wording import counted, some
from segmint.operators.shards.near_copies import NearCopy, WantedPictures, near_copies, pictures_at, wanted_pictures
from segmint.operators.shards.revise import (
    fingerprint_of,
    names_removed,
    read_file,
    read_table,
    with_latest_commit,
    without_removed,
)
from segmint.pipeline.config.config import LOCAL, ResourcesConfig
from segmint.pipeline.corrections.correction import (
    Revision,
    begin,
    confirm_changes,
    link_lines,
    put_parts,
    record_version,
    remove_parts,
    revise,
    while_unchanged,
)

SHOWN = 20
"""Maximum number of rows in the text form of the list. JSON contains all rows."""

KEPT = "same bytes or pixels, not removed (pass --with-copies)"

SIMILAR = "look alike, not removed (pass --with-similar, or --other-picture if they're different)"

Images = Mapping[int, RemovedImage]  # by ordinal

_ROWS = 65_536

_KEPT_COLUMNS = ("ordinal", "id")

_ORIGINALS = (
    "originals in tars outside the dataset, as .tar#OFFSET+BYTES; erase them by overwriting the bytes with zeros"
)

_NOT_SEARCHED = (
    "not searched or deleted: the source catalog, the original photographs, downloads, backups, and outputs that the "
    "dataset doesn't note"
)


@dataclass(frozen=True)
class TakedownList:
    """Rows that a takedown would remove, and the tombstones that it would put."""

    dataset: str
    name: str
    named: tuple[RemovedImage, ...]  # requested
    copies: tuple[RemovedImage, ...]  # other rows with the same image_id, URI, bytes, or pixels
    returned: tuple[RemovedImage, ...]  # rows of images that earlier takedowns removed
    kept: tuple[str, ...]  # rows with the same bytes or pixels but another provider or license, as text
    similar: tuple[str, ...]  # similar images that stay in the dataset, as text
    shards: tuple[int, ...]
    tombstones: tuple[Tombstone, ...]
    outputs: tuple[str, ...]  # outputs recorded in the dataset

    @property
    def rows(self) -> int:
        """Number of rows to take down."""
        return len(self.named) + len(self.copies) + len(self.returned)

    def to_dict(self) -> dict[str, Any]:
        def dump(images: Iterable[RemovedImage]) -> list[dict[str, Any]]:
            return [image.model_dump(mode="json", exclude={"sha256"}) for image in images]

        return {
            "dataset": self.dataset,
            "name": self.name,
            "rows": self.rows,
            "named": dump(self.named),
            "copies": dump(self.copies),
            "returned": dump(self.returned),
            "kept": list(self.kept),
            "similar": list(self.similar),
            "shards": list(self.shards),
            "outputs": list(self.outputs),
        }

    def lines(self) -> list[str]:
        head = f"{counted(self.rows, 'row')} of {self.dataset} would be taken down"
        if self.shards:
            head += f", in {counted(len(self.shards), 'shard')}: {', '.join(map(str, self.shards[:SHOWN]))}"
        if len(self.shards) > SHOWN:
            head += ", …"
        lines = [
            head,
            *_lines("requested", self.named),
            *_lines("another row with the same image_id, URI, bytes, or pixels", self.copies),
            *_lines("an image that was taken down before", self.returned),
        ]
        lines += _staying(self.kept, self.similar)
        unknown = sum(image.sha256 is None for image in (*self.named, *self.copies))
        if unknown:
            lines.append(
                f"the SHA-256 of {counted(unknown, 'row')} is unknown, so rows with the same bytes or pixels but other "
                "names and URIs can't be found"
            )
        return [*lines, *shown_outputs(self.dataset, self.outputs, "not updated")]


def _lines(what: str, images: Sequence[RemovedImage]) -> Iterator[str]:
    for image in images[:SHOWN]:
        yield f"  {image_stem(image.id)} {image.image_id} ({image.uri}): {what}"
    if len(images) > SHOWN:
        yield f"  and {len(images) - SHOWN:,} more: {what}"


def _staying(kept: Sequence[str], similar: Sequence[str]) -> Iterator[str]:
    """Yield lines on the images that stay although they have the bytes or pixels of others, or look like others."""
    if kept:
        yield f"{KEPT}: {some(kept, SHOWN)}"
    if similar:
        yield f"{SIMILAR}: {some(similar, SHOWN)}"


def list_takedown(
    dataset: Location,
    manifest: DatasetManifest,
    request: TakedownRequest,
    reason: str,
    now: datetime | None = None,
    catalog_uri: str | None = None,
) -> TakedownList:
    """List the rows that a takedown would remove. Rows removed earlier are only included if they came back.

    If `catalog_uri`, the URI of the source catalog, is known, relative URIs match absolute URIs. Raises `UsageError` if
    a name isn't in the dataset, and `DamagedDatasetError` if a table can't be read.
    """
    if not reason.strip():
        raise UsageError("--reason is empty: expected a reason for the tombstone")
    selection = select_rows(dataset, manifest, request)
    earlier = read_tombstones(dataset)  # after the catalog, so that rows blanked by other takedowns have tombstones
    taken = removed_images(earlier)
    _check(selection, taken, request, earlier)
    commits = list(CommitLog(dataset).read_all())
    tables = [commit.file("images").path for commit in commits]
    by_id = request.ids is not None
    again = [each for each in earlier if request.with_copies and same_request(request, each.request)]
    known = digests_of(dataset)
    before = _measured(removed_images(again).values(), known)
    own: Images = {}
    kept: Images = {}
    digests: Measured = {}
    requested = _requested(earlier, request)
    if request.with_similar:
        ordinals = {each.id - 1 for each in _similar(dataset, commits, selection.rows, requested)}
        selection.rows.update(_images_at(dataset, manifest, ordinals))
    if selection.rows or before:
        same = with_copies(dataset, manifest, selection.rows, tables, catalog_uri, by_name=by_id, measured=before)
        own = _without(same.images, taken)
        if not by_id and not request.with_copies:
            kept = _without(own, selection.rows)
            own = _without(own, kept)
        digests = same.digests
    returned: Images = {}
    measured: Measured = {}
    if earlier:
        # A `sha256` that no build has checked links two rows, but the search doesn't continue from such a row.
        seeds = removed_images(each for each in earlier if each.request.ids is not None)
        seeds = {ordinal: image for ordinal, image in seeds.items() if not image.shared}
        removed = _measured((image for image in taken.values() if not image.shared), known)
        again_there = with_copies(dataset, manifest, seeds, tables, catalog_uri, measured=removed)
        refused = _images_at(dataset, manifest, _refused_by_source(dataset, commits))
        found = {**refused, **again_there.images}
        returned, measured = _without(found, taken, own), again_there.digests
    others: Images = {}
    if own or returned:
        names = RemovedNames.of((*own.values(), *returned.values()), catalog_uri)
        others = _without(rows_named(dataset, manifest, names), taken, own, returned)
    left = replace(RemovedNames.of(others.values(), catalog_uri), sha256=frozenset())
    own = _with_shared(own, left, digests, kept)
    returned = _with_shared(returned, left, {}, ())
    when = (now or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")
    tombstones = []
    if own:
        tombstones.append(Tombstone(request=request, reason=reason, when=when, images=tuple(own.values())))
    tombstones += _of_earlier(earlier, returned, measured, when)
    named, copies = [], []
    for ordinal, image in own.items():
        if ordinal in selection.rows:
            named.append(image)
        else:
            copies.append(image)
    return TakedownList(
        dataset=str(dataset),
        name=manifest.name,
        named=tuple(named),
        copies=tuple(copies),
        returned=tuple(returned.values()),
        kept=tuple(
            f"{image_stem(row['ordinal'] + 1)} {row['image_id']} (provider {row['provider']!r}, {row['license']})"
            for row in rows_at(dataset, manifest, kept)
        ),
        similar=tuple(
            each.line()
            for each in _similar(dataset, commits, own, requested)
            if each.id - 1 not in own and each.id - 1 not in returned
        ),
        shards=tuple(by_shard((*own, *returned), manifest.images_per_shard)),
        tombstones=tuple(tombstones),
        outputs=tuple(line_of(note) for note in read_notes(dataset)),
    )


def _requested(earlier: Sequence[Tombstone], request: TakedownRequest) -> set[int]:
    """Return the numbers of the images that this request has already taken down."""
    names = {each for name in request.ids or () for each in possible_ids(name)}
    found = set()
    for tombstone in earlier:
        same = request.ids is None and same_request(request, tombstone.request)
        for image in tombstone.images:
            if same or not names.isdisjoint((image.image_id, image.id)):
                found.add(image.id)
    return found


def _similar(dataset: Location, commits: Sequence[Commit], own: Images, requested: Set[int]) -> Iterator[NearCopy]:
    """Yield committed images that look like the images in `own` or like the removed images in `requested`."""
    here, gone = pictures_at(dataset, commits, own), wanted_pictures(dataset, requested)
    hashes = np.concatenate([here.hashes, gone.hashes])
    pictures = WantedPictures((*here.ids, *gone.ids), (*here.tombstones, *gone.tombstones), hashes, gone.others)
    return near_copies(dataset, commits, pictures)


def _without(images: Images, *others: Images) -> Images:
    excluded = set[int]().union(*others)
    return {ordinal: image for ordinal, image in images.items() if ordinal not in excluded}


def _images_at(dataset: Location, manifest: DatasetManifest, ordinals: Collection[int]) -> dict[int, RemovedImage]:
    return {row["ordinal"]: image_of(row) for row in rows_at(dataset, manifest, ordinals)}


def _with_shared(images: Images, left: RemovedNames, digests: Measured, kept: Iterable[int]) -> Images:
    """Sort images by ordinal, and record whether a row that stays has one of their names or SHA-256 hashes.

    `left` are the names in the rows that stay, and `kept` are the ordinals of rows that stay with known hashes.
    """
    stays = set[str]()
    for ordinal in kept:
        stays |= digests[ordinal]
    marked = {}
    for ordinal, image in sorted(images.items()):
        shared = left.any_of(image) or not stays.isdisjoint(digests.get(ordinal, ()))
        marked[ordinal] = image.model_copy(update={"shared": shared})
    return marked


def _measured(images: Iterable[RemovedImage], known: Mapping[int, frozenset[str]]) -> Measured:
    """Return the SHA-256 hashes of removed images: their own, and those in their fingerprints.

    `known` maps image numbers to the hashes in fingerprints.
    """
    own = {}
    for image in images:
        digests = known.get(image.id, frozenset())
        if image.sha256:
            digests |= {image.sha256}
        if digests:
            own[image.ordinal] = digests
    return own


def _check(selection: NamedRows, taken: Images, request: TakedownRequest, earlier: Sequence[Tombstone]) -> None:
    """Raise `UsageError` if a name is ambiguous or unknown, or if no row ever had the license or provider."""
    known = set[str | int]()
    for image in taken.values():
        known |= {image.image_id, image.id}
    problems = [*selection.ambiguous.values()]
    for name in selection.unknown:
        if possible_ids(name).isdisjoint(known):
            stored = fit_to_keep(name)
            problem = f"{stored!r} isn't an image_id or id of this dataset"
            if stored != name:
                problem = (
                    f"{stored!r}: a dataset doesn't store credentials, so it can't tell which image you mean. Write "
                    "its number, or its image_id with [redacted] if its uri in the dataset is the one you mean"
                )
            problems.append(problem)
    raise_problems([*problems, *_half_removed(selection, taken, request.ids or ())])
    if not selection.rows and request.ids is None and not any(same_request(request, each.request) for each in earlier):
        what, value = "license", request.license
        if value is None:
            what, value = "provider", request.provider
        raise UsageError(f"no row of the catalog has the {what} {value!r}. Nothing was changed.")


def _half_removed(selection: NamedRows, taken: Images, names: Iterable[str]) -> Iterator[str]:
    """Yield a problem for each name that is ambiguous because of an image that was taken down earlier.

    Such a name is the image_id of one image and the number of another, and one of them was taken down. If the dataset
    has grown since then, the name wasn't ambiguous at that time.
    """
    numbers = {each.id: each.image_id for each in taken.values()}
    removed = set(numbers.values())
    named = {row.image_id for row in selection.rows.values()}
    for name in names:
        number = number_of(name) or 0
        row = selection.rows.get(number - 1)
        other = None
        if row is not None and name in removed:
            other = row.image_id
        elif name in named:
            other = numbers.get(number)
        if other not in (None, name):
            yield (
                f"{name!r} is both an image_id and the number of another image, and one of these images was already "
                f"taken down. For the image_id, write {json.dumps(name)}, with the quotes. For the number, write the "
                f"other image's image_id, {json.dumps(other)}"
            )


def _refused_by_source(dataset: Location, commits: Iterable[Commit]) -> list[int]:
    """Return the ordinals of rows that were rejected because of a tombstone's source but still contain names."""
    found: list[int] = []
    for commit in commits:
        if commit.counts.get(f"{REJECTED}{Reason.TAKEN_DOWN}"):
            table = read_table(read_file(dataset, commit.file("rejects")), "rejects")
            named = pc.not_equal(table.column("image_id"), BLANK)
            by_source = pc.and_(pc.equal(table.column("reason"), pa.scalar(str(Reason.TAKEN_DOWN))), named)
            found += table.filter(by_source).column("ordinal").to_pylist()
    return found


def _of_earlier(earlier: Sequence[Tombstone], returned: Images, measured: Measured, when: str) -> list[Tombstone]:
    """Return tombstones for images that came back. Each tombstone repeats the earlier tombstone's reason."""
    left = dict(returned)
    found = []
    for number, tombstone in enumerate(earlier):
        names = RemovedNames.of(tombstone.images)
        same = frozenset[str]().union(*(measured.get(image.ordinal, ()) for image in tombstone.images))
        own = {}
        for ordinal, image in left.items():
            last = number == len(earlier) - 1  # the rest are duplicates of duplicates
            if last or names.any_of(image) or not same.isdisjoint(measured.get(ordinal, ())):
                own[ordinal] = image
        if own:
            found.append(tombstone.model_copy(update={"when": when, "images": tuple(own.values())}))
            left = _without(left, own)  # type: ignore[assignment]
    return found


@dataclass(frozen=True)
class TakedownResult:
    """Result of a takedown."""

    dataset: str
    rows: int  # rows newly named by this takedown, including duplicates
    images: int  # images that this run removed from committed shards
    changed_shards: tuple[int, ...]
    tombstones: tuple[str, ...]  # all tombstones of the dataset
    taken_down: int  # rows in all tombstones
    version: VersionName
    annotations: int = 0  # the images' annotation files that this run removed
    building: tuple[int, ...] = ()  # shards whose files a build has put but not committed; they may show the images
    kept: tuple[str, ...] = ()  # rows with the same bytes or pixels from other providers or under other licenses
    similar: tuple[str, ...] = ()  # images that look like the removed ones
    outputs: tuple[str, ...] = ()  # outputs recorded in the dataset, which may contain the images
    unknown_files: tuple[str, ...] = ()  # temporary and foreign files, which may name or show the images
    removed_links: tuple[str, ...] = ()  # links in report/ with their targets, which were left untouched
    caches: tuple[str, ...] = ()  # caches of the images, with the files that were deleted or left there
    shared: int = 0  # taken-down images that remaining rows also name
    originals: tuple[str, ...] = ()  # places of taken-down images in tars outside the dataset, unless rows remain there

    def lines(self) -> list[str]:
        images = "the images"
        if self.shared:
            images += f" ({self.shared:,} also named by rows that remain)"
        lines = [
            f"{counted(self.rows, 'row')} taken down, {counted(self.images, 'image')} removed from "
            f"{counted(len(self.changed_shards), 'shard')}; taken down from this dataset in total: "
            f"{counted(self.taken_down, 'row')}",
            "of the dataset's committed files, including older versions, only tombstones/ still names "
            f"{images}, and only fingerprints/ can contain hashes that recognize other copies of them",
        ]
        if self.annotations:
            lines.append(f"submissions removed: {counted(self.annotations, 'file')}")
        if self.building:
            shards = some(self.building)
            lines.append(
                f"a build is writing shards {shards}, or died while writing; its end or next run removes the images"
            )
        lines += _staying(self.kept, self.similar)
        lines += shown_outputs(self.dataset, self.outputs, "delete it or create it again")
        if self.originals:
            lines.append(f"{_ORIGINALS}: {some(self.originals, SHOWN)}")
        lines += [f"cache: {line}" for line in self.caches]
        lines += [OTHER_CACHES, _NOT_SEARCHED]
        for path in self.unknown_files:
            lines.append(f"not a committed file, check what it shows and names: {path}")
        return [*lines, *link_lines(self.removed_links), self.version.line()]


def read_request(
    ids: Location | None, license_id: str | None, provider: str | None, *, with_copies: bool = False, **options: bool
) -> TakedownRequest:
    """Return the request with `options`.

    Raises `UsageError` unless exactly one of the ID file, license, and provider is given.
    """
    if ids is not None and with_copies:
        raise UsageError("--with-copies needs --license or --provider: --ids always includes copies")
    given = [str(value) for value in (ids, license_id, provider) if value is not None]
    if len(given) != 1 or not given[0].strip():
        raise UsageError("expected exactly one of --ids FILE, --license L, and --provider P")
    names = None
    if ids is not None:
        names = tuple(read_ids(ids))
    return TakedownRequest(ids=names, license=license_id, provider=provider, with_copies=with_copies, **options)


def takedown(
    dataset: Location,
    request: TakedownRequest,
    reason: str,
    now: datetime | None = None,
    catalog_uri: str | None = None,
    confirm: Callable[[TakedownList], None] | None = None,
    resources: ResourcesConfig = LOCAL,
) -> TakedownResult:
    """Remove images from a dataset. A request by id includes all other rows with the same image or name.

    The tombstone is written first. Then the images' annotations are removed, their rows in the catalog are blanked, the
    next generation of each shard is committed, and everything older is removed. Every call also completes earlier
    takedowns. `catalog_uri` is as in `list_takedown`, `confirm` as in `confirm_changes`, and `resources` as in
    `revise`.

    Before any change, raises `UsageError` if the request contains names that aren't in the dataset or the store's older
    versions can't be removed, and `DamagedDatasetError` if a shard can't be read.
    """
    handle = begin(dataset, catalog_uri)
    plan = partial(_plan, handle, request, reason, now)
    first = plan()
    confirm_changes(handle, first.listed, confirm)
    last, rows = _put_tombstones(handle, first, plan)
    listed, answers = last.listed, _forget(handle)
    while len(handle.manifest().catalog) > last.parts:  # a build has grown the dataset, maybe without the tombstones
        last, more = _put_tombstones(handle, plan(), plan)
        rows += more
        answers += _forget(handle)
    tombstones = read_tombstones(dataset)
    names = tuple(tombstone.name for tombstone in tombstones)
    images = removed_images(tombstones)
    taken = Removals(images, NO_NAMES)  # at this point, duplicates have tombstones
    revision = Revision(
        shards=by_shard(images, handle.manifest().images_per_shard).keys(),
        change=lambda _, rows: [without_removed(row, taken) for row in rows],
        needed=lambda commit: names_removed(dataset, commit, taken),
    )
    outcome = revise(handle, revision, resources)
    remove_parts(dataset)
    # The version has no reason, because it lists the tombstones, which contain the reasons.
    version, outputs = record_version(handle, "takedown", now=now, tombstones=names)
    changed = outcome.changed.values()
    return TakedownResult(
        dataset=str(handle),
        rows=rows,
        images=sum(each.before.counts["images"] - each.commit.counts["images"] for each in changed),
        changed_shards=tuple(outcome.changed),
        tombstones=names,
        taken_down=len(images),
        shared=sum(image.shared for image in images.values()),
        annotations=answers,
        building=outcome.building,
        kept=listed.kept,
        similar=listed.similar,
        outputs=outputs,
        unknown_files=tuple(unknown_files(dataset)),
        version=version,
        removed_links=outcome.removed_links,
        caches=tuple(forget_dataset(dataset)),
        originals=tuple(each.uri for each in images.values() if split_member(each.uri) and not each.shared),
    )


class _Plan(NamedTuple):
    """List of a takedown, and the dataset's state when the list was made."""

    listed: TakedownList
    committed: Mapping[int, int]  # generation of each shard
    parts: int  # of the catalog


def _put_tombstones(dataset: DatasetHandle, planned: _Plan, plan: Callable[[], _Plan]) -> tuple[_Plan, int]:
    """Put the tombstones of a plan, and of the plans after it, until there is nothing new.

    Returns the last plan, and the number of rows in all of them.
    """
    rows = 0
    while True:
        listed = planned.listed
        rows += listed.rows
        digest = current_digest(dataset.location)
        for tombstone in listed.tombstones:
            put_tombstone(dataset.location, tombstone.model_copy(update={"version_before": digest}))
        # A takedown that was interrupted before this step leaves pictures that its successor's list doesn't know.
        unknown = _recognize(dataset) - {image.ordinal for each in listed.tombstones for image in each.images}
        # Writers that commit from here on find the tombstones. Look again for those that committed since the list was
        # made.
        now = dataset.commits.committed(), len(dataset.manifest().catalog)
        if not unknown and (not listed.tombstones or now == (planned.committed, planned.parts)):
            return planned, rows
        planned = plan()


def _forget(dataset: DatasetHandle) -> int:
    """Delete the annotations of the taken-down images, and blank their rows. Returns the number of annotations."""
    images = removed_images(read_tombstones(dataset.location))
    # A server that puts a submission from here on finds the tombstone.
    answers = purge_of_images(dataset.location, images)
    while_unchanged(dataset, lambda: _blank_catalog(dataset.location, images.keys()))
    return answers


def _plan(dataset: DatasetHandle, request: TakedownRequest, reason: str, now: datetime | None) -> _Plan:
    """List what a takedown removes."""

    def look() -> _Plan:
        committed = dataset.commits.committed()
        manifest, location = dataset.manifest(), dataset.location
        listed = list_takedown(location, manifest, request, reason, now, dataset.catalog_uri)
        for commit in dataset.commits.read_all(only=listed.shards):
            for entry in commit.files:  # before any change, check that all files to rewrite can be read
                read_file(location, entry)
        return _Plan(listed, committed, len(manifest.catalog))

    return while_unchanged(dataset, look)


def _recognize(dataset: DatasetHandle) -> set[int]:
    """Write the fingerprints of taken-down images from their current commits, and remove unwanted fingerprints.

    Revisions also write fingerprints. Here, they are written before the commits are listed again, so that no build
    misses them. Returns the ordinals of the images whose fingerprints were written.
    """
    written: set[int] = set()
    known = read_fingerprints(dataset.location)
    per_shard = dataset.manifest().images_per_shard
    for tombstone in read_tombstones(dataset.location):
        for shard, ordinals in by_shard((image.ordinal for image in tombstone.images), per_shard).items():
            images: Mapping[int, Fingerprint] = {}
            if shard in known:
                images = known[shard].images
            if tombstone.request.fingerprints:
                new = {ordinal for ordinal in ordinals if ordinal + 1 not in images}
                if new:
                    look = partial(_fingerprints, dataset.location, new)
                    own = with_latest_commit(dataset.location, shard, look) or {}
                    none = {ordinal + 1: Fingerprint() for ordinal in new}
                    put_fingerprints(dataset.location, shard, {**none, **own})
                    written |= new
            elif any(not images.get(ordinal + 1, Fingerprint()).forgotten for ordinal in ordinals):
                forget_fingerprints(dataset.location, shard, {ordinal + 1 for ordinal in ordinals})
    return written


def _fingerprints(dataset: Location, ordinals: Set[int], commit: Commit) -> dict[int, Fingerprint]:
    """Return the fingerprints of these images in a commit, keyed by image number."""
    rows = read_table(read_file(dataset, commit.file("images")), "images").to_pylist()
    return {row["id"]: fingerprint_of(row, gone=True) for row in rows if row["ordinal"] in ordinals}


def _blank_catalog(dataset: Location, ordinals: Collection[int]) -> None:
    """Blank these rows in the catalog, including catalog versions that other commands put in the meantime."""
    latest = load_latest_manifest(dataset)
    manifest = latest.manifest
    licenses = Counter(manifest.licenses)
    new: dict[int, Path] = {}  # changed part files, by number
    with ScratchFolder() as folder:
        for number, part in enumerate(manifest.catalog):
            first = part.first_shard * manifest.images_per_shard
            own = [ordinal for ordinal in ordinals if first <= ordinal < first + part.rows]
            if own:
                before = Path(folder) / f"part-{number}.parquet"
                (dataset / part.path).get_file(before)
                after = Path(folder) / f"blank-{number}.parquet"
                former = blank_part(before, own, after)
                if sha256_of(after) != part.sha256:
                    new[number] = after
                    licenses.subtract({name or "missing": count for name, count in former.items()})
                    licenses["taken_down"] += former.total()
        if not new:
            return
        counted = {name: count for name, count in sorted(licenses.items()) if count}
        blank = put_parts(dataset, latest, new, licenses=counted)
    if blank is None:  # a growing build or another correction was first, so blank its parts
        _blank_catalog(dataset, ordinals)


def blank_part(part: Path, ordinals: Collection[int], destination: Path) -> Counter[str | None]:
    """Copy the local part `part` to `destination`. In the given rows, blank all columns except for ordinal and id.

    Rows keep their positions. The bytes only depend on the rows, so blanking the same rows again changes nothing.
    Returns the former licenses of the newly blanked rows, with their counts.
    """
    wanted = pa.array(sorted(ordinals), pa.int64())
    licenses: Counter[str | None] = Counter()
    schema = normalized_schema(pq.read_schema(part).names)
    with pq.ParquetFile(part) as file, RowGroupWriter(destination, schema) as writer:
        for batch in file.iter_batches(batch_size=_ROWS):
            taken = pc.is_in(batch.column("ordinal"), value_set=wanted)
            named = pc.and_(taken, pc.not_equal(batch.column("image_id"), BLANK))
            licenses.update(batch.column("license").filter(named).to_pylist())
            writer.add([_blank_rows(batch, taken)])
    return licenses


def _blank_rows(batch: pa.RecordBatch, taken: pa.BooleanArray) -> pa.RecordBatch:
    """Return a batch of a normalized catalog with the rows in `taken` blanked."""
    schema = normalized_schema(batch.schema.names)
    columns = {each.name: batch.column(each.name) for each in schema}
    for each in schema:
        if each.name not in _KEPT_COLUMNS:
            blank = pa.scalar(None if each.nullable else BLANK, each.type)
            columns[each.name] = pc.if_else(taken, blank, columns[each.name])
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=schema)
