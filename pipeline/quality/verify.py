"""Implementation of `segmint verify`, which reads every byte of a dataset and compares it with a recorded version."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from segmint.catalogs.dataset.commits import (
    NOTHING,
    SUMMARY_SHARDS,
    Commit,
    CommitLog,
    CommitSums,
    ListedCommit,
    blocks_of,
    index_problem,
    summary_json,
    summary_name,
    sums_of,
)
from segmint.catalogs.dataset.digest import (
    Snapshot,
    VersionLeaf,
    compare_snapshots,
    leaf_of,
    manifest_leaves,
    removal_leaves,
)
from segmint.catalogs.dataset.inventory import Inventory, judge_unnamed, read_files, take_inventory
from segmint.catalogs.dataset.manifest import CatalogPart, DatasetManifest, manifest_generations
from segmint.catalogs.dataset.outputs import damaged_notes
from segmint.catalogs.dataset.submissions import ANNOTATIONS
from segmint.catalogs.dataset.sweep import GRACE
from segmint.catalogs.dataset.tombstones import FINGERPRINTS, TOMBSTONES, damaged_fingerprints, damaged_tombstones
from segmint.catalogs.dataset.versions import (
    FULL_DIGEST,
    RemovedVersionError,
    Version,
    VersionName,
    check_readable,
    find_version,
    read_history,
)
from segmint.catalogs.findings import Finding
from segmint.catalogs.layout import (
    DATA_KINDS,
    REPORT,
    SHARDS_INDEX,
    SUMMARIES,
    DamagedDatasetError,
    commit_path,
    data_path,
    is_part_path,
)
from segmint.infra.errors import UsageError
from segmint.infra.progress import track
from segmint.infra.stopping import map_ahead
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.storage.stores import NO_TIME, ObjectInfo
from segmint.infra.wording import counted, size, some
from segmint.pipeline.quality.audit.versions import takedowns_without_version
from segmint.pipeline.quality.signatures import check_version, damaged_signatures, key_id, read_public_key, signers

THREADS = 8
AHEAD = 64

_ADDED = "written by an unfinished build or correction (run it again to record it), or by something else"


@dataclass(frozen=True)
class VerifyResult:
    """Result of a verification."""

    dataset: str
    version: VersionName  # digest of what was read, and the number of the version that it matches
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    files: int  # files that were read and hashed
    bytes: int
    signed_by: tuple[str, ...]  # ids of the keys that signed the version
    checked_key: str | None  # id of the key whose signature was checked
    left_out: str | None = None  # what wasn't read, because an earlier version was requested
    compared_with: tuple[str, ...] = ("the dataset's own records only",)  # or a pinned digest, and a key's signature
    not_checked: tuple[str, ...] = ()  # requested checks that weren't possible

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "verified": not self.problems and not self.not_checked}

    def lines(self) -> list[str]:
        """Format the result as human-readable lines. The second-to-last line is the verdict."""
        lines = []
        for word, texts in (("problem", self.problems), ("not checked", self.not_checked), ("note", self.notes)):
            lines += [f"{word}: {text}" for text in texts]
        verdict = "verified"
        if self.problems:
            verdict = f"{counted(len(self.problems), 'problem')}: not verified"
        elif self.not_checked:
            verdict = "not verified"
        verdict += f"; compared with {' and '.join(self.compared_with)}"
        if self.left_out is not None:
            verdict += f"; not read: {self.left_out}"
        lines.append(f"read {counted(self.files, 'file')} ({size(self.bytes)}); {verdict}")
        if self.problems and self.version.number is None:  # without the unreadable files, it's no state's digest
            return [*lines, f"digest of what was read: {self.version}"]
        return [*lines, self.version.line()]


@dataclass
class _VerifyState:
    """State of a verification, with what has been read so far."""

    dataset: Location
    problems: list[str] = field(default_factory=list)
    leaves: list[VersionLeaf] = field(default_factory=list)
    commits: list[Commit] = field(default_factory=list)  # with their tars only
    sums: dict[int, CommitSums] = field(default_factory=dict)  # by block of shards
    files: int = 0
    bytes: int = 0
    unnamed: dict[str, ObjectInfo] = field(default_factory=dict)  # files that no record read so far names
    notes: list[str] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)
    changing: bool = False  # files that aren't in the latest version were added within the last day

    def add(self, leaf: VersionLeaf, size: int) -> None:
        self.leaves.append(leaf)
        self.files += 1
        self.bytes += size

    def add_findings(self, findings: Iterable[Finding]) -> None:
        for each in findings:
            self.problems.append(f"{each.file}: expected {each.expected}; found {each.found}")

    def merge(self, part: "_VerifyState") -> None:
        """Add the files and problems of a part of the dataset."""
        self.problems += part.problems
        self.leaves += part.leaves
        self.files += part.files
        self.bytes += part.bytes


def verify_dataset(
    dataset: Location, wanted: int | str | None = None, key: Location | None = None, require_pinned: bool = False
) -> VerifyResult:
    """Read all files of a dataset and compare them with a recorded version, by default the latest one.

    `wanted` is a version's number or the start of its digest. A full digest pins the current content, even if no
    version was recorded. `key` is a file with the public key that must have signed the version. With `require_pinned`,
    it isn't enough to compare the dataset with its own records. The cached sums in `summaries/` aren't trusted. Only a
    few files and the names of all commits are in memory. Raises `UsageError` if the dataset, the version, or a usable
    key is missing.
    """
    pin = FULL_DIGEST.fullmatch(str(wanted))
    public_key = None
    if key is not None:
        public_key = read_public_key(key)
    history = read_history(dataset)
    reading = _VerifyState(dataset)
    reading.add_findings(history.problems)
    for path in damaged_signatures(dataset):
        reading.problems.append(f"{path}: not a signature by the key in its name")
    version = history.latest
    if wanted is not None and pin is None:
        with suppress(DamagedDatasetError):  # already among the history's problems
            version = find_version(dataset, wanted)
    compared_with, left_out = [], None
    if version is not None and history.latest is not None and version.number < history.latest.number:
        left_out = f"the current state (version {history.latest.number}) and files that version {version.number} lacks"
        _read_version(reading, version)
    else:
        version, before = _read_all(reading, version), version
        if version != before and (version is None or version.digest != Snapshot.of(reading.leaves).digest):
            return verify_dataset(dataset, wanted, key, require_pinned)  # two versions were mixed, so read again
        if version is None:
            if not pin:
                recorded = f"no {'intact ' * bool(history.problems)}version is recorded"
                unproven = f"the commits and the catalog: {recorded}. The other files were compared with them"
                reading.not_checked.append(unproven)
            reading.add_findings(takedowns_without_version(dataset))
        else:
            _compare(reading, version)
    snapshot = Snapshot.of(reading.leaves)
    name = VersionName(snapshot.digest, None)
    signed_by: Sequence[str] = ()
    if version is not None:
        signed_by = signers(dataset, version.number)
        if version.digest == snapshot.digest:
            name = version.name
    if pin is not None:
        compared_with.append(f"the pinned digest sha256:{pin[1]}")
        if snapshot.digest != pin[1]:
            reading.problems.append(f"{dataset}: its digest is sha256:{snapshot.digest}, expected sha256:{pin[1]}")
    if public_key is not None:
        problem, note = check_version(dataset, version, public_key)
        if problem is not None:
            reading.problems.append(problem)
        if note is not None:
            reading.notes.append(note)
        if version is not None and problem is None:
            compared_with.append(f"the signature of version {version.number} by key {key_id(public_key)}")
    elif signed_by:
        keys = ", ".join(signed_by)
        reading.notes.append(f"signature files of the keys {keys} weren't compared. Pass a public key to --key")
    if require_pinned and pin is None and public_key is None:
        outside = "pass --key, or a full digest that you keep elsewhere: --version sha256:…"
        reading.not_checked.append(f"the digest, against anything outside the dataset: {outside}")
    return VerifyResult(
        dataset=str(dataset),
        version=name,
        problems=tuple(dict.fromkeys(reading.problems)),
        notes=tuple(reading.notes),
        files=reading.files,
        bytes=reading.bytes,
        signed_by=tuple(signed_by),
        checked_key=None if public_key is None else key_id(public_key),
        left_out=left_out,
        compared_with=tuple(compared_with) or VerifyResult.compared_with,
        not_checked=tuple(reading.not_checked),
    )


def _read_all(reading: _VerifyState, version: Version | None) -> Version | None:
    """Read the dataset's current state, which consists of the files that the manifest and the latest commits name.

    Returns the latest version. This is `version`, unless a newer one was recorded while reading.
    """
    dataset = reading.dataset
    inventory = take_inventory(dataset)  # before the manifest
    reading.unnamed, held = inventory.unnamed, inventory.latest
    manifest = _read_catalog(reading, version)
    for leaf in removal_leaves(dataset):
        reading.add(leaf, (dataset / leaf.path).size())
    reading.problems += [*damaged_tombstones(dataset).values(), *damaged_fingerprints(dataset).values()]
    reading.problems += damaged_notes(dataset).values()
    read_shards(reading, [commit.key for commit in held], latest=True)
    unreadable = {commit.shard for commit in held} - {commit.shard for commit in reading.commits}
    _judge_rest(reading, inventory, unreadable)
    if manifest is not None:
        for commit in reading.commits:
            if commit.build_sha256 != manifest.build_sha256:
                path = commit_path(commit.shard, commit.generation)
                reading.problems.append(f"{path}: its build_sha256 isn't the manifest's")
        snapshot = Snapshot.of(reading.leaves)
        if version is None or version.digest != snapshot.digest:
            version = read_history(dataset).latest or version
        reading.changing = version is not None and _is_changing(dataset, version, snapshot, held)
        finished = version is not None and version.digest == snapshot.digest and len(held) == manifest.shards
        problem = index_problem(dataset, manifest.name, reading.commits, finished=finished)
        if problem is not None and not reading.changing:
            reading.problems.append(f"{SHARDS_INDEX}: {problem}")
    _check_summaries(reading, held)
    return version


def _is_changing(dataset: Location, version: Version, now: Snapshot, held: Sequence[ListedCommit]) -> bool:
    """Return whether a command has added files that `version` doesn't contain, and is running or ended within a day."""
    times = {commit_path(*commit.key): commit.modified for commit in held}
    for entry in dataset.list():
        times[entry.name] = entry.modified
    for folder in (TOMBSTONES, FINGERPRINTS):
        for entry in (dataset / folder).list():
            times[f"{folder}/{entry.name}"] = entry.modified
    limit = datetime.now(UTC) - GRACE
    return any(times.get(path, NO_TIME) >= limit for path in compare_snapshots(version.snapshot, now).added)


