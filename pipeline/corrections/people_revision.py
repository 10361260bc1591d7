"""Revisions that bring masks of people into a dataset, for imports and merges: what they count, and how they end."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Generic, Protocol, TypeVar

from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.dataset.outputs import line_of, read_notes
from segmint.catalogs.dataset.versions.record import VersionName, name_now, put_version
from segmint.infra.storage.location import Location
from segmint.operators.shards.replace import check_purge
from segmint.operators.shards.revise import Change
from segmint.pipeline.corrections.common import is_unfinished, release_config
from segmint.pipeline.corrections.revision import Revision, revise

SHOWN = 20
"""Images that are named for people; all are counted."""


class Listed(Protocol):
    """What a revision would change."""

    @property
    def images(self) -> int:
        """The number of images that change."""

    def reason(self) -> str:
        """Return what a version says of it."""


L = TypeVar("L", bound=Listed)


@dataclass
class MaskTally:
    """What becomes of the images that there is something for, and of their masks."""

    images: int = 0  # that change
    masks: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)  # images that stay as they are, by the reason
    examples: list[str] = field(default_factory=list)

    def leave(self, name: str, why: str, detail: str | None = None) -> None:
        """Count an image that stays as it is."""
        self.left[why] += 1
        self.example(f"{name}: left as it is: {detail or why}")

    def add(self, other: "MaskTally") -> None:
        """Add the images of another shard."""
        self.images += other.images
        self.masks += other.masks
        self.left += other.left
        self.examples = [*self.examples, *other.examples][:SHOWN]

    def example(self, line: str) -> None:
        """Name an image, if there is room."""
        if len(self.examples) < SHOWN:
            self.examples.append(line)


@dataclass(frozen=True)
class MaskPlan(Generic[L]):
    """What a revision is to do; `listed` says it."""

    manifest: DatasetManifest
    listed: L
    shards: Set[int]  # that there is something for
    change: Change
    unchanged: Mapping[int, int]  # shards in which nothing changes, with the generation that was looked at


@dataclass(frozen=True)
class RevisedMasks(Generic[L]):
    """What a revision did."""

    listed: L  # what was to be done
    changed_shards: tuple[int, ...]
    version: VersionName
    outputs: tuple[str, ...] = ()  # made from the dataset and noted in it: they have the former masks
    removed_links: tuple[str, ...] = ()  # of report/, with what they led to, which was left alone

    def to_dict(self) -> dict[str, Any]:
        """Return the answer for JSON."""
        fields = asdict(self)
        return {**fields.pop("listed"), **fields}

    def last_lines(self) -> Sequence[str]:
        """Return what people have to do, and the version, as lines for them."""
        return [
            *(f"made from this dataset, and yours to make again: {output}" for output in self.outputs),
            *(f"only the link was removed, look where it led: {link}" for link in self.removed_links),
            self.version.line(),
        ]


R = TypeVar("R", bound=RevisedMasks[Any])


def revise_masks(
    dataset: Location,
    command: str,
    plan: MaskPlan[L],
    result: Callable[[L, tuple[int, ...], VersionName, tuple[str, ...], tuple[str, ...]], R],
    confirm: Callable[[L], None] | None,
    now: datetime | None,
) -> R:
    """Do what is planned, and record the version by the name of the command.

    `confirm` is called with what will be changed, and may raise to stop it. Then each shard's next generation is put.
    After an interruption at any point, the same call completes the work; where nothing is to be changed or completed,
    nothing is touched, and `confirm` is not called. Raises `UsageError` for a store whose older versions cannot be
    removed, before anything is changed.
    """
    if not plan.listed.images and not is_unfinished(dataset, sorted(plan.shards)):
        return result(plan.listed, (), name_now(dataset), (), ())
    check_purge(dataset)
    if confirm is not None:
        confirm(plan.listed)
    revision = Revision(
        shards=plan.shards,
        change=plan.change,
        with_images=release_config(plan.manifest).format == "images",
        needed=lambda commit: plan.unchanged.get(commit.shard) != commit.generation,
    )
    outcome = revise(dataset, plan.manifest, revision)
    return result(
        plan.listed,
        tuple(outcome.changed),
        put_version(dataset, command, plan.listed.reason(), now),
        tuple(line_of(note) for note in read_notes(dataset)),
        outcome.removed_links,
    )
