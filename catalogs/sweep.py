"""Deletes what no commit names: left-overs of writers that died, and generations that were replaced."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from catalogs.commits import CommitLog
from catalogs.layout import COMMITS, DATA_KINDS, DataFile, parse_data_path
from infra.storage import TEMPORARY_PREFIX, ObjectInfo, Storage
from infra.uris import join

GRACE = timedelta(hours=24)
"""How old an unnamed file must be: longer than any writer takes from its first file to its commit."""


def sweep(
    storage: Storage,
    dataset_uri: str,
    grace: timedelta = GRACE,
    now: datetime | None = None,
    threads: int = 16,
) -> list[str]:
    """Deletes what does not belong to a dataset; returns the paths, relative to it, in order.

    That is: data files that no holding commit names, once they are older than `grace`, or at once where a
    commit that was replaced names them; the commits that were replaced; temporary files older than `grace`.
    Files with foreign names stay. `now` is the time to count from (default: this machine's clock).
    """
    limit = (now or datetime.now(UTC)) - grace
    # Files are listed before commits: one whose commit is put in between is then seen to be named.
    files: dict[int, list[tuple[str, DataFile, datetime]]] = {}
    doomed: list[str] = []
    for path, entry in _entries(storage, dataset_uri):
        data_file = parse_data_path(path)
        if data_file is not None:
            files.setdefault(data_file.shard, []).append((path, data_file, entry.modified))
        elif entry.name.startswith(TEMPORARY_PREFIX) and entry.modified < limit:
            doomed.append(path)
    log = CommitLog(storage, dataset_uri)
    generations = log.generations()

    # Where a shard has one generation and one file of each kind, those are its commit's: no need to read it.
    doubtful = {
        shard: numbers
        for shard, numbers in generations.items()
        if len(numbers) > 1 or sorted(f.kind for _, f, _ in files.get(shard, [])) != sorted(DATA_KINDS)
    }
    held: dict[int, set[str]] = {}
    replaced: dict[int, set[str]] = {}
    pairs = [(shard, number) for shard, numbers in sorted(doubtful.items()) for number in numbers]
    for commit in log.read_many(pairs, threads):
        names = held if commit.generation == doubtful[commit.shard][-1] else replaced
        names.setdefault(commit.shard, set()).update(entry.path for entry in commit.files)

    for shard, entries in sorted(files.items()):
        if shard in generations and shard not in held:
            continue  # nothing doubtful, or its commit vanished while we looked
        for path, _, modified in entries:
            unnamed = path not in held.get(shard, set())
            if unnamed and (modified < limit or path in replaced.get(shard, set())):
                doomed.append(path)
    for path in doomed:
        storage.delete(join(dataset_uri, path))
    # Only now: as long as a replaced commit stands, its files can be told from those of a writer at work.
    for shard, numbers in sorted(generations.items()):
        for generation in numbers[:-1]:
            if shard in held:
                storage.delete(log.uri(shard, generation))
                doomed.append(f"{COMMITS}/{log.uri(shard, generation).rpartition('/')[2]}")
    return sorted(doomed)


def _entries(storage: Storage, dataset_uri: str) -> Iterator[tuple[str, ObjectInfo]]:
    for folder in (*DATA_KINDS, COMMITS):
        for entry in storage.list(join(dataset_uri, folder), include_temporary=True):
            yield f"{folder}/{entry.name}", entry
