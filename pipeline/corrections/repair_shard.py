"""Looks at one shard, its commit and the files that this names, and restores what is damaged to the same bytes.

Both go by the generation that holds: if another command replaces it meanwhile, the next one is looked at.
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
from segmint.catalogs.layout import (
    DATA_KINDS,
    DamagedDatasetError,
    commit_path,
    parse_data_path,
    shard_name,
)
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

_FINGERPRINT = re.compile(r"[0-9a-f]{12}")
_NUMERICS = re.compile(rb'"numerics":"([0-9a-f]{12})"')


@dataclass(frozen=True)
class RepairTask:
    """The task of looking at a dataset's shards, or of repairing them."""

    dataset: DatasetHandle
    manifest: DatasetManifest
    numerics: frozenset[str] = field(default_factory=frozenset)  # of the commits that are not damaged


@dataclass(frozen=True)
class ShardInspection:
    """What was seen of a shard."""

    shard: int
    numerics: str | None  # of its commit; None if that is damaged
    whole: bool


@dataclass(frozen=True)
class ShardRepair:
    """What was done for a shard."""

    shard: int
    damages: tuple[str, ...] = ()  # a line each
    repaired: tuple[str, ...] = ()  # paths
    not_repaired: str = ""  # why it could not be repaired
    files: tuple[str, ...] = ()  # that are left damaged, and are restored if it is built again


@dataclass(frozen=True)
class _CommitRecord:
    """The commit of a shard that holds: its bytes, and what is wrong with it (empty: nothing that is seen in it)."""

    shard: int
    generation: int
    data: bytes
    commit: Commit | None
    wrong: str

    @property
    def path(self) -> str:
        return commit_path(self.shard, self.generation)


class _DamageError(DamagedDatasetError):
    """Damage was seen: it counts if the generation still holds, else it may be what another command removes."""


class _UnrepairableError(DamagedDatasetError):
    """Damage that cannot be repaired."""

    def __init__(self, repair: ShardRepair) -> None:
        super().__init__(repair.not_repaired)
        self.repair = repair


def look_at(shard: int, task: RepairTask) -> ShardInspection:
    """Check the commit of a shard, and the size and SHA-256 of every file that it names."""
    seen: list[str | None] = [None]

    def look(generation: int) -> None:
        held = _read_commit(task, shard, generation)
        seen[0] = held.commit.numerics if held.commit is not None and not held.wrong else None
        if held.wrong or _damages(task, held):
            raise _DamageError

    try:
        with_generation(task.dataset.location, shard, look)
    except DamagedDatasetError:
        return ShardInspection(shard, seen[0], whole=False)
    return ShardInspection(shard, seen[0], whole=True)


def repair_shard(shard: int, task: RepairTask) -> ShardRepair:
    """Restore what is damaged of a shard, as far as the rest of it allows."""

    def attempt(generation: int) -> ShardRepair:
        held = _read_commit(task, shard, generation)
        damages = _damages(task, held)
        if not held.wrong and not damages:
            return ShardRepair(shard)
        why = _remake(task, held)
        if not why:
            other = f"{held.path}: other files than those of shard {shard}, which are whole"
            return ShardRepair(shard, (held.wrong or other,), (held.path,))
        if held.wrong or held.commit is None:
            raise _UnrepairableError(ShardRepair(shard, (held.wrong,), not_repaired=why))
        lines, paths = tuple(each.line() for each in damages), tuple(each.entry.path for each in damages)
        if restore_from_rest(task.dataset, held.commit, damages):
            return ShardRepair(shard, lines, paths)
        not_repaired = lost_annotations(task.dataset.location, held.commit, damages) or (
            f"what is left of it is not enough to make {', '.join(paths)} again: with the configuration that it was "
            "built by (--config) it is built once more"
        )
        raise _UnrepairableError(ShardRepair(shard, lines, not_repaired=not_repaired, files=paths))

    try:
        return with_generation(task.dataset.location, shard, attempt) or ShardRepair(shard)
    except _UnrepairableError as error:
        return error.repair
    except DamagedDatasetError as error:  # more was damaged as it was repaired
        return ShardRepair(shard, not_repaired=str(error))


