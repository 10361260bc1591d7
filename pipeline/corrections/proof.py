"""`--prove` of takedowns and redactions: search for an image in all files that a dataset references.

After a takedown, the search looks for the image's names, numbers, and fingerprints. It searches all files for the
SHA-256 of the image's pixels and released JPEGs, and compares perceptual hashes with all committed images. After a
redaction, it only looks for the SHA-256 of the JPEGs from before the redaction.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from segmint.catalogs.dataset.annotations.names import of_images
from segmint.catalogs.dataset.commits import Commit, CommitLog
from segmint.catalogs.dataset.fingerprints import Fingerprint, by_image, read_fingerprints
from segmint.catalogs.dataset.manifest import DatasetManifest, load_manifest
from segmint.catalogs.dataset.outputs import FILES_LIST, OutputNote, line_of, read_notes, where_is
from segmint.catalogs.dataset.selection import possible_ids, rows_named, select_row
from segmint.catalogs.dataset.tombstones import RemovedImage, RemovedNames, Tombstone, read_tombstones
from segmint.catalogs.dataset.unaccounted import unknown_files
from segmint.catalogs.layout import DATA_KINDS, REPORT, DamagedDatasetError, image_stem, is_part_path, parse_data_path
from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.progress import track
from segmint.infra.storage.location import Location
from segmint.infra.storage.stores import ObjectInfo
from segmint.infra.tars import BadTarError, TarReader, is_plain_file
from segmint.infra.threads import map_ahead
from segmint.infra.uris import LOCAL, is_below, scheme
from segmint.infra.wording import counted
from segmint.operators.schemas import SCHEMAS
from segmint.operators.shards.committed_rows import read_file, read_table, stage_fields
from segmint.operators.shards.near_copies import near_copies, wanted_pictures
from segmint.operators.shards.revise import with_latest_commit
from segmint.pipeline.corrections.search import SHORT_NAME, Trace, WantedImage, plain_values, search_file

MOST_FILES = 1_000_000
MOST_BYTES = 10**12
"""Maximum number of files and bytes to search in an output."""

_THREADS = 16


@dataclass(frozen=True)
class ImageProof:
    """Places that were searched for an image, and places where the image was found."""

    dataset: str
    images: tuple[str, ...]  # with their names, if tombstones contain them
    reasons: tuple[str, ...]  # reasons in the tombstones
    versions_before: tuple[str, ...]  # digests in the tombstones
    hashes: int  # number of SHA-256 hashes of pixels and JPEGs in the search
    shards: int  # shards whose four files were read
    files: int  # files that were read in full: reports, outputs, and unknown files
    found: tuple[str, ...]
    not_checked: tuple[str, ...]
    gone: tuple[str, ...]  # outputs that are gone from their recorded place, and missing files

    def lines(self) -> list[str]:
        by_name, catalog, state = "", "", "redacted"
        if self.reasons:
            by_name, catalog = "names, numbers in Parquet and JSON, and ", "the catalog, "
            state = f"taken down ({'; '.join(self.reasons)})"
        elif any(each.startswith("shards/") and f", {self.images[0]}.jpg" in each for each in self.found):
            state = "a redaction was begun"
        verdict = "not found"
        if self.found:
            verdict = f"found in {counted(len(self.found), 'place')}"
        if self.not_checked:
            verdict += ", but not everything could be checked"
        lines = [
            f"{', '.join(self.images)}: {state}",
            f"searched for its {by_name}{counted(self.hashes, 'SHA-256')} of its pixels and former JPEGs; scaled, "
            "cropped, or re-encoded copies are only recognized among committed images; copies encoded as text or "
            "numbers or inside files of other kinds, such as TFRecord or pickle, and names in UTF-16 or UTF-32 aren't "
            "recognized",
            f"searched {counted(self.shards, 'committed shard')}, {catalog}the names of other data files and older "
            f"versions, and {counted(self.files, 'file')} of reports, exports, and other folders, including the rows "
            "of Parquet files and the files in tar and zip archives",
            "not searched: downloads, backups, caches, and copies of outputs in places that the dataset doesn't note",
        ]
        for word, found in (("gone", self.gone), ("found", self.found), ("not checked", self.not_checked)):
            lines += [f"{word}: {line}" for line in found]
        return [*lines, verdict]


def prove(dataset: Location, name: str, at: Sequence[str] = ()) -> ImageProof:
    """Search for a removed image in all files that the dataset references. `name` is the image's image_id or number.

    Searches every committed file, the catalog, the names of all other files (including older versions in a bucket),
    files that segmint didn't write, the report, and the recorded outputs. If an output was moved, add an item NAME=URI
    to `at`. NAME is the place in the output's note, and URI is the current place.

    Changes nothing. Raises `UsageError` if no tombstone names the image or a place in `at` has no note, and
    `DamagedDatasetError` if a file can't be read.
    """
    manifest = load_manifest(dataset)
    ids = possible_ids(name)
    tombstones = []
    by_ordinal = {}
    for tombstone in read_tombstones(dataset):
        for image in tombstone.images:
            if not ids.isdisjoint((image.image_id, image.id)):
                tombstones.append(tombstone)
                by_ordinal[image.ordinal] = image
    if not tombstones:
        expected = "expected the image_id or id of an image that was taken down"
        raise UsageError(f"no tombstone of {dataset} lists {name!r}: {expected}")
    images = tuple(by_ordinal.values())
    known = _fingerprints(dataset)
    digests = frozenset[str]()
    not_checked = []
    for image in images:
        if image.id in known:
            digests |= known[image.id].digests
        else:
            not_checked.append(f"copies of {image_stem(image.id)} with another name: its fingerprints aren't stored")
    for image in images:
        if SHORT_NAME.fullmatch(image.image_id):
            not_checked.append(f"the name {image.image_id!r} outside of tables: too short, or only digits")
    search = _Search(dataset, WantedImage(images, digests), not_checked=not_checked)
    pictures = wanted_pictures(dataset, {image.id for image in images})
    advice = "pass --with-similar to take it down, or --other-picture if it's a different picture"
    for copy in near_copies(dataset, CommitLog(dataset).read_all(), pictures):
        search.found.append(f"{copy.line()}; {advice}")
    for ordinal in rows_named(dataset, manifest, _names(images)):
        search.found.append(f"the catalog row with ordinal {ordinal}")
    ordinals = set(by_ordinal)
    for path in of_images(dataset, ordinals):
        search.found.append(f"{path} is a submission for it")
    titles = [f"{image_stem(image.id)} ({image.image_id})" for image in images]
    return search.proof(manifest, ordinals, at, titles, tombstones)


def prove_redaction(dataset: Location, name: str, at: Sequence[str] = ()) -> ImageProof:
    """Search for an image's JPEGs from before its redactions, in the same places as `prove`.

    Raises `UsageError` if `name` isn't the image_id or number of an image, or if no redaction of the image is recorded.
    """
    manifest = load_manifest(dataset)
    image = select_row(dataset, manifest, name)
    jpegs = _fingerprints(dataset).get(image.id, Fingerprint()).released
    if not jpegs:
        raise UsageError(f"no redaction of {image_stem(image.id)} is recorded in fingerprints/ of {dataset}")
    return _Search(dataset, WantedImage(jpegs=frozenset(jpegs))).proof(
        manifest, {image.ordinal}, at, [image_stem(image.id)]
    )


def _names(images: Iterable[RemovedImage]) -> RemovedNames:
    """Return the names of the images, including those that other images share."""
    return RemovedNames.of(image.model_copy(update={"shared": False}) for image in images)


def _fingerprints(dataset: Location) -> dict[int, Fingerprint]:
    """Return the fingerprints that weren't removed, keyed by image number."""
    known = by_image(read_fingerprints(dataset).values())
    return {id: each for id, each in known.items() if not each.forgotten}