def _read_catalog(reading: _VerifyState, version: Version | None) -> DatasetManifest | None:
    """Read the manifests and the catalog parts of the latest one, and return the latest manifest.

    If the latest manifest is unreadable, read the parts of `version` and return None.
    """
    manifests, latest = manifest_leaves(reading.dataset)
    read, manifest = _VerifyState(reading.dataset), None
    for leaf in manifests:
        read.add(leaf, (reading.dataset / leaf.path).size())
    try:
        manifest = DatasetManifest.from_json(latest, manifests[-1].path)
    except UsageError as error:
        read.problems.append(str(error))
    parts: Sequence[CatalogPart | VersionLeaf] = ()
    if manifest is not None:
        parts = manifest.catalog
    elif version is not None:
        parts = [leaf for leaf in version.snapshot.leaves if is_part_path(leaf.path)]
    for part in parts:
        reading.unnamed.pop(part.path, None)
        _read_part(read, part.path, part.sha256)
    if read.problems and len(manifest_generations(reading.dataset)) > len(manifests):  # a part was replaced
        return _read_catalog(reading, version)
    reading.merge(read)
    return manifest


def _judge_rest(reading: _VerifyState, inventory: Inventory, doubtful: set[int]) -> None:
    """Add a problem for each leftover file of segmint or another program, and notes on harmless files."""
    found = judge_unnamed(inventory, datetime.now(UTC) - GRACE, doubtful)
    reading.add_findings(found.findings)
    if found.recent:
        reading.notes.append(
            f"{counted(len(found.recent), 'file')} that no commit names, from a running or killed writer "
            f"(changed or reserved within a day, or of shards without a commit): {some(found.recent)}"
        )
    unopened = [name for name in (ANNOTATIONS, REPORT) if _contains_files(reading.dataset / name)]
    if unopened:
        reading.notes.append(f"not opened: the files in {' and '.join(f'{name}/' for name in unopened)}")
    if found.others:
        reading.notes.append(f"{counted(len(found.others), 'small file')} not written by segmint: {some(found.others)}")