def _read_commit(task: RepairTask, shard: int, generation: int) -> _CommitRecord:
    """Read the commit that holds, and compare it with the manifest and its tables' rows."""
    file = task.dataset.commits.location(shard, generation)
    try:
        data = file.read()
    except NotFoundError as error:
        raise DamagedDatasetError(f"{file} is gone") from error
    audited = audit_commit(data, shard, generation, task.manifest)
    wrong = [
        f"{finding.file}: {finding.expected} expected; {finding.found}"
        for finding in audited.findings
        if not _other_machine(finding, task.manifest)
    ]
    if audited.commit is not None and not wrong:
        wrong = _miscounted(task.dataset.location, audited.commit)
    return _CommitRecord(shard, generation, data, audited.commit, "; ".join(wrong))


def _damages(task: RepairTask, held: _CommitRecord) -> list[Damage]:
    return [] if held.wrong or held.commit is None else find_damage(task.dataset.location, held.commit)


def _other_machine(finding: Finding, manifest: DatasetManifest) -> bool:
    """Whether a shard has other numerics as builds with `allow_mixed_numerics` have; no damaged text of the manifest's.

    Fingerprints of two machines share none but a few digits by chance, a damaged one all but one.
    """
    if finding.code is not Code.OTHER_NUMERICS:
        return False
    known = manifest.numerics_fingerprint
    return bool(_FINGERPRINT.fullmatch(finding.found)) and sum(map(str.__ne__, finding.found, known)) > 1


def _miscounted(dataset: Location, commit: Commit) -> list[str]:
    """What a commit counts otherwise than its tables, if these have the bytes that it names."""
    try:
        tables = {
            kind: read_table(read_file(dataset, commit.file(kind)), kind) for kind in ("images", "masks", "rejects")
        }
    except (DamagedDatasetError, NotFoundError):
        return []  # found as damage of the file
    reasons = Counter(f"{REJECTED}{reason}" for reason in tables["rejects"].column("reason").to_pylist())
    rows = {kind: table.num_rows for kind, table in tables.items()}
    total = rows["images"] + rows["rejects"]
    counted = {"rows": total, "images": rows["images"], "masks": rows["masks"], "rejected": rows["rejects"], **reasons}
    if counted == dict(commit.counts):
        return []
    return [f"{commit_path(commit.shard, commit.generation)}: counts {dict(commit.counts)}; {counted} there"]


def _remake(task: RepairTask, held: _CommitRecord) -> str:
    """Make a commit again, over the damaged file, if its shard's data files prove it; else return why they do not."""
    try:
        ordinals = task.manifest.ordinals(held.shard)
        fingerprint = _numerics(held.data, task.numerics | {task.manifest.numerics_fingerprint})
        known = Commit(held.shard, held.generation, ordinals, fingerprint, {}, ())
        commit = remake_commit(task.dataset, known, _data_files(task.dataset.location, held))
    except (DamagedDatasetError, NotFoundError, ValueError) as error:
        return str(error)
    put_commit_again(task.dataset.location, commit, held.data)
    drop_cached_leaves(task.dataset.location, [held.shard])
    apply_tombstones(task.dataset, held.shard)
    return ""


def _numerics(data: bytes, known: frozenset[str]) -> str:
    """Return the numerics of a damaged commit: what it says if other commits say it too, or what all of them say."""
    said = _NUMERICS.search(data)
    if said is not None and said[1].decode() in known:
        return said[1].decode()
    if len(known) > 1:
        raise DamagedDatasetError(
            f"its commit cannot be read, and the dataset's shards have {len(known)} different numerics: it is "
            "not known which of them this shard has"
        )
    (only,) = known
    return only


def _data_files(dataset: Location, held: _CommitRecord) -> Mapping[str, list[str]]:
    """Return the paths of the data files that may be those of a damaged commit, by folder.

    Not those that a command is about to commit, or was when it died: what still can be read of the commit, or all of
    it, must have the first digits of their SHA-256. A path and the hash after it have them twice.
    """
    reserved = reserved_paths(dataset, {held.shard: [held.generation]})
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
