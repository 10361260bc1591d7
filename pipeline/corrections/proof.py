"""`--prove` of takedowns and redactions: search for an image in all files that a dataset references.

After a takedown, the search looks for the image's names, numbers, and fingerprints. It searches all files for the
SHA-256 of the image's pixels and released JPEGs, and compares perceptual hashes with all committed images. After a
redaction, it only looks for the SHA-256 of the JPEGs from before the redaction.

Search of a file for an image: its names, and the SHA-256 of its JPEGs, including inside Parquet, tar, and zip.
"""

import hashlib
import html
import io
import json
import lzma
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property, partial
from typing import Any, BinaryIO, NamedTuple, cast
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from segmint.catalogs.dataset.commits import Commit, CommitLog
from segmint.catalogs.dataset.inventory import unknown_files
from segmint.catalogs.dataset.manifest import (
    DatasetManifest,
    load_manifest,
    manifest_generations,
    manifest_name,
)
from segmint.catalogs.dataset.outputs import FILES_LIST, OUTPUTS, OutputNote, line_of, read_notes, where_is
from segmint.catalogs.dataset.selection import possible_ids, rows_named, select_row
from segmint.catalogs.dataset.submissions import of_images
from segmint.catalogs.dataset.tombstones import (
    Fingerprint,
    RemovedImage,
    RemovedNames,
    Tombstone,
    by_image,
    read_fingerprints,
    read_tombstones,
)
from segmint.catalogs.dataset.versions import VERSIONS
from segmint.catalogs.layout import (
    DATA_KINDS,
    MOST_MEMBER_BYTES,
    REPORT,
    DamagedDatasetError,
    bytes_sha256,
    image_stem,
    is_known,
    is_part_path,
    parse_data_path,
)
from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.progress import track
from segmint.infra.stopping import map_ahead
from segmint.infra.storage.location import Location
from segmint.infra.storage.stores import ObjectInfo
from segmint.infra.tars import BadTarError, TarReader, is_plain_file
from segmint.infra.uris import LOCAL, base_name, is_below, scheme
from segmint.infra.wording import counted
from segmint.operators.rows import MASKS_PER_IMAGE_LIMIT, SCHEMAS
from segmint.operators.shards.near_copies import near_copies, wanted_pictures
from segmint.operators.shards.revise import read_file, read_table, stage_fields, with_latest_commit

_PIECE = 4 << 20
_OVERLAP = 8192  # longer than any name
_ROWS = 64  # rows of a Parquet file to hold in memory
SHORT_NAME = re.compile(r"\d*|.{1,3}")
_KIND = re.compile(
    rb"(?P<tar>.{100}(?:.{157}ustar|(?:[0-7 ]{7}\0){3}))|(?P<zip>PK(?:\x03\x04|\x05\x06))|(?P<parquet>PAR1)"
    rb"|(?P<encrypted>PARE)|(?P<gz>\x1f\x8b)|(?P<bz2>BZh)|(?P<xz>\xfd7zXZ)|(?P<zst>\x28\xb5\x2f\xfd)|(?P<rar>Rar!)"
    rb"|(?P<seven_zip>7z\xbc\xaf)|(?P<lz4>\x04\x22\x4d\x18)|(?P<arrow>ARROW1)|(?P<feather>FEA1)|(?P<pdf>%PDF)"
    rb"|(?P<sqlite>SQLite format 3\0)|(?P<hdf5>\x89HDF\r\n)|(?P<program>MZ|\x7fELF)",
    re.DOTALL,
)
_ENDINGS = "zip tar tgz gz bz2 xz zst lz4 7z rar cab iso dmg parquet arrow feather npz h5 hdf5 sqlite db pdf exe"
_IMAGE_COLUMNS = frozenset({"id", "image", "image_id", "segmint_id"})
_MASK_COLUMNS = frozenset({"annotation_id", "mask", "mask_id", "masks.id", "objects.id"})
_UNREADABLE = (
    *(SegmintError, OSError, EOFError, ValueError, RuntimeError, LookupError, ArithmeticError, TypeError),
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, pa.ArrowException),
)


