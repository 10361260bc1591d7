"""Rows that a takedown would remove: the requested rows, other rows of the same images, and their shards."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segmint.catalogs.dataset.commits import REJECTED, Commit, CommitLog
from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.dataset.outputs import line_of, read_notes, shown_outputs
from segmint.catalogs.dataset.selection import (
    Measured,
    Selection,
    image_of,
    number_of,
    possible_ids,
    rows_at,
    rows_named,
    same_request,
    select_rows,
    with_copies,
)
from segmint.catalogs.dataset.tombstones import (
    BLANK,
    RemovedImage,
    RemovedNames,
    TakedownRequest,
    Tombstone,
    by_shard,
    digests_of,
    read_tombstones,
    removed_images,
)
from segmint.catalogs.layout import image_stem
from segmint.catalogs.reasons import Reason
from segmint.infra.errors import UsageError, raise_problems
from segmint.infra.storage.location import Location
from segmint.infra.uris import fit_to_keep
from segmint.infra.wording import counted, some
from segmint.operators.shards.committed_rows import read_file, read_table
from segmint.operators.shards.near_copies import (
    NearCopy,
    WantedPictures,
    near_copies,
    pictures_at,
    wanted_pictures,
)

SHOWN = 20
"""Maximum number of rows in the text form of the list. JSON contains all rows."""

KEPT = "same bytes or pixels, not removed (pass --with-copies)"

SIMILAR = "look alike, not removed (pass --with-similar, or --other-picture if they're different)"

Images = Mapping[int, RemovedImage]  # by ordinal


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
        if self.kept:
            lines.append(f"{KEPT}: {some(self.kept, SHOWN)}")
        if self.similar:
            lines.append(f"{SIMILAR}: {some(self.similar, SHOWN)}")
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


def _check(selection: Selection, taken: Images, request: TakedownRequest, earlier: Sequence[Tombstone]) -> None:
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


def _half_removed(selection: Selection, taken: Images, names: Iterable[str]) -> Iterator[str]:
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
