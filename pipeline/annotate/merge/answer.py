"""What a merge of answers would do, and what it did, for people and programs."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from segmint.catalogs.dataset.versions.record import VersionName
from segmint.catalogs.layout import image_stem
from segmint.infra.wording import counted, listed, some
from segmint.pipeline.annotate.merge.row import Left, MergedRow

COUNTED = ("same", "corrected", "added", "deleted", "unfit")
"""What becomes of masks, as `MergedRow` counts them."""

SHOWN = 20
"""Images that are named for people; all are counted."""

_RISES = "the dataset gets format 2 first, for where masks come from; shards that do not change keep their bytes"


@dataclass
class Tally:
    """What becomes of the images that have answers, and of their masks."""

    images: int = 0  # whose rows change
    unchanged: int = 0  # of these, looked at and left with the masks that they have
    merged: int = 0  # whose last answer was merged before
    superseded: int = 0  # with an earlier answer, to another state, never merged, that says more
    apart: int = 0  # whose other lane has an answer that is neither merged nor compared
    masks: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def count(self, image: int, merged: MergedRow) -> None:
        """Count an image, by its number."""
        if merged.left is not None:
            self.leave(image, merged.left)
            return
        self.images += 1
        self.unchanged += not merged.changes_masks
        self.masks.update({each: getattr(merged, each) for each in COUNTED})
        if merged.superseded:
            self.superseded += 1
            answers = counted(merged.superseded, "earlier answer")
            self._example(
                f"{image_stem(image)}: {answers}, to another state, never merged: not all of it is in the later"
            )
        if merged.unfit:
            masks = counted(merged.unfit, "mask")
            self._example(f"{image_stem(image)}: {masks} of the answer left out: the image has others there now")

    def count_apart(self, image: int, lane: int) -> None:
        """Count an image of whose other `lane` the last answer is neither merged nor compared."""
        self.apart += 1
        self._example(f"{image_stem(image)}: the last answer of lane {lane} is neither merged nor compared")

    def leave(self, image: int, why: Left, detail: str | None = None) -> None:
        """Count an image that stays as it is."""
        self.left[why.value] += 1
        self._example(f"{image_stem(image)}: left as it is: {detail or why.value}")

    def add(self, other: "Tally") -> None:
        """Add the images of another shard."""
        self.images += other.images
        self.unchanged += other.unchanged
        self.merged += other.merged
        self.superseded += other.superseded
        self.apart += other.apart
        self.masks += other.masks
        self.left += other.left
        self.examples = [*self.examples, *other.examples][:SHOWN]

    def _example(self, line: str) -> None:
        if len(self.examples) < SHOWN:
            self.examples.append(line)


@dataclass(frozen=True)
class MergeList:
    """What a merge would change.

    `masks` counts those of answers that an image has already (`same`), that take the place of one (`corrected`), that
    are new (`added`), masks that are `deleted`, and what is left out because it fits no more (`unfit`).
    """

    dataset: str
    name: str
    answered: int  # images with an answer
    images: int  # that change
    unchanged: int  # of these, looked at and left with the masks that they have
    merged: int  # images whose last answer was merged before
    superseded: int  # of those that change: with an earlier answer, to another state, never merged, that says more
    apart: int  # with an answer in the other lane that is neither merged nor compared
    masks: Mapping[str, int]
    left_images: Mapping[str, int]  # that stay as they are, by the reason
    examples: tuple[str, ...]
    shards: tuple[int, ...]  # that change
    rises: bool  # whether the dataset gets the format that has columns for where masks come from

    @classmethod
    def of(
        cls, names: tuple[str, str], answered: int, tally: Tally, shards: tuple[int, ...], *, rises: bool
    ) -> "MergeList":
        """Return the list of a merge; `names` are the dataset's place and name."""
        return cls(
            dataset=names[0],
            name=names[1],
            answered=answered,
            images=tally.images,
            unchanged=tally.unchanged,
            merged=tally.merged,
            superseded=tally.superseded,
            apart=tally.apart,
            masks={each: tally.masks[each] for each in COUNTED},
            left_images=dict(tally.left.most_common()),
            examples=tuple(tally.examples),
            shards=shards,
            rises=rises,
        )

    @property
    def rows(self) -> int:
        """The number of images that change."""
        return self.images

    def to_dict(self) -> dict[str, Any]:
        """Return the list for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the list as lines for people."""
        shards = f", in {counted(len(self.shards), 'shard')}: {some([str(shard) for shard in self.shards])}"
        return [
            f"answers for {counted(self.images, 'image')} of {self.dataset} would be merged"
            f"{shards if self.shards else ''}",
            *self.found(),
            *([_RISES] if self.rises and self.images else []),
        ]

    def found(self) -> list[str]:
        """Return lines of what the answers say."""
        said = listed(f"{count:,} {what}" for what, count in self.masks.items() if count)
        lines = [f"{counted(self.answered, 'image')} answered; masks: {said or 'none'}"]
        if self.unchanged:
            lines.append(f"looked at and left unchanged: {counted(self.unchanged, 'image')}")
        if self.merged:
            lines.append(f"merged before: {counted(self.merged, 'image')}")
        if self.superseded:
            lines.append(
                f"an earlier answer, to another state, was never merged: {counted(self.superseded, 'image')}; "
                "the later answer, which holds, does not have all of it"
            )
        if self.apart:
            lines.append(
                f"answered by two people to different states: {counted(self.apart, 'image')}; one lane is merged, and "
                "the other's last answer is kept"
            )
        lines += [f"left as they are: {counted(n, 'image')}: {why}" for why, n in self.left_images.items()]
        return [*lines, *(f"  {example}" for example in self.examples)]

    def reason(self) -> str:
        """Return what a version says of the merge."""
        said = listed(f"{self.masks[what]:,} {what}" for what in ("corrected", "added", "deleted") if self.masks[what])
        return f"answers for {counted(self.images, 'image')}: {said or 'no mask changed'}"


@dataclass(frozen=True)
class MergedAnswers:
    """The result of a merge."""

    listed: MergeList  # what was to be done
    changed_shards: tuple[int, ...]
    version: VersionName
    outputs: tuple[str, ...] = ()  # made from the dataset and noted in it: they have the former masks
    removed_links: tuple[str, ...] = ()  # of report/, with what they led to, which was left alone

    def to_dict(self) -> dict[str, Any]:
        """Return the answer for JSON."""
        fields = asdict(self)
        return {**fields.pop("listed"), **fields}

    def lines(self) -> list[str]:
        """Return the answer as lines for people."""
        if not self.listed.images:
            return [f"nothing to merge into {self.listed.dataset}", *self.listed.found(), self.version.line()]
        return [
            f"answers for {counted(self.listed.images, 'image')} merged in "
            f"{counted(len(self.changed_shards), 'shard')}",
            *self.listed.found(),
            *(f"made from this dataset, and yours to make again: {output}" for output in self.outputs),
            *(f"only the link was removed, look where it led: {link}" for link in self.removed_links),
            self.version.line(),
        ]