class Trace(NamedTuple):
    """Place that contains the image. If `found` is false, the place couldn't be checked."""

    found: bool
    line: str


@dataclass(frozen=True)
class WantedImage:
    """Names and numbers of taken-down images, and the SHA-256 of their JPEGs and pixels.

    Without `images`, the search only looks for the JPEGs.
    """

    images: tuple[RemovedImage, ...] = ()
    jpegs: frozenset[str] = frozenset()

    @cached_property
    def _words(self) -> tuple[bytes, ...]:
        """Names as they appear in text, JSON, HTML, and URLs.

        Names with only digits or very few letters are omitted.
        """
        words = {word for each in self.images for word in (each.image_id, each.uri, each.sha256) if word}
        long = {image_stem(image.id) for image in self.images} | {w for w in words if not SHORT_NAME.fullmatch(w)}
        escaped = {form for word in long for form in (json.dumps(word)[1:-1], html.escape(word), quote(word))}
        return tuple(word.encode(errors="surrogateescape") for word in sorted(long | escaped))

    @cached_property
    def _pattern(self) -> re.Pattern[bytes]:
        words = b"|".join(map(re.escape, self._words))
        stems = "|".join(image_stem(image.id) for image in self.images).encode()
        hashed = rb"-[0-9a-f]{12}\."  # in a shard's name
        return re.compile(rb"(?<![\w-])(?:%b)(?![\w-])|(?<![A-Za-z0-9])(?:%b)(?![0-9]|%b)" % (words, stems, hashed))

    @cached_property
    def _numbers(self) -> re.Pattern[bytes]:
        numbers = "|".join(str(image.id) for image in self.images).encode()
        region = rb'id(?="\s*:\s*\d+\s*,\s*"kind")'  # in the format of `redact`; other ids may belong to masks
        keys = rb'"(?:image|image_id|segmint_id|%b)"\s*:\s*' % region
        number = rb"(?:%b)(?:\.0+)?" % numbers
        values = rb"%b(?![\w.])" % number
        if self._reads_texts:
            values += rb'|"%b"' % number
        return re.compile(rb"%b(?:%b)" % (keys, values))

    @property
    def _reads_texts(self) -> bool:
        """Return whether a text such as "7" counts as a number. If a removed image has such a name, it doesn't."""
        return not any(image.image_id.isdigit() for image in self.images)

    def is_mentioned(self, data: bytes) -> bool:
        """Return whether bytes contain one of the names as a word, or one of the numbers in JSON."""
        named = any(word in data for word in self._words) and self._pattern.search(data)
        return bool(named or (self.images and self._numbers.search(data)))

    def is_named(self, path: str) -> bool:
        """Return whether a path contains one of the names, or names the source file or an embedding of the image."""
        own = base_name(path).partition(".")[0] in self.jpegs
        own = own or any(base_name(path) == base_name(image.uri) for image in self.images if image.uri)
        return own or self.is_mentioned(path.encode(errors="surrogateescape"))

    def is_value(self, column: str, value: Any) -> bool:
        """Return whether a table's value is one of the JPEGs or numbers, or contains one of the names."""
        if isinstance(value, bytes | str):
            data = value.encode(errors="surrogateescape") if isinstance(value, str) else value
            named = column in _IMAGE_COLUMNS and any(image.image_id == value for image in self.images)
            if named or self.is_mentioned(data) or bytes_sha256(data) in self.jpegs:
                return True
            if not self._reads_texts:
                return False
        if column not in _MASK_COLUMNS | _IMAGE_COLUMNS:
            return False
        number = _whole_number(value)
        if number is not None and column in _MASK_COLUMNS:
            number //= MASKS_PER_IMAGE_LIMIT
        return any(image.id == number for image in self.images)


