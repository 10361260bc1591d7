"""`segmint takedown --prove`: search for a removed image in all files that a dataset references."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from segmint.catalogs.dataset.annotations.names import of_images
from segmint.catalogs.dataset.commits import Commit, CommitLog
from segmint.catalogs.dataset.manifest import DatasetManifest, load_manifest
from segmint.catalogs.dataset.outputs import OutputNote, line_of, read_notes
from segmint.catalogs.dataset.selection import rows_named
from segmint.catalogs.dataset.tombstones import RemovedImage, RemovedNames, read_tombstones
from segmint.catalogs.dataset.unaccounted import unknown_files
from segmint.catalogs.layout import (
    DATA_KINDS,
    REPORT,
    DamagedDatasetError,
    image_name,
    image_stem,
    is_part_path,
    parse_data_path,
)
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.tars import BadTarError, TarReader
from segmint.infra.threads import map_ahead
from segmint.infra.wording import counted
from segmint.operators.schemas import SCHEMAS
from segmint.operators.shards.committed_rows import read_file, read_table
from segmint.operators.shards.revise import with_latest_commit

_THREADS = 16
_PIECE = 4 << 20
_SHORT_NAME = re.compile(rb"\d*|.{1,3}")


@dataclass(frozen=True)
class RemovalProof:
    """Locations that were searched for a removed image, and those where it was found."""

    dataset: str
    images: tuple[RemovedImage, ...]  # as named by the tombstones
    reasons: tuple[str, ...]  # of the tombstones
    versions_before: tuple[str, ...]  # digests named by the tombstones
    shards: int  # whose four files were read
    files: int  # of reports and outputs, read in full
    found: tuple[str, ...]
    unsearched: tuple[str, ...]  # recorded outputs that can't be reached from here

    def to_dict(self) -> dict[str, Any]:
        """Return the result for JSON."""
        images = [image.model_dump(mode="json") for image in self.images]
        return {**asdict(self), "images": images}

    def lines(self) -> list[str]:
        """Return the result as lines of text."""
        names = ", ".join(f"{image_stem(image.id)} ({image.image_id})" for image in self.images)
        verdict = f"found in {counted(len(self.found), 'place')}" if self.found else "not found"
        return [
            f"{names}: taken down ({'; '.join(self.reasons)})",
            f"searched {counted(self.shards, 'committed shard')}, the catalog, the names of all other files and older "
            f"versions, and {counted(self.files, 'file')} of reports, exports, and other folders",
            *(f"found: {line}" for line in self.found),
            *(f"not checked: {line}" for line in self.unsearched),
            f"{verdict}" + (", except possibly in what wasn't searched" if self.unsearched else ""),
        ]


def prove(dataset: Location, name: str) -> RemovalProof:
    """Search for a removed image, by its image_id or number, in all files that the dataset references.

    Searches every committed file, the catalog, the names of all other files (including older versions in a bucket),
    files that are not segmint's, the report, and the recorded outputs. Changes nothing. Raises `UsageError` for an
    image that no tombstone names, and `DamagedDatasetError` for files that cannot be read.
    """
    manifest = load_manifest(dataset)
    tombstones = [
        (tombstone, image)
        for tombstone in read_tombstones(dataset)
        for image in tombstone.images
        if name in (image.image_id, str(image.id), image_stem(image.id))
    ]
    if not tombstones:
        raise UsageError(
            f"no tombstone of {dataset} lists {name!r}: expected the image_id or id of an image that was taken down"
        )
    images = tuple({image.ordinal: image for _, image in tombstones}.values())
    names = RemovedNames.of(image.model_copy(update={"shared": False}) for image in images)
    found = [f"the catalog row with ordinal {ordinal}" for ordinal in rows_named(dataset, manifest, names)]
    committed = list(CommitLog(dataset).committed())

    def look(shard: int) -> list[str]:
        return with_latest_commit(dataset, shard, lambda commit: list(_in_shard(dataset, commit, images, names))) or []

    for lines in map_ahead(look, committed, _THREADS, 2 * _THREADS, "prove"):
        found += lines
    found += _by_name(dataset, manifest, {image.ordinal // manifest.images_per_shard for image in images})
    found += [f"{path} is a submission for it" for path in of_images(dataset, {image.ordinal for image in images})]
    pattern = _pattern(images)
    files = 0
    skipped: list[str] = []
    for note in (None, *read_notes(dataset)):
        place = dataset / REPORT if note is None else note.location(dataset)
        paths = None if place is None else _files_of(place, note, images)
        if place is None or paths is None:
            skipped.append(REPORT if note is None else line_of(note))
            continue
        for path in paths:
            files += 1
            if path.rpartition("/")[2] in {image_name(image.id) for image in images}:
                found.append(f"{place / path}")
            elif _holds(place / path, pattern):
                found.append(f"{place / path} mentions it")
    for path in unknown_files(dataset):
        if (dataset / path).link_target() is not None or not (dataset / path).exists():
            skipped.append(f"{path} (not written by segmint)")
            continue
        files += 1
        if _holds(dataset / path, pattern):
            found.append(f"{path} mentions it")
    return RemovalProof(
        dataset=str(dataset),
        images=images,
        reasons=tuple(dict.fromkeys(tombstone.reason for tombstone, _ in tombstones)),
        versions_before=tuple(dict.fromkeys(t.version_before for t, _ in tombstones if t.version_before)),
        shards=len(committed),
        files=files,
        found=tuple(found),
        unsearched=tuple(skipped),
    )


def _in_shard(dataset: Location, commit: Commit, images: Sequence[RemovedImage], names: RemovedNames) -> Iterator[str]:
    """Yield the locations in a commit's files that contain one of the images."""
    own = {image.ordinal for image in images if image.ordinal in range(*commit.ordinals)}  # it may claim any range
    for kind in SCHEMAS:
        if kind == "masks" and not own:
            continue  # masks contain no names beyond those of the images
        entry = commit.file(kind)
        for row in read_table(read_file(dataset, entry), kind).to_pylist():
            blank = kind == "rejects" and not row["image_id"] and not row["uri"]
            source = kind != "masks" and names.names_source(row["uri"], row.get("source_sha256"))
            if row["image_id"] in names.image_ids or source or (row["ordinal"] in own and not blank):
                yield f"{entry.path}, ordinal {row['ordinal']}"
    if own:
        entry = commit.file("shards")
        stems = {image_stem(ordinal + 1) for ordinal in own}
        try:
            with (dataset / entry.path).open() as stream:
                members = [member.name for member in TarReader(stream)]
        except BadTarError as error:
            raise DamagedDatasetError(f"{dataset / entry.path} is not a readable shard: {error}") from error
        yield from (f"{entry.path}, {name}" for name in members if name.partition(".")[0] in stems)


