"""The version digest: one hash over the manifest, the catalog, the latest commits, tombstones, and fingerprints.

The digest is the root of a Merkle tree. Each of these files is a leaf, and the leaves are sorted by path. A leaf's text
is the line `<SHA-256> <path>`, as `sha256sum` prints it. Commits contain the hashes of their data files, so the digest
covers every byte of the dataset.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from pydantic import TypeAdapter, ValidationError

from segmint.catalogs.dataset.commits import (
    NOTHING,
    SUMMARY_SHARDS,
    CommitLog,
    CommitSums,
    ListedCommit,
    blocks_of,
    files_fingerprint,
    save_block,
    summary_name,
    sums_in,
)
from segmint.catalogs.dataset.manifest import (
    DatasetManifest,
    manifest_generations,
    manifest_name,
    no_manifest,
    parse_manifest_name,
)
from segmint.catalogs.dataset.tombstones import (
    FINGERPRINTS,
    TOMBSTONES,
    fingerprints_path,
    list_fingerprints,
    list_tombstones,
    parse_fingerprints_path,
)
from segmint.catalogs.layout import (
    SUMMARIES,
    DamagedDatasetError,
    bytes_sha256,
    canonical_json,
    commit_path,
    fingerprint,
    is_part_path,
    parse_commit_path,
    shard_name,
)
from segmint.infra.stopping import map_ahead
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location

_HASHES = TypeAdapter(list[str])
_ATTEMPTS = 5
_THREADS = 16
_READ_AHEAD = 512
_SHORT_DIGITS = 12

_LEAF = b"\x00"

_NODE = b"\x01"


@dataclass(frozen=True, slots=True, order=True)
class VersionLeaf:
    """File that the digest covers: its path below the dataset, and its SHA-256 in hexadecimal."""

    path: str
    sha256: str

    def line(self) -> str:
        """Return the leaf's text, which is what `sha256sum` prints for the file, without the newline."""
        return f"{self.sha256}  {self.path}"


@dataclass(frozen=True)
class Snapshot:
    """State of a dataset at one moment, given by the files that its digest covers, sorted by path."""

    leaves: tuple[VersionLeaf, ...]

    @cached_property
    def digest(self) -> str:
        """The version digest, 64 hexadecimal digits."""
        return root_hash([leaf_hash(leaf.line().encode()) for leaf in self.leaves]).hex()

    @cached_property
    def by_path(self) -> Mapping[str, str]:
        """SHA-256 of each file by its path."""
        return {leaf.path: leaf.sha256 for leaf in self.leaves}

    @classmethod
    def of(cls, leaves: Iterable[VersionLeaf]) -> "Snapshot":
        """Create a snapshot from leaves in any order."""
        return cls(tuple(sorted(leaves)))


@dataclass
class SnapshotCommits:
    """Latest commits of a dataset and sums over them, which `take_snapshot` collects."""

    held: Sequence[ListedCommit] = ()  # the commits' files, in shard order
    sums: dict[str, CommitSums] = field(default_factory=dict)  # of the blocks that were read, by summary name


def short_digest(digest: str) -> str:
    """Return the short form of a version digest: `sha256:` and its first twelve digits."""
    return f"sha256:{digest[:_SHORT_DIGITS]}"


def current_digest(dataset: Location) -> str:
    """Return the current version digest of a dataset, 64 hexadecimal digits. See `take_snapshot`."""
    return take_snapshot(dataset).digest


def take_snapshot(
    dataset: Location,
    *,
    use_cache: bool = True,
    save_cache: bool = False,
    read: SnapshotCommits | None = None,
) -> Snapshot:
    """Return the files that a dataset's digest covers, with their hashes, at a single point in time.

    The hashes of catalog parts come from the manifest. All other files are read and hashed. With `use_cache`, the
    hashes of a full block of commits may come from `summaries/` instead. With `save_cache`, such hashes are saved there
    if possible. If you pass `read`, this function adds the latest commits to it, and sums over the commits that it
    read.

    Raises `UsageError` if the dataset doesn't exist or its manifest can't be read. Raises `DamagedDatasetError` if the
    dataset keeps changing while it is read.
    """
    why = ""
    for _ in range(_ATTEMPTS):
        # Commits are listed only once. The result is consistent unless another file was added in the meantime.
        before = _others(dataset)
        try:
            commits = _commit_leaves(dataset, use_cache=use_cache, save_cache=save_cache, read=read)
            manifests, latest = manifest_leaves(dataset)
            manifest = DatasetManifest.from_json(latest, f"{dataset}/{manifests[-1].path}")
            parts = [VersionLeaf(part.path, part.sha256) for part in manifest.catalog]
            snapshot = Snapshot.of([*manifests, *parts, *commits, *removal_leaves(dataset)])
        except NotFoundError as error:
            why = str(error)  # a correction removed a listed commit, so list again
            continue
        new = {path for path in snapshot.by_path if _is_other(path)} - before
        if not new:
            return snapshot
        why = f"{', '.join(sorted(new))} was written"
    raise DamagedDatasetError(f"{dataset} keeps changing while it is being read: {why}")