def _whole_number(value: Any) -> int | None:
    """Return a table's value as an integer if it is one, a float such as 7.0, or a text such as "7". Otherwise None."""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str):
        value = float(value) if re.fullmatch(r"\s*\d{1,15}(?:\.0*)?\s*", value, re.ASCII) else None
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal) or value != value // 1:
        return None
    return int(value)


def search_file(file: Location, where: str, path: str, wanted: WantedImage) -> list[Trace]:
    """Return the traces of the image in a file. Messages call the file `where`. The file is streamed.

    `path` is the part of the file's path that may contain a name of the image.
    """
    if wanted.is_named(path):
        return [Trace(True, where)]
    traces: list[Trace] = []
    try:
        with file.open() as stream:
            traces.extend(_search(stream, where, wanted))
    except _UNREADABLE as error:
        traces.append(Trace(False, f"{where}: can't be read to its end: {' '.join(str(error).split())[:200]}"))
    return traces


def _search(stream: BinaryIO, where: str, wanted: WantedImage, archives: int = 0) -> Iterator[Trace]:
    """Yield the traces in a seekable stream. `archives` is the number of archives that enclose the stream."""
    head = stream.read(512)
    stream.seek(0)
    kind = (match.lastgroup or "") if (match := _KIND.match(head)) else ""
    ending = where.rpartition(".")[2].lower()
    if kind == "parquet":
        yield from _in_parquet(stream, where, wanted)
    elif kind in {"tar", "zip"} and archives < 2:
        yield from (_in_tar if kind == "tar" else _in_zip)(stream, where, wanted, archives + 1)
    else:
        if kind or (head and ending in _ENDINGS.split()):
            why = "an archive inside two others" if kind in {"tar", "zip"} else f"{kind} files aren't opened"
            yield Trace(False, f"{where}: {why if kind else f'not opened as a {ending} file'}")
        digest, before, mentioned = hashlib.sha256(), b"", False
        while piece := stream.read(_PIECE):
            digest.update(piece)
            mentioned = mentioned or wanted.is_mentioned(before + piece)
            before = piece[-_OVERLAP:]
        if digest.hexdigest() in wanted.jpegs:
            yield Trace(True, f"{where} is its JPEG")
        elif mentioned:
            yield Trace(True, f"{where} mentions it")