def _by_name(dataset: Location, manifest: DatasetManifest, shards: set[int]) -> Iterator[str]:
    """Yield unreferenced data files of these shards and unreferenced catalog parts, even if only old versions exist."""
    named = {part.path for part in manifest.catalog}
    for commit in CommitLog(dataset).read_all(only=shards):
        named |= {entry.path for entry in commit.files}
    for kind in DATA_KINDS:
        for name in (dataset / kind).walk_ever():
            data_file = parse_data_path(f"{kind}/{name}")
            if data_file is not None and data_file.shard in shards and f"{kind}/{name}" not in named:
                yield f"{kind}/{name}: not in any commit, and may contain the image"
    for name in (dataset / "catalog").walk_ever():
        if is_part_path(f"catalog/{name}") and f"catalog/{name}" not in named:
            yield f"catalog/{name}: not in any manifest, and may list the image"


def _files_of(place: Location, note: OutputNote | None, images: Sequence[RemovedImage]) -> list[str] | None:
    """Return the files to search in an output or the dataset's report, or None if the output does not exist."""
    if note is None:
        return [entry.name for entry in place.walk()]
    pictures = [f"images/{image_name(image.id)}" for image in images]
    paths = [path for path in (*note.files, *pictures) if (place / path).exists()]
    return paths if paths or not note.files else None


def _pattern(images: Sequence[RemovedImage]) -> re.Pattern[bytes]:
    """Return a pattern that matches the images' names as words. Omits names with only digits or very few letters."""
    words = {image_stem(image.id) for image in images}
    words |= {word for image in images for word in (image.image_id, image.uri, image.sha256) if word}
    long = [word.encode() for word in sorted(words) if not _SHORT_NAME.fullmatch(word.encode())]
    return re.compile(rb"(?<![\w-])(?:" + b"|".join(map(re.escape, long)) + rb")(?![\w-])")


def _holds(file: Location, pattern: re.Pattern[bytes]) -> bool:
    """Return whether a file contains one of the names. The file is streamed."""
    before = b""
    with file.open() as stream:
        while piece := stream.read(_PIECE):
            if pattern.search(before + piece):
                return True
            before = piece[-4096:]
    return False
