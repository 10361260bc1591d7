"""What differs between a recorded version and what a dataset is now."""

from dataclasses import dataclass

from segmint.catalogs.dataset.manifest import parse_manifest_name
from segmint.catalogs.dataset.versions.digest import Snapshot
from segmint.catalogs.layout import is_part_path, parse_commit_path


@dataclass(frozen=True)
class SnapshotComparison:
    """The files, by path, in which a snapshot differs from an earlier one.

    Manifests, commits and tombstones are never changed or removed, except for a commit that a higher generation of its
    shard replaces, and a part of the catalog that a later manifest no longer names. So `changed` and `missing` are
    damage; `replaced` and `added` are what builds and corrections do.
    """

    changed: tuple[str, ...]
    missing: tuple[str, ...]
    replaced: tuple[str, ...]
    added: tuple[str, ...]

    @property
    def damaged(self) -> bool:
        """Whether something differs that no build or correction does."""
        return bool(self.changed or self.missing)

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not (self.changed or self.missing or self.replaced or self.added)


def compare_snapshots(before: Snapshot, now: Snapshot) -> SnapshotComparison:
    """Compare what a dataset was with what it is."""
    was, found = before.by_path, now.by_path
    generations = _generations(now)
    grown = _manifests(now) > _manifests(before)
    gone = [path for path in was if path not in found]
    replaced = {path for path in gone if _is_replaced(path, generations, grown=grown)}
    return SnapshotComparison(
        changed=tuple(path for path, digest in was.items() if path in found and found[path] != digest),
        missing=tuple(path for path in gone if path not in replaced),
        replaced=tuple(path for path in gone if path in replaced),
        added=tuple(path for path in found if path not in was),
    )


def _is_replaced(path: str, generations: dict[int, int], *, grown: bool) -> bool:
    if is_part_path(path):
        return grown
    commit = parse_commit_path(path)
    return commit is not None and generations.get(commit[0], 0) > commit[1]


def _generations(snapshot: Snapshot) -> dict[int, int]:
    """Return the generation of each committed shard."""
    commits = (parse_commit_path(leaf.path) for leaf in snapshot.leaves)
    return dict(commit for commit in commits if commit is not None)


def _manifests(snapshot: Snapshot) -> int:
    """Return the highest generation of the manifest."""
    return max((parse_manifest_name(leaf.path) or 0 for leaf in snapshot.leaves), default=0)
