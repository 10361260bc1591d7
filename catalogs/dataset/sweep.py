"""Deletes what nothing names: leftovers of writers and builds that died, and generations that were replaced."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from segmint.catalogs.dataset.commits import CommitLog, generations_of
from segmint.catalogs.dataset.manifest import read_manifest
from segmint.catalogs.dataset.tombstones import TOMBSTONES
from segmint.catalogs.layout import (
    CATALOG,
    COMMITS,
    DATA_KINDS,
    SUMMARIES,
    DataFile,
    commit_name,
    is_part_path,
    parse_data_path,
)
from segmint.infra.storage.location import Location
from segmint.infra.storage.stores import TEMPORARY_PREFIX, ObjectInfo
from segmint.infra.threads import map_ahead
from segmint.infra.uris import join

_FOLDERS = (*DATA_KINDS, COMMITS, CATALOG, SUMMARIES, TOMBSTONES, "")

GRACE = timedelta(hours=24)
"""The age at which a file that no commit names is deleted: longer than any correction takes from file to commit.

A writer of a first generation does not need it: nothing of a shard is swept before the shard is committed."""


def sweep(
    dataset: Location,
    grace: timedelta = GRACE,
    now: datetime | None = None,
    threads: int = 16,
) -> list[str]:
    """Delete what does not belong to a dataset; return the paths, relative to it, in order.

    Of committed shards these are: data files that the holding commit does not name, once they are older than `grace`,
    or at once if a replaced commit names them; and the replaced commits. Of the rest: parts of the catalog that the
    manifest does not name, and temporary files, once they are older than `grace`. Files of a shard without a commit
    stay until it has one, however old they are: they may belong to a paused writer, or be named by a writer that
    writes the same bytes again. Files with other names stay, and so does all in a folder that is a link.
    `now` is the time to count from (default: this machine's clock).
    """
    limit = (now or datetime.now(UTC)) - grace
    files: dict[int, list[tuple[str, DataFile, datetime]]] = {}
    doomed: list[str] = []
    old_parts: list[str] = []
    commit_names: list[str] = []
    for path, entry in _entries(dataset):
        if path.startswith(f"{COMMITS}/"):
            commit_names.append(entry.name)
        data_file = parse_data_path(path)
        if data_file is not None:
            files.setdefault(data_file.shard, []).append((path, data_file, entry.modified))
        elif is_part_path(path) and entry.modified < limit:
            old_parts.append(path)
        elif entry.name.startswith(TEMPORARY_PREFIX) and entry.modified < limit:
            doomed.append(path)
    doomed.extend(_unnamed_parts(dataset, old_parts))
    log = CommitLog(dataset)
    generations = generations_of(commit_names)

    # If a shard has one generation and one file of each kind, these are its commit's: no need to read it.
    doubtful = {
        shard: numbers
        for shard, numbers in generations.items()
        if len(numbers) > 1 or sorted(f.kind for _, f, _ in files.get(shard, [])) != sorted(DATA_KINDS)
    }
    latest: dict[int, set[str]] = {}
    replaced: dict[int, set[str]] = {}
    pairs = [(shard, number) for shard, numbers in sorted(doubtful.items()) for number in numbers]
    for commit in log.read_many(pairs, threads):
        names = latest if commit.generation == doubtful[commit.shard][-1] else replaced
        names.setdefault(commit.shard, set()).update(entry.path for entry in commit.files)

    for shard, entries in sorted(files.items()):
        if shard not in latest:
            continue  # not committed, or nothing doubtful, or its commit was deleted meanwhile
        for path, _, modified in entries:
            unnamed = path not in latest[shard]
            if unnamed and (modified < limit or path in replaced.get(shard, set())):
                doomed.append(path)
    linked = {folder for folder in _FOLDERS if folder and (dataset / folder).link_target() is not None}
    doomed = [path for path in doomed if path.partition("/")[0] not in linked]
    for path in doomed:
        (dataset / path).delete()
    # Last: while a replaced commit exists, it shows which files are not those of a writer at work.
    for shard, numbers in sorted(generations.items()):
        for generation in numbers[:-1]:
            if shard in latest and COMMITS not in linked:
                log.location(shard, generation).delete()
                doomed.append(f"{COMMITS}/{commit_name(shard, generation)}")
    return sorted(doomed)


def _unnamed_parts(dataset: Location, paths: list[str]) -> list[str]:
    manifest = read_manifest(dataset) if paths else None
    if manifest is None:
        return []
    named = {part.path for part in manifest.catalog}
    return [path for path in paths if path not in named]


def _entries(dataset: Location) -> Iterator[tuple[str, ObjectInfo]]:
    """Yield the files in the dataset's folders, listed in parallel: a store gives a thousand names at a time."""

    def listed(folder: str) -> list[ObjectInfo]:
        return (dataset / folder).list(include_temporary=True)

    # Data is listed before commits and manifests: a file that is named in between counts as named.
    for folders in (tuple(DATA_KINDS), _FOLDERS[len(DATA_KINDS) :]):
        listings = map_ahead(listed, folders, threads=len(folders), ahead=len(folders), name="sweep")
        for folder, entries in zip(folders, listings, strict=True):
            for entry in entries:
                yield join(folder, entry.name), entry