def _contains_files(folder: Location) -> bool:
    return next(folder.walk(on_skip=lambda *_: None), None) is not None


def _read_version(reading: _VerifyState, version: Version) -> None:
    """Read the files of an earlier version, and ignore files that were added later."""
    try:
        check_readable(reading.dataset, version)
    except (RemovedVersionError, DamagedDatasetError) as error:
        reading.problems.append(str(error))
    for path, sha256 in version.files.items():
        _read_part(reading, path, sha256)
    read_shards(reading, [(shard, generation) for shard, generation, _ in version.commits], latest=False)
    found = Snapshot.of(reading.leaves).by_path
    for shard, generation, sha256 in version.commits:
        path = commit_path(shard, generation)
        if path in found and found[path] != sha256:
            reading.problems.append(_other_bytes(path, sha256, found[path]))


def _read_part(reading: _VerifyState, path: str, sha256: str) -> None:
    """Read a file and compare its hash with the expected one."""
    try:
        length, found = (reading.dataset / path).size_and_sha256()
    except NotFoundError:
        reading.problems.append(f"{path}: no such file")
        return
    reading.add(VersionLeaf(path, found), length)
    if found != sha256:
        reading.problems.append(_other_bytes(path, sha256, found))


def read_shards(reading: _VerifyState, pairs: Sequence[tuple[int, int]], *, latest: bool) -> None:
    """Read commits and the files that they name.

    With `latest`, if a commit was replaced in the meantime, this reads the new one.
    """
    log = CommitLog(reading.dataset)

    def read(pair: tuple[int, int]) -> _VerifyState:
        shard, generation = pair
        found = _read_shard(reading.dataset, shard, generation)
        while latest and found.problems and (newer := log.generations_of(shard)[-1:]) > [generation]:
            (generation,) = newer
            found = _read_shard(reading.dataset, shard, generation)
        return found

    for found in track(map_ahead(read, pairs, THREADS, AHEAD, "verify"), "shards", len(pairs)):
        reading.merge(found)
        for commit in found.commits:
            block = commit.shard // SUMMARY_SHARDS
            reading.sums[block] = reading.sums.get(block, NOTHING) + sums_of(commit)
            for entry in commit.files:
                reading.unnamed.pop(entry.path, None)
            reading.commits.append(replace(commit, files=(commit.file("shards"),)))