def manifest_leaves(dataset: Location) -> tuple[list[VersionLeaf], bytes]:
    """Return a leaf for each generation of the manifest, and the bytes of the latest generation.

    Raises `UsageError` if there is no manifest.
    """
    numbers = manifest_generations(dataset)
    if not numbers:
        raise no_manifest(dataset)
    leaves = []
    for number in numbers:
        data = (dataset / manifest_name(number)).read()
        leaves.append(leaf_of(manifest_name(number), data))
    return leaves, data


def removal_leaves(dataset: Location) -> list[VersionLeaf]:
    """Return a leaf for each tombstone, and for each shard's latest fingerprints."""
    return [leaf_of(path, (dataset / path).read()) for path in _removal_paths(dataset)]


def _removal_paths(dataset: Location) -> list[str]:
    paths = [f"{TOMBSTONES}/{entry.name}" for entry in list_tombstones(dataset)]
    for shard, (generation, _) in list_fingerprints(dataset).items():
        paths.append(fingerprints_path(shard, generation))
    return paths


def _others(dataset: Location) -> set[str]:
    """Return the paths of all manifests and tombstones, and of each shard's latest fingerprints."""
    return {*map(manifest_name, manifest_generations(dataset)), *_removal_paths(dataset)}


def _is_other(path: str) -> bool:
    return path.startswith((f"{TOMBSTONES}/", f"{FINGERPRINTS}/")) or parse_manifest_name(path) is not None


def leaf_of(path: str, data: bytes) -> VersionLeaf:
    """Return the leaf for a file that contains `data`."""
    return VersionLeaf(path, bytes_sha256(data))


