"""Revisions of masks, for imports, merges, labels, and stages that are applied: plans, counts, and results."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from typing import Any, ClassVar, Generic, Self, TypeVar

from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.manifest import DatasetHandle
from segmint.catalogs.dataset.outputs import shown_outputs
from segmint.catalogs.dataset.versions import VersionName, latest_version, name_now
from segmint.catalogs.layout import (
    COMMITS,
    RESERVATIONS,
    DamagedDatasetError,
    image_stem,
    parse_commit_name,
    parse_reservation_name,
)
from segmint.infra.progress import track
from segmint.infra.storage.location import Location
from segmint.infra.wording import counted, listed, some
from segmint.operators.shards.put import OneTable
from segmint.operators.shards.revise import Change, ColumnChange, kept_columns, with_latest_commit
from segmint.pipeline.config.config import LOCAL, ResourcesConfig
from segmint.pipeline.corrections.correction import Revision, confirm_changes, link_lines, record_version, revise
from segmint.pipeline.corrections.import_merge import SkipReason

SHOWN = 20
"""Maximum number of images that messages name. The counts include all images."""

DECIDED = (SkipReason.TAKEN_DOWN, SkipReason.REFUSED, SkipReason.RETURNED, SkipReason.WORKED_ON)
"""Reasons to skip an image that follow from earlier decisions. With any other reason, the image couldn't be
processed."""

NOT_BUILT = "not built yet"
"""Reason to skip images whose shard isn't committed."""


@dataclass(frozen=True, kw_only=True)
class RevisionList:
    """Base class for lists of planned changes."""

    would_change: ClassVar[str] = "{} of {} would change"  # formatted with the number of images and the dataset
    nothing: ClassVar[str]  # formatted with the dataset, if nothing changed
    changed: ClassVar[str] = "{} changed in {}"  # formatted with the numbers of images and shards
    also: ClassVar[tuple[str, ...]] = ()  # lines after a change
    dataset: str  # its path or URI
    name: str
    images: int  # number of images that change
    masks: Mapping[str, int]  # count by outcome
    shards: tuple[int, ...]  # shards that change
    skipped_images: Mapping[str, int]  # by reason
    examples: tuple[str, ...]
    more_examples: int = 0  # number of omitted examples

    def lines(self) -> list[str]:
        return [self.would_change.format(counted(self.images, "image"), self.dataset) + self.in_shards(), *self.found()]

    def found(self) -> list[str]:
        """Return lines on the masks and images that were found."""
        return [f"masks: {self.counted_masks() or 'none'}"]

    @property
    def not_checked(self) -> list[str]:
        """Images that couldn't be processed, as text."""
        return [f"{counted(n, 'image')}: {why}" for why, n in self.skipped_images.items() if why not in DECIDED]

    def skipped_lines(self) -> list[str]:
        """Return lines on the skipped images."""
        skipped = (f"skipped: {counted(n, 'image')}: {why}" for why, n in self.skipped_images.items() if why in DECIDED)
        return [*skipped, *(f"not checked: {each}" for each in self.not_checked)]

    @property
    def rows(self) -> int:
        """Number of images that change."""
        return self.images

    def example_lines(self) -> list[str]:
        """Return the examples as lines, with a last line that counts the omitted examples."""
        more = [f"  and {self.more_examples:,} more"] if self.more_examples else []
        return [*(f"  {example}" for example in self.examples), *more]

    def in_shards(self) -> str:
        """Return the end of a line of text that lists the shards that change."""
        if not self.shards:
            return ""
        return f", in {counted(len(self.shards), 'shard')}: {some(self.shards)}"

    def counted_masks(self, *kinds: str) -> str:
        """Return the number of masks of each kind as text, or "" without masks. By default, include all kinds."""
        return listed(f"{self.masks[kind]:,} {kind}" for kind in kinds or self.masks if self.masks[kind])

    def reason(self) -> str:
        """Return the reason that the version records."""
        raise NotImplementedError

    def done(self, counts: "RevisionCounts") -> Self:
        """Return the list of what was done, which `counts` counts."""
        return replace(self, masks=dict(counts.masks), **counts.of_images())


L = TypeVar("L", bound=RevisionList)
A = TypeVar("A", bound=Iterable[int])


@dataclass
class RevisionCounts:
    """Counts of affected images, and of their masks by outcome."""

    images: int = 0  # number of images that change
    masks: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)  # skipped images by reason
    examples: list[str] = field(default_factory=list)
    more_examples: int = 0  # number of omitted examples
    shards: list[int] = field(default_factory=list)  # shards that change
    inspected: list[tuple[int, int]] = field(default_factory=list)  # the other shards, with their generations

    def of_images(self) -> dict[str, Any]:
        """Return the values of a `RevisionList` that count images."""
        return {
            "images": self.images,
            "skipped_images": dict(self.left.most_common()),
            "examples": tuple(self.examples),
            "more_examples": self.more_examples,
        }

    def leave(self, name: str, why: str, detail: str | None = None) -> None:
        """Count a skipped image."""
        self.left[why] += 1
        self.example(f"{name}: skipped: {detail or why}")

    def add(self, other: Self) -> None:
        """Add the counts of another shard."""
        for each in fields(self):
            value = getattr(self, each.name)
            value += getattr(other, each.name)  # in place, unless it is a number
            setattr(self, each.name, value)
        self._limit_examples()

    def example(self, line: str) -> None:
        """Add an example line. If the maximum number is reached, only count the line."""
        self.examples.append(line)
        self._limit_examples()

    def _limit_examples(self) -> None:
        self.more_examples += len(self.examples[SHOWN:])
        del self.examples[SHOWN:]


