"""Audits the commits of a dataset and the listing of the files that they name, before any of these is read."""

from dataclasses import dataclass, field

from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.findings import Code, FindingCollector, Place
from segmint.catalogs.layout import commit_path
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.pipeline.quality.audit.commits import Listed, audit_commits


@dataclass
class CommittedState:
    """The commits that hold, and what is known of them before their files are read."""

    findings: FindingCollector = field(default_factory=FindingCollector)
    commits: int = 0  # read, replaced ones included
    pairs: list[tuple[int, int]] = field(default_factory=list)  # shards and generations whose commits can be used
    doubtful: set[int] = field(default_factory=set)  # shards whose commits cannot
    bad_kinds: dict[int, frozenset[str]] = field(default_factory=dict)  # folders of files known to be wrong, by shard
    bad_counts: set[int] = field(default_factory=set)
    images: int = 0  # by the commits, and so are the masks
    masks: int = 0


def audit_committed_state(
    dataset: Location,
    manifest: DatasetManifest,
    listed: dict[str, Listed],
    generations: dict[int, list[int]],
) -> CommittedState:
    """Audit the commits that hold and those that were replaced; take the files that they name from `listed`."""
    state = CommittedState()
    held = sorted((shard, numbers[-1]) for shard, numbers in generations.items())
    for audited in audit_commits(dataset, manifest, held):
        state.findings.extend(audited.findings)
        state.commits += 1
        if audited.commit is None:
            state.doubtful.add(audited.shard)
            continue
        state.pairs.append((audited.shard, audited.generation))
        state.images += audited.commit.counts.get("images", 0)
        state.masks += audited.commit.counts.get("masks", 0)
        if audited.has(Code.BAD_COUNTS):
            state.bad_counts.add(audited.shard)
        bad = _audit_named(dataset, audited.commit, listed, state.findings)
        if bad:
            state.bad_kinds[audited.shard] = bad
    replaced = [(shard, number) for shard, numbers in sorted(generations.items()) for number in numbers[:-1]]
    for audited in audit_commits(dataset, manifest, replaced):
        entries = audited.commit.files if audited.commit is not None else ()
        left = [entry.path for entry in entries if listed.pop(entry.path, None) is not None]
        place = Place(commit_path(audited.shard, audited.generation), audited.shard)
        found = f"this one too, with {len(left)} files that it alone names{': ' if left else ''}{', '.join(left)}"
        expected = f"generation {generations[audited.shard][-1]} alone"
        state.findings.add(place.finding(Code.REPLACED_GENERATION, expected, found))
        state.commits += 1
    return state


def _audit_named(
    dataset: Location, commit: Commit, listed: dict[str, Listed], findings: FindingCollector
) -> frozenset[str]:
    """The folders in which a commit's file is missing or of a wrong size."""
    bad = set()
    for entry in commit.files:
        place = Place(entry.path, commit.shard)
        known = listed.pop(entry.path, None)
        try:
            # A file that was put after the listing is not in it.
            size = (dataset / entry.path).size() if known is None else known.size
        except NotFoundError:
            findings.add(place.finding(Code.MISSING_FILE, f"{entry.size} bytes", "no such file"))
            bad.add(entry.path.partition("/")[0])
            continue
        if size != entry.size:
            findings.add(place.finding(Code.FILE_SIZE, f"{entry.size} bytes", size))
            bad.add(entry.path.partition("/")[0])
    return frozenset(bad)
