"""Inspection and repair of one shard: its commit and the files that it names, restored to the same bytes.

Both use the latest generation. If another command replaces it meanwhile, they continue with the next one.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from segmint.catalogs.dataset.commits import REJECTED, Commit, reserved_paths
from segmint.catalogs.dataset.handle import DatasetHandle
from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.dataset.versions.digest import drop_cached_leaves
from segmint.catalogs.findings import Code, Finding
from segmint.catalogs.layout import DATA_KINDS, DamagedDatasetError, commit_path, parse_data_path, shard_name
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.operators.shards.committed_rows import read_file, read_table
from segmint.operators.shards.restore import (
    Damage,
    find_damage,
    lost_annotations,
    put_commit_again,
    remake_commit,
    restore_from_rest,
)
from segmint.operators.shards.revise import apply_tombstones, with_generation
from segmint.pipeline.quality.audit.commits import audit_commit

_FINGERPRINT = re.compile(r"[0-9a-f]{12}|[0-9a-f]{64}")
_NUMERICS = re.compile(rb'"numerics":"([0-9a-f]{12})"')


@dataclass(frozen=True)
class RepairTask:
    """Arguments of a shard's inspection or repair."""

    dataset: DatasetHandle
    manifest: DatasetManifest
    numerics: frozenset[str] = field(default_factory=frozenset)  # of the intact commits


@dataclass(frozen=True)
class ShardInspection:
    """Result of inspecting a shard."""

    shard: int
    commit: Commit | None  # None if it is damaged
    whole: bool


@dataclass(frozen=True)
class ShardRepair:
    """Result of repairing a shard."""

    shard: int
    damages: tuple[str, ...] = ()  # one line each
    repaired: tuple[str, ...] = ()  # paths
    not_repaired: str = ""  # the reason if it couldn't be repaired
    files: tuple[str, ...] = ()  # still damaged, but restored if the shard is rebuilt


@dataclass(frozen=True)
class _CommitRecord:
    """Latest commit of a shard: its bytes, and a text about the problems found in it, or "" if there are none."""

    shard: int
    generation: int
    data: bytes
    commit: Commit | None
    wrong: str

    @property
    def path(self) -> str:
        return commit_path(self.shard, self.generation)


class _DamageError(DamagedDatasetError):
    """Damage that counts only for the latest generation. Otherwise another command may be removing the files."""


class _UnrepairableError(DamagedDatasetError):
    """Damage that cannot be repaired."""

    def __init__(self, repair: ShardRepair) -> None:
        super().__init__(repair.not_repaired)
        self.repair = repair


def look_at(shard: int, task: RepairTask) -> ShardInspection:
    """Check the commit of a shard, and the size and SHA-256 of every file that it names."""
    seen: list[Commit | None] = [None]

    def look(generation: int) -> None:
        held = _read_commit(task, shard, generation)
        seen[0] = None if held.wrong else held.commit
        if held.wrong or _damages(task, held):
            raise _DamageError

    try:
        with_generation(task.dataset.location, shard, look)
    except DamagedDatasetError:
        return ShardInspection(shard, seen[0], whole=False)
    return ShardInspection(shard, seen[0], whole=True)


def repair_shard(shard: int, task: RepairTask) -> ShardRepair:
    """Restore the damaged files of a shard, if its other files contain enough information."""

    def attempt(generation: int) -> ShardRepair:
        held = _read_commit(task, shard, generation)
        damages = _damages(task, held)
        if not held.wrong and not damages:
            return ShardRepair(shard)
        why = _remake(task, held)
        if not why:
            other = f"{held.path}: doesn't name the files of shard {shard}, which are intact"
            return ShardRepair(shard, (held.wrong or other,), (held.path,))
        if held.wrong or held.commit is None:
            raise _UnrepairableError(ShardRepair(shard, (held.wrong,), not_repaired=why))
        lines, paths = tuple(each.line() for each in damages), tuple(each.entry.path for each in damages)
        if restore_from_rest(task.dataset, held.commit, damages):
            return ShardRepair(shard, lines, paths)
        not_repaired = lost_annotations(task.dataset.location, held.commit, damages) or (
            f"the rest of the shard isn't enough to restore {', '.join(paths)}. To rebuild it, pass the build's "
            "configuration with --config."
        )
        raise _UnrepairableError(ShardRepair(shard, lines, not_repaired=not_repaired, files=paths))

    try:
        return with_generation(task.dataset.location, shard, attempt) or ShardRepair(shard)
    except _UnrepairableError as error:
        return error.repair
    except DamagedDatasetError as error:  # more was damaged during the repair
        return ShardRepair(shard, not_repaired=str(error))