def _read_shard(dataset: Location, shard: int, generation: int) -> _VerifyState:
    """Read a commit and the files that it names. If it is intact, the result contains the commit with all files."""
    path, read = commit_path(shard, generation), _VerifyState(dataset)
    try:
        data = (dataset / path).read()
    except NotFoundError:
        read.problems.append(f"{path}: no such file")
        return read
    read.add(leaf_of(path, data), len(data))
    try:
        commit = Commit.from_json(data, path)
    except DamagedDatasetError as error:
        read.problems.append(str(error))
        return read
    read.problems += _wrong_commit(commit, path, data, shard, generation)
    if not read.problems:
        read.commits.append(commit)
    for found in read_files(dataset, commit):
        entry = found.entry
        if found.size is None:
            read.problems.append(f"{entry.path}: missing, but {path} names it")
            continue
        read.files += 1
        read.bytes += found.size
        if not found.intact:
            read.problems.append(_other_bytes(entry.path, entry.sha256, found.sha256) + f", and {found.size:,} bytes")
    return read


def _wrong_commit(commit: Commit, path: str, data: bytes, shard: int, generation: int) -> Iterator[str]:
    if (commit.shard, commit.generation) != (shard, generation):
        yield f"{path}: contains the commit of shard {commit.shard}, generation {commit.generation}"
    if commit.to_json() != data:
        yield f"{path}: not in the canonical form of commits"
    by_kind = {entry.kind: entry for entry in commit.files if entry.kind in DATA_KINDS}
    if len(by_kind) != len(DATA_KINDS) or len(commit.files) != len(DATA_KINDS):
        named = ", ".join(entry.path for entry in commit.files) or "no file"
        yield f"{path}: names {named}, expected a file in each of {', '.join(DATA_KINDS)}"
    for kind, entry in by_kind.items():
        expected = data_path(kind, shard, entry.sha256)
        if entry.path != expected:
            yield f"{path}: names {entry.path!r}, expected {expected}"


def _compare(reading: _VerifyState, version: Version) -> None:
    """Compare the files that were read with the latest version."""
    snapshot = Snapshot.of(reading.leaves)
    difference = compare_snapshots(version.snapshot, snapshot)
    recorded = version.snapshot.by_path
    for path in difference.changed:
        reading.problems.append(_other_bytes(path, recorded[path], snapshot.by_path[path]))
    for path in difference.missing:
        reading.problems.append(f"{path}: missing, but part of version {version.number}")
    if reading.changing:
        new = f"{counted(len(difference.added), 'file')}, against version {version.number}: {some(difference.added)}"
        reading.not_checked.append(f"{new} {_ADDED} within a day. Verify again when it has ended")
        return
    for path in difference.replaced:
        reading.problems.append(f"{path}: replaced since version {version.number} was recorded")
    for path in difference.added:
        reading.problems.append(f"{path}: not in version {version.number}: {_ADDED}")


def _check_summaries(reading: _VerifyState, held: Sequence[ListedCommit]) -> None:
    """Compare the saved sums with the sums of the commits that were read."""
    folder = reading.dataset / SUMMARIES
    existing = {entry.name for entry in folder.list()}
    for block, members in blocks_of(held):
        name = summary_name(members)
        sums = reading.sums.get(block)
        if name in existing and sums is not None and (folder / name).read() != summary_json(sums):
            reading.problems.append(f"{SUMMARIES}/{name}: its sums differ from its commits. Delete it")


def _other_bytes(path: str, expected: str, found: str) -> str:
    return f"{path}: its bytes differ from those recorded: expected SHA-256 {expected}; found {found}"