C = TypeVar("C", bound=RevisionCounts)


def look_at_shards(dataset: Location, shards: Iterable[tuple[int, A]], total: C, count: Callable[[Commit, A], C]) -> C:
    """Add a revision's planned changes to `total` and return it. `shards` yields shards with the ordinals of images.

    `count` returns the counts for one shard.
    """

    def look(shard: int, wanted: A) -> tuple[C, int] | None:
        return with_latest_commit(dataset, shard, lambda commit: (count(commit, wanted), commit.generation))

    for shard, wanted in track(shards, "shards"):
        found = look(shard, wanted)
        if found is None:
            for ordinal in wanted:
                total.leave(image_stem(ordinal + 1), NOT_BUILT)
            continue
        counts, generation = found
        total.add(counts)
        if counts.images:
            total.shards.append(shard)
        else:
            total.inspected.append((shard, generation))
    return total


def look_at_all(dataset: DatasetHandle, total: C, count: Callable[[Commit], C]) -> C:
    """Look at all committed shards; see `look_at_shards`."""
    nothing: list[int] = []
    shards = ((shard, nothing) for shard in sorted(dataset.commits.committed()))
    return look_at_shards(dataset.location, shards, total, lambda commit, _: count(commit))


@dataclass(frozen=True)
class RevisionPlan(Generic[L]):
    """Plan of a revision, described by `listed`."""

    listed: L
    shards: Set[int]  # shards with images to revise
    change: Change
    unchanged: Mapping[int, int] = field(default_factory=dict)  # by shard without changes, the inspected generation


@dataclass(frozen=True)
class RevisionResult(Generic[L]):
    """Result of a revision."""

    listed: L  # the changes
    changed_shards: tuple[int, ...]
    version: VersionName
    outputs: tuple[str, ...] = ()  # outputs recorded in the dataset, which contain the former masks
    removed_links: tuple[str, ...] = ()  # links in report/ with their targets, which were left untouched

    def lines(self) -> list[str]:
        """Return lines on the changes, the version, and the necessary next steps."""
        listed = self.listed
        if not listed.images and not self.changed_shards and not listed.not_checked:
            return [listed.nothing.format(listed.dataset), *listed.found(), self.version.line()]
        return [
            listed.changed.format(counted(listed.images, "image"), counted(len(self.changed_shards), "shard")),
            *listed.found(),
            *listed.also,
            *shown_outputs(listed.dataset, self.outputs, "create it again"),
            *link_lines(self.removed_links),
            self.version.line(),
        ]

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        return {**values.pop("listed"), **values}


def planned(
    list_class: type[L], dataset: DatasetHandle, counts: RevisionCounts, kinds: Sequence[str], **more: Any
) -> L:
    """Return the list of the planned changes. `kinds` selects the counts of masks in the list."""
    return list_class(
        dataset=str(dataset),
        name=dataset.manifest().name,
        masks={kind: counts.masks[kind] for kind in kinds},
        shards=tuple(counts.shards),
        **counts.of_images(),
        **more,
    )


def correct_masks(
    dataset: DatasetHandle,
    command: str,
    plan: RevisionPlan[L],
    confirm: Callable[[L], None] | None,
    now: datetime | None,
    *,
    only: OneTable | None = None,
    columns: ColumnChange = kept_columns,
    resources: ResourcesConfig = LOCAL,
) -> RevisionResult[L]:
    """Change the masks as planned, and record the version of `command`.

    `confirm` is as in `confirm_changes`, `only` and `columns` as in `Revision`, and `resources` as in `revise`. If
    nothing is to be changed or completed, `confirm` isn't called.
    """
    listed = plan.listed
    if not listed.images and not is_unfinished(dataset, plan.shards):
        return RevisionResult(listed, (), name_now(dataset.location))
    confirm_changes(dataset, listed, confirm)
    revision = Revision(
        shards=plan.shards,
        change=plan.change,
        needed=lambda commit: plan.unchanged.get(commit.shard) != commit.generation,
        only=only,
        columns=columns,
    )
    outcome = revise(dataset, revision, resources)
    version, outputs = record_version(dataset, command, listed.reason(), now)
    return RevisionResult(listed, tuple(outcome.changed), version, outputs, outcome.removed_links)


def is_unfinished(dataset: DatasetHandle, shards: Set[int]) -> bool:
    """Return whether a correction of these shards was interrupted.

    An interrupted correction leaves reservations or former commits behind, or no version records its commits. Other
    shards are ignored, because they may have changed since. Reservations for uncommitted shards are also ignored,
    because they may belong to a build.
    """
    names = (parse_commit_name(name) for name in (dataset.location / COMMITS).walk_ever())
    generations = [name for name in names if name is not None and name[0] in shards]
    committed = {shard for shard, _ in generations}
    if len(generations) > len(committed):
        return True
    reservations = (parse_reservation_name(entry.name) for entry in (dataset.location / RESERVATIONS).list())
    if any(reservation is not None and reservation[0] in committed for reservation in reservations):
        return True
    changed = {name for name in generations if name[1] > 1}
    try:
        latest = latest_version(dataset.location) if changed else None
    except DamagedDatasetError:  # `segmint verify` reports it
        latest = None
    recorded = set() if latest is None else {(shard, generation) for shard, generation, _ in latest.commits}
    return bool(changed - recorded)