def _read_commit(task: RepairTask, shard: int, generation: int) -> _CommitRecord:
    """Read the latest commit, and compare it with the manifest and the rows of its tables."""
    file = task.dataset.commits.location(shard, generation)
    try:
        data = file.read()
    except NotFoundError as error:
        raise DamagedDatasetError(f"{file} is missing") from error
    audited = audit_commit(data, shard, generation, task.manifest)
    wrong = [
        f"{finding.file}: expected {finding.expected}; found {finding.found}"
        for finding in audited.findings
        if not _other_machine(finding, task.manifest)
    ]
    if audited.commit is not None and not wrong:
        wrong = _miscounted(task.dataset.location, audited.commit)
    return _CommitRecord(shard, generation, data, audited.commit, "; ".join(wrong))


def _damages(task: RepairTask, held: _CommitRecord) -> list[Damage]:
    return [] if held.wrong or held.commit is None else find_damage(task.dataset.location, held.commit)


def _other_machine(finding: Finding, manifest: DatasetManifest) -> bool:
    """Return whether a finding shows the numerics of another machine (`allow_mixed_numerics`) rather than damaged text.

    Fingerprints of two machines share only a few digits by chance. A damaged fingerprint differs in one digit. The same
    goes for two values of `build_sha256`.
    """
    wanted = {Code.OTHER_NUMERICS: manifest.numerics_fingerprint, Code.OTHER_BUILD: manifest.build_sha256}
    known = wanted.get(finding.code)
    if known is None:
        return False
    return bool(_FINGERPRINT.fullmatch(finding.found)) and sum(map(str.__ne__, finding.found, known)) > 1


def _miscounted(dataset: Location, commit: Commit) -> list[str]:
    """Return a description of counts in a commit that differ from its tables. Damaged tables are reported elsewhere."""
    try:
        tables = {
            kind: read_table(read_file(dataset, commit.file(kind)), kind) for kind in ("images", "masks", "rejects")
        }
    except (DamagedDatasetError, NotFoundError):
        return []  # reported as damage of the file
    reasons = Counter(f"{REJECTED}{reason}" for reason in tables["rejects"].column("reason").to_pylist())
    rows = {kind: table.num_rows for kind, table in tables.items()}
    total = rows["images"] + rows["rejects"]
    counted = {"rows": total, "images": rows["images"], "masks": rows["masks"], "rejected": rows["rejects"], **reasons}
    if counted == dict(commit.counts):
        return []
    return [f"{commit_path(commit.shard, commit.generation)}: counts {dict(commit.counts)}; {counted} there"]


def _remake(task: RepairTask, held: _CommitRecord) -> str:
    """Replace a damaged commit with one rebuilt from the shard's data files; return "" or why this is impossible."""
    try:
        ordinals = task.manifest.ordinals(held.shard)
        fingerprint = _numerics(held.data, task.numerics | {task.manifest.numerics_fingerprint})
        known = Commit(held.shard, held.generation, ordinals, fingerprint, task.manifest.build_sha256, {}, ())
        commit = remake_commit(task.dataset, known, _data_files(task.dataset.location, held))
    except (DamagedDatasetError, NotFoundError, ValueError) as error:
        return str(error)
    put_commit_again(task.dataset.location, commit, held.data)
    drop_cached_leaves(task.dataset.location, [held.shard])
    apply_tombstones(task.dataset, held.shard)
    return ""


def _numerics(data: bytes, known: frozenset[str]) -> str:
    """Return the numerics of a damaged commit: its own if other commits share them, or else the only known numerics."""
    said = _NUMERICS.search(data)
    if said is not None and said[1].decode() in known:
        return said[1].decode()
    if len(known) > 1:
        raise DamagedDatasetError(
            f"its commit can't be read, and the dataset's shards have {len(known)} different numerics, so "
            "this shard's numerics are unknown"
        )
    (only,) = known
    return only


def _data_files(dataset: Location, held: _CommitRecord) -> Mapping[str, list[str]]:
    """Return the paths of data files that may belong to a damaged commit, by folder.

    A file belongs to it if the commit's bytes contain the first digits of its SHA-256, which occur in the path and in
    the hash after it. If the commit cannot be parsed, files that no running or dead command has reserved also count.
    """
    reserved = reserved_paths(dataset, {held.shard: held.generation})
    found: dict[str, list[str]] = {}
    for kind in DATA_KINDS:
        for entry in (dataset / kind).list(beginning=f"sa_{shard_name(held.shard)}-"):
            path = f"{kind}/{entry.name}"
            named = parse_data_path(path)
            if named is None or named.shard != held.shard:
                continue
            if (held.commit is None and path not in reserved) or named.digest.encode() in held.data:
                found.setdefault(kind, []).append(path)
    return found