def _in_tar(stream: BinaryIO, where: str, wanted: WantedImage, archives: int) -> Iterator[Trace]:
    reader, end = TarReader(stream), 0
    for member in reader:
        name = f"{where}, {member.name}"
        end = member.offset_data + (-(-member.size // 512) * 512 if is_plain_file(member) else 0)
        if wanted.is_named(member.name):
            yield Trace(True, name)
        elif is_plain_file(member) and member.size <= MOST_MEMBER_BYTES:
            yield from _search(io.BytesIO(reader.read(member)), name, wanted, archives)
        elif not (member.isdir() or member.islnk()):  # a hard link's file is a member as well
            yield Trace(False, f"{name}: a link, a special or sparse file, or over {MOST_MEMBER_BYTES >> 20} MiB")
    stream.seek(end)
    if any(piece.strip(b"\0") for piece in iter(lambda: stream.read(_PIECE), b"")):
        yield Trace(False, f"{where}: bytes after its last file")


def _in_zip(stream: BinaryIO, where: str, wanted: WantedImage, archives: int) -> Iterator[Trace]:
    with zipfile.ZipFile(stream) as archive:
        for info in archive.infolist():
            name = f"{where}, {info.filename}"
            if wanted.is_named(info.filename):
                yield Trace(True, name)
            elif info.flag_bits & 1:
                yield Trace(False, f"{name}: encrypted")
            elif not info.is_dir():
                with archive.open(info) as member:
                    yield from _search(cast(BinaryIO, member), name, wanted, archives)


def _in_parquet(stream: BinaryIO, where: str, wanted: WantedImage) -> Iterator[Trace]:
    rows, first, number, columns = 0, 0, 0, set[str]()
    with pq.ParquetFile(stream) as file:
        about = b"\n".join(part for pair in (file.schema_arrow.metadata or {}).items() for part in pair)
        for batch in file.iter_batches(batch_size=_ROWS):
            for row in batch.to_pylist():
                if found := {column for column, value in plain_values("", row) if wanted.is_value(column, value)}:
                    rows, first, columns = rows + 1, first if rows else number, columns | found
                number += 1
    if rows:
        yield Trace(True, f"{where}, {counted(rows, 'row')} from row {first} on ({', '.join(sorted(columns))})")
    elif wanted.is_mentioned(about):
        yield Trace(True, f"{where} mentions it")


def plain_values(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the plain values in a row with their column names. The names of nested columns contain dots."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from plain_values(f"{name}.{key}" if name else str(key), each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from plain_values(name, each)
    else:
        yield name, value


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
        if self.gone and not self.found:
            verdict += "; what is gone may have been moved"
        lines = [
            f"{', '.join(self.images)}: {state}",
            f"searched for its {by_name}{counted(self.hashes, 'SHA-256')} of its pixels and former JPEGs; scaled, "
            "cropped, or re-encoded copies are only recognized among committed images; copies encoded as text or "
            "numbers or inside files of other kinds, such as TFRecord or pickle, values computed from its pixels, such "
            "as embeddings, names in UTF-16 or UTF-32, and numbers in CSV or in lists, as `segmint select` writes, "
            "aren't recognized",
            f"searched {counted(self.shards, 'committed shard')}, {catalog}the names of other data files and older "
            f"versions, and {counted(self.files, 'file')} of reports, exports, and other folders, including the rows "
            "of Parquet files and the files in tar and zip archives",
            "not searched: the source catalog, the original photographs, downloads, backups, caches, and outputs in "
            "places that the dataset doesn't note",
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
        if image.image_id.isdigit():
            not_checked.append(f"the number {image.id} stored as a text, because it may be the name of another image")
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
        places = {note.place: note.place for note in notes}
        known = ", ".join(sorted(places)) or "none is noted"
        for note in notes:
            near = note.location(self.dataset)
            if near is not None:
                places[str(near)] = note.place  # messages show the location
        moved = []
        for text in at:
            name = max((each for each in places if text.startswith(f"{each}=")), key=len, default="")
            uri = text[len(name) + 1 :]
            if not (name and uri):
                raise UsageError(f"--at: expected NAME=URI with the NAME of a recorded output: {known}")
            moved.append((places[name], uri))
        committed = list(CommitLog(self.dataset).committed())
        staged = frozenset(column.table for column in (*manifest.stages, *manifest.applied_columns))

        def look(shard: int) -> list[str]:
            return with_latest_commit(self.dataset, shard, partial(_in_shard, self.dataset, self.wanted, staged)) or []

        looks = map_ahead(look, committed, _THREADS, 2 * _THREADS, "prove")
        for lines in track(looks, "shards", len(committed)):
            self.found += lines
        self.found += _by_name(self.dataset, manifest, {each // manifest.images_per_shard for each in ordinals})
        for path in _texts_of_users(self.dataset):
            self.add(search_file(self.dataset / path, path, path, self.wanted))
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
                    wrote = f"where segmint {note.command} wrote"
                    self.gone.append(f"nothing is at {place}, {wrote} (deleted or moved; if moved, {advice})")
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
                    elif is_plain_file(member) and bytes_sha256(reader.read(member)) in wanted.jpegs:
                        found.append(f"{entry.path}, {member.name} is its JPEG")
        except BadTarError as error:
            raise DamagedDatasetError(f"{dataset / entry.path} is not a readable shard: {error}") from error
    return found


def _texts_of_users(dataset: Location) -> Iterator[str]:
    """Yield the files that contain what users passed to commands: reasons, names of outputs, and arguments."""
    yield from map(manifest_name, manifest_generations(dataset))
    for folder in (OUTPUTS, VERSIONS):
        for entry in (dataset / folder).list():
            if is_known(f"{folder}/{entry.name}"):  # others are searched with the unknown files
                yield f"{folder}/{entry.name}"


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