def drop_cached_leaves(dataset: Location, shards: Collection[int]) -> None:
    """Delete the cached hashes of these shards' commits. Call this after the bytes of a commit were restored."""
    blocks = {_cache_prefix(shard // SUMMARY_SHARDS) for shard in shards}
    for entry in (dataset / SUMMARIES).list():
        if entry.name.startswith(tuple(blocks)):
            (dataset / SUMMARIES / entry.name).delete()


def _commit_leaves(
    dataset: Location, *, use_cache: bool, save_cache: bool, read: SnapshotCommits | None
) -> list[VersionLeaf]:
    """Return a leaf for each shard's latest commit."""

    def read_leaf(pair: tuple[int, int]) -> tuple[VersionLeaf, CommitSums | None]:
        data = (dataset / commit_path(*pair)).read()
        leaf = leaf_of(commit_path(*pair), data)
        if read is None:
            return leaf, None
        return leaf, sums_in(data, *pair)

    held = CommitLog(dataset).latest_commits()
    if read is not None:
        read.held = held
    existing = []
    if use_cache or save_cache:
        existing = [entry.name for entry in (dataset / SUMMARIES).list()]
    leaves: list[VersionLeaf] = []
    for block, members in blocks_of(held):
        pairs = [member.key for member in members]
        full = len(members) == SUMMARY_SHARDS
        prefix = f"{_cache_prefix(block)}{files_fingerprint(members)}-"
        cached = None
        if full and use_cache:
            cached = _cached(dataset, existing, prefix, len(members))
        if cached is not None:
            for pair, sha256 in zip(pairs, cached, strict=True):
                leaves.append(VersionLeaf(commit_path(*pair), sha256))
            continue
        hashes, of_each = [], []
        for leaf, sums in map_ahead(read_leaf, pairs, _THREADS, _READ_AHEAD, "leaves"):
            leaves.append(leaf)
            hashes.append(leaf.sha256)
            if sums is not None:
                of_each.append(sums)
        if full and save_cache:
            name = f"{prefix}{fingerprint(hashes)}.json"
            save_cache = save_block(dataset / SUMMARIES, _cache_prefix(block), name, canonical_json(hashes), existing)
        if read is not None and len(of_each) == len(pairs):  # otherwise, a commit is damaged; summing reports it
            read.sums[summary_name(members)] = sum(of_each, NOTHING)
    return leaves


def _cache_prefix(block: int) -> str:
    return f"leaves-{shard_name(block * SUMMARY_SHARDS)}-"


def _cached(dataset: Location, existing: Sequence[str], prefix: str, count: int) -> list[str] | None:
    """Return the hashes of a block's commits from the cache.

    Returns None if the file is missing, or if the hashes don't match the hash in its name.
    """
    for name in existing:
        if not name.startswith(prefix):
            continue
        try:
            hashes = _HASHES.validate_json((dataset / SUMMARIES / name).read(), strict=True)
        except (NotFoundError, ValidationError):
            continue
        if len(hashes) == count and name == f"{prefix}{fingerprint(hashes)}.json":
            return hashes
    return None


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of a leaf, 32 bytes."""
    return hashlib.sha256(_LEAF + data).digest()


def root_hash(leaves: Sequence[bytes]) -> bytes:
    """Return the root hash (32 bytes) of the Merkle tree over these leaf hashes.

    RFC 6962, section 2.1, defines the tree: if there are n > 1 leaves, the left subtree contains the largest power of
    two that is less than n. Without leaves, the root hash is the SHA-256 of no bytes.
    """
    if not leaves:
        return hashlib.sha256().digest()
    waiting: list[tuple[int, bytes]] = []  # complete subtrees from left to right, each smaller than the one before
    for leaf in leaves:
        size, node = 1, leaf
        while waiting and waiting[-1][0] == size:
            size, node = 2 * size, _node_hash(waiting.pop()[1], node)
        waiting.append((size, node))
    node = waiting.pop()[1]
    while waiting:
        node = _node_hash(waiting.pop()[1], node)
    return node


def _node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(_NODE + left + right).digest()


@dataclass(frozen=True)
class SnapshotComparison:
    """Differences between an earlier and a later snapshot of a dataset, as paths of files.

    Builds and corrections add such files, but never change one. They delete commits and fingerprints only when a higher
    generation replaces them, and catalog parts only when a later manifest no longer names them. Therefore, paths in
    `changed` and `missing` indicate damage. Paths in `replaced` and `added` result from builds and corrections.
    """

    changed: tuple[str, ...]
    missing: tuple[str, ...]
    replaced: tuple[str, ...]
    added: tuple[str, ...]

    @property
    def damaged(self) -> bool:
        """True if some difference can't result from builds and corrections."""
        return bool(self.changed or self.missing)

    @property
    def same(self) -> bool:
        """True if the snapshots are equal."""
        return not (self.changed or self.missing or self.replaced or self.added)


def compare_snapshots(before: Snapshot, now: Snapshot) -> SnapshotComparison:
    """Compare a dataset's earlier snapshot with its current one."""
    was, found = before.by_path, now.by_path
    generations = _generations(now)
    grown = _manifests(now) > _manifests(before)
    changed, missing, replaced = [], [], []
    for path, digest in was.items():
        if path in found:
            if found[path] != digest:
                changed.append(path)
        elif _is_replaced(path, generations, grown=grown):
            replaced.append(path)
        else:
            missing.append(path)
    return SnapshotComparison(
        changed=tuple(changed),
        missing=tuple(missing),
        replaced=tuple(replaced),
        added=tuple(path for path in found if path not in was),
    )


def _is_replaced(path: str, generations: dict[tuple[str, int], int], *, grown: bool) -> bool:
    if is_part_path(path):
        return grown
    parsed = _numbered(path)
    return parsed is not None and generations.get(parsed[0], 0) > parsed[1]


def _generations(snapshot: Snapshot) -> dict[tuple[str, int], int]:
    """Return the generation of each shard's commit and fingerprints, keyed by (folder, shard)."""
    return dict(filter(None, (_numbered(leaf.path) for leaf in snapshot.leaves)))


def _numbered(path: str) -> tuple[tuple[str, int], int] | None:
    """Parse the path of a commit or a fingerprints file into ((folder, shard), generation).

    Returns None for any other path.
    """
    parsed = parse_commit_path(path) or parse_fingerprints_path(path)
    if parsed is None:
        return None
    return (path.partition("/")[0], parsed[0]), parsed[1]


def _manifests(snapshot: Snapshot) -> int:
    """Return the highest generation of the manifest in a snapshot."""
    return max((parse_manifest_name(leaf.path) or 0 for leaf in snapshot.leaves), default=0)