@dataclass
class _Search:
    """Search for an image, with the results so far."""

    dataset: Location
    wanted: WantedImage
    files: int = 0
    found: list[str] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)

    def proof(
        self,
        manifest: DatasetManifest,
        ordinals: set[int],
        at: Sequence[str],
        images: Sequence[str],
        tombstones: Sequence[Tombstone] = (),
    ) -> ImageProof:
        """Search the committed shards, the names of other files, the report, unknown files, and the outputs."""
        notes = read_notes(self.dataset)
        places = sorted({note.place for note in notes})
        moved = []
        for text in at:
            place = max((each for each in places if text.startswith(f"{each}=")), key=len, default="")
            uri = text[len(place) + 1 :]
            if not (place and uri):
                known = ", ".join(places) or "none is noted"
                raise UsageError(f"--at: expected NAME=URI with the NAME of a recorded output: {known}")
            moved.append((place, uri))
        committed = list(CommitLog(self.dataset).committed())
        staged = frozenset(column.table for column in (*manifest.stages, *manifest.applied_columns))

        def look(shard: int) -> list[str]:
            return with_latest_commit(self.dataset, shard, partial(_in_shard, self.dataset, self.wanted, staged)) or []

        looks = map_ahead(look, committed, _THREADS, 2 * _THREADS, "prove")
        for lines in track(looks, "shards", len(committed)):
            self.found += lines
        self.found += _by_name(self.dataset, manifest, {each // manifest.images_per_shard for each in ordinals})
        self.look_below(self.dataset / REPORT)
        for path in unknown_files(self.dataset):
            file = self.dataset / path
            try:
                is_file = file.link_target() is None and file.exists()
            except SegmintError:
                is_file = False
            if is_file:
                self.add(search_file(file, path, path, self.wanted))
            else:
                self.not_checked.append(f"{path}: a link, a special file, an older version, or an unusable name")
        groups: dict[str, list[OutputNote]] = {}
        for note in notes:
            groups.setdefault(note.where, []).append(note)
        for group in groups.values():
            own = {note.place for note in group}
            self.look_at(group, [uri for place, uri in moved if place in own])
        return ImageProof(
            dataset=str(self.dataset),
            images=tuple(images),
            reasons=tuple(dict.fromkeys(tombstone.reason for tombstone in tombstones)),
            versions_before=tuple(dict.fromkeys(t.version_before for t in tombstones if t.version_before)),
            hashes=len(self.wanted.jpegs),
            shards=len(committed),
            files=self.files,
            found=tuple(dict.fromkeys(self.found)),
            not_checked=tuple(dict.fromkeys(self.not_checked)),
            gone=tuple(self.gone),
        )

    def add(self, traces: Sequence[Trace]) -> None:
        """Add the traces from a file."""
        self.files += 1
        for found, line in traces:
            if found:
                self.found.append(line)
            else:
                self.not_checked.append(line)

    def look_below(self, place: Location, own: str = "") -> set[str]:
        """Search a file or a folder, and return the paths of the files inside the folder.

        In a folder, the file `own` and the dataset are skipped.
        """
        if place.exists():
            self.add(search_file(place, str(place), place.name, self.wanted))
            return {""}
        names, size, whole = set[str](), 0, True
        around = is_below(self.dataset.uri, place.uri)

        def entries() -> Iterator[ObjectInfo]:
            nonlocal size, whole
            for entry in place.walk(include_temporary=True, on_skip=lambda *_: None):
                if around and is_below(str(place / entry.name), self.dataset.uri):
                    continue
                size += entry.size
                if len(names) == MOST_FILES or size > MOST_BYTES:
                    whole = False
                    self.not_checked.append(f"{place}: more than the first {counted(len(names), 'file')}")
                    return
                names.add(entry.name)
                if entry.name != own:
                    yield entry

        def look(entry: ObjectInfo) -> list[Trace]:
            return search_file(place / entry.name, str(place / entry.name), entry.name, self.wanted)

        for traces in map_ahead(look, entries(), _THREADS, 2 * _THREADS, "prove"):
            self.add(traces)
        if not whole:
            return names
        for name in sorted(place.versioned()):
            searched = name in names and scheme(place.uri) == LOCAL
            if not (searched or (around and is_below(str(place / name), self.dataset.uri))):
                self.not_checked.append(f"{place / name}: a link, a special file, or an older version")
        return names

    def look_at(self, notes: Sequence[OutputNote], uris: Sequence[str]) -> None:
        """Search an output. `notes` are the notes about its location, and `uris` other places that the user named.

        An empty place only counts as checked if the note names it, and if it's beside the dataset or the user named it.
        """
        note, advice = notes[-1], f"pass --at '{notes[0].place}=URI'"
        all_uris = list(uris)
        listed, there = set[str](), set[str]()
        for each in notes:
            near = each.location(self.dataset)
            if near is not None:
                all_uris.append(str(near))
            if each.listed:
                listed.add(each.listed)
        places = [Location(self.dataset.storage, uri) for uri in dict.fromkeys(all_uris)]
        problems = []
        if not places:
            problems.append(f"not near the dataset, so its location isn't noted; {advice}")
        try:
            noted = [place for place in places if where_is(place) == note.where]
            known = [place for place in places if _holds_output(place, notes)]
            for place in places:
                sure, problem = place in noted and (str(place) in uris or note.beside), ""
                names = self.look_below(place, FILES_LIST if place in known and listed else "")
                if not names and sure:
                    self.gone.append(f"nothing is at {place}, where segmint {note.command} wrote")
                elif not names:
                    problem = f"nothing is at {place}, but the output may have been moved; {advice}"
                elif place in known and listed:
                    there.add((place / FILES_LIST).sha256())
                    self.gone += _missing(place, names)
                elif any(each.listed or not each.complete for each in notes):
                    problem = f"{place} was searched, but it has no {FILES_LIST} of a complete export of this dataset"
                elif place not in known and not sure:
                    problem = f"{place} was searched, but contains another output; {advice}"
                if problem and (place in noted or str(place) in uris or not (noted or known)):
                    problems.append(problem)
            if there and listed - there:
                self.gone.append(f"an earlier export at {note.place}, which was replaced; if it was moved, {advice}")
        except (SegmintError, OSError) as error:
            problems.append(str(error))
        for problem in problems:
            self.not_checked.append(f"{line_of(note)}: {problem}")


def _in_shard(dataset: Location, wanted: WantedImage, staged: Collection[str], commit: Commit) -> list[str]:
    """Return the locations in a commit's files that contain one of the images.

    `staged` contains the tables that may have columns of custom stages. Such a column may name any image.
    """
    found = list[str]()
    names = _names(wanted.images)
    own = {image.ordinal for image in wanted.images if image.ordinal in range(*commit.ordinals)}
    for kind in SCHEMAS if wanted.images else ():
        if kind == "masks" and not own and kind not in staged:
            continue  # masks contain no other names than the images
        entry = commit.file(kind)
        table = read_table(read_file(dataset, entry), kind)
        for row in table.to_pylist():
            blank = kind == "rejects" and not row["image_id"] and not row["uri"]
            source = kind != "masks" and names.names_source(row["uri"], row.get("source_sha256"))
            source = source or (kind == "images" and row["pixels_sha256"] in wanted.jpegs)
            if row["image_id"] in names.image_ids or source or (row["ordinal"] in own and not blank):
                found.append(f"{entry.path}, ordinal {row['ordinal']}")
            for column in stage_fields(table):
                if any(wanted.is_value(name, value) for name, value in plain_values("", row[column.name])):
                    found.append(f"{entry.path}, ordinal {row['ordinal']}, {column.name}")
    if own or wanted.jpegs:
        entry = commit.file("shards")
        stems = {image_stem(ordinal + 1) for ordinal in own}
        try:
            with (dataset / entry.path).open() as stream:
                reader = TarReader(stream)
                for member in reader:
                    if member.name.partition(".")[0] in stems:
                        found.append(f"{entry.path}, {member.name}")
                    elif is_plain_file(member) and hashlib.sha256(reader.read(member)).hexdigest() in wanted.jpegs:
                        found.append(f"{entry.path}, {member.name} is its JPEG")
        except BadTarError as error:
            raise DamagedDatasetError(f"{dataset / entry.path} is not a readable shard: {error}") from error
    return found


def _by_name(dataset: Location, manifest: DatasetManifest, shards: set[int]) -> Iterator[str]:
    """Yield unreferenced data files of these shards and unreferenced catalog parts, even if only old versions exist."""
    named = {part.path for part in manifest.catalog}
    for commit in CommitLog(dataset).read_all(only=shards):
        for entry in commit.files:
            named.add(entry.path)
    for kind in DATA_KINDS:
        for name in (dataset / kind).walk_ever():
            data_file = parse_data_path(f"{kind}/{name}")
            if data_file is not None and data_file.shard in shards and f"{kind}/{name}" not in named:
                yield f"{kind}/{name}: not in any commit, and may contain the image"
    for name in (dataset / "catalog").walk_ever():
        if is_part_path(f"catalog/{name}") and f"catalog/{name}" not in named:
            yield f"catalog/{name}: not in any manifest, and may list the image"


def _holds_output(place: Location, notes: Sequence[OutputNote]) -> bool:
    """Return whether a place contains a file with the bytes that a note names. For an export, this file is its list."""
    lists, files = set[tuple[str, str]](), set[tuple[str, str]]()
    for note in notes:
        files.update(note.files.items())
        if note.listed:
            lists.add((FILES_LIST, note.listed))
    if place.exists():
        return place.sha256() in {sha256 for _, sha256 in files}
    return any((place / name).exists() and (place / name).sha256() == sha256 for name, sha256 in lists or files)


def _missing(place: Location, names: Collection[str]) -> list[str]:
    """Return a line about the files that an export's list names but that don't exist here."""
    count, first = 0, ""
    with (place / FILES_LIST).open() as rows:
        next(rows)
        for row in rows:
            if (path := json.loads(row)["path"]) not in names:
                count, first = count + 1, first or path
    if not count:
        return []
    return [f"{counted(count, 'file')} of {place}, such as {first}"]
