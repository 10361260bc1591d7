"""What a merge of submissions would do, and what it did, for people and programs."""

from collections.abc import Mapping
from dataclasses import dataclass

from segmint.catalogs.layout import image_stem
from segmint.infra.wording import counted, listed, some
from segmint.pipeline.corrections.mask_revision import RevisionCounts, RevisionResult
from segmint.pipeline.corrections.merge.row import SubmissionRow

COUNTED = ("same", "corrected", "added", "deleted", "unfit")
"""What becomes of masks, as `SubmissionRow` counts them."""


@dataclass
class MergeCounts(RevisionCounts):
    """What becomes of the images that have submissions, and of their masks."""

    unchanged: int = 0  # of these, looked at and left with the masks that they have
    merged: int = 0  # whose last submission was merged before
    superseded: int = 0  # with an earlier submission, to another state, never merged, that says more
    uncompared: int = 0  # whose other assignment has a submission that is neither merged nor compared

    def count(self, image: int, merged: SubmissionRow) -> None:
        """Count an image, by its number."""
        if merged.left is not None:
            self.leave(image_stem(image), merged.left.value)
            return
        self.images += 1
        self.unchanged += not merged.changes_masks
        self.masks.update({each: getattr(merged, each) for each in COUNTED})
        if merged.superseded:
            self.superseded += 1
            submissions = counted(merged.superseded, "earlier submission")
            self.example(
                f"{image_stem(image)}: {submissions}, to another state, never merged: not all of it is in the later"
            )
        if merged.unfit:
            masks = counted(merged.unfit, "mask")
            self.example(f"{image_stem(image)}: {masks} of the submission left out: the image has others there now")

    def count_apart(self, image: int, assignment: int) -> None:
        """Count an image of whose other `assignment` the last submission is neither merged nor compared."""
        self.uncompared += 1
        self.example(
            f"{image_stem(image)}: the last submission of assignment {assignment} is neither merged nor compared"
        )

    def add(self, other: RevisionCounts) -> None:
        """Add the images of another shard."""
        super().add(other)
        if not isinstance(other, MergeCounts):
            return
        self.unchanged += other.unchanged
        self.merged += other.merged
        self.superseded += other.superseded
        self.uncompared += other.uncompared


@dataclass(frozen=True)
class MergeList:
    """What a merge would change.

    `masks` counts those of submissions that an image has already (`same`), that take the place of one (`corrected`),
    that are new (`added`), masks that are `deleted`, and what is left out because it fits no more (`unfit`).
    """

    dataset: str
    name: str
    submitted: int  # images with a submission
    images: int  # that change
    unchanged: int  # of these, looked at and left with the masks that they have
    merged: int  # images whose last submission was merged before
    superseded: int  # of those that change: with an earlier submission, to another state, never merged, that says more
    uncompared: int  # with a submission in the other assignment that is neither merged nor compared
    masks: Mapping[str, int]
    skipped_images: Mapping[str, int]  # that stay as they are, by the reason
    examples: tuple[str, ...]
    shards: tuple[int, ...]  # that change

    @classmethod
    def of(cls, names: tuple[str, str], submitted: int, tally: MergeCounts, shards: tuple[int, ...]) -> "MergeList":
        """Return the list of a merge; `names` are the dataset's place and name."""
        return cls(
            dataset=names[0],
            name=names[1],
            submitted=submitted,
            images=tally.images,
            unchanged=tally.unchanged,
            merged=tally.merged,
            superseded=tally.superseded,
            uncompared=tally.uncompared,
            masks={each: tally.masks[each] for each in COUNTED},
            skipped_images=dict(tally.left.most_common()),
            examples=tuple(tally.examples),
            shards=shards,
        )

    @property
    def rows(self) -> int:
        """The number of images that change."""
        return self.images

    def lines(self) -> list[str]:
        """Return the list as lines for people."""
        shards = f", in {counted(len(self.shards), 'shard')}: {some([str(shard) for shard in self.shards])}"
        return [
            f"submissions for {counted(self.images, 'image')} of {self.dataset} would be merged"
            f"{shards if self.shards else ''}",
            *self.found(),
        ]

    def found(self) -> list[str]:
        """Return lines of what the submissions say."""
        said = listed(f"{count:,} {what}" for what, count in self.masks.items() if count)
        lines = [f"{counted(self.submitted, 'image')} submitted; masks: {said or 'none'}"]
        if self.unchanged:
            lines.append(f"looked at and left unchanged: {counted(self.unchanged, 'image')}")
        if self.merged:
            lines.append(f"merged before: {counted(self.merged, 'image')}")
        if self.superseded:
            lines.append(
                f"an earlier submission, to another state, was never merged: {counted(self.superseded, 'image')}; "
                "the later submission, which holds, does not have all of it"
            )
        if self.uncompared:
            lines.append(
                f"submitted by two people to different states: {counted(self.uncompared, 'image')}; one assignment is "
                "merged, and the other's last submission is kept"
            )
        lines += [f"left as they are: {counted(n, 'image')}: {why}" for why, n in self.skipped_images.items()]
        return [*lines, *(f"  {example}" for example in self.examples)]

    def reason(self) -> str:
        """Return what a version says of the merge."""
        said = listed(f"{self.masks[what]:,} {what}" for what in ("corrected", "added", "deleted") if self.masks[what])
        return f"submissions for {counted(self.images, 'image')}: {said or 'no mask changed'}"


@dataclass(frozen=True)
class MergeResult(RevisionResult[MergeList]):
    """The result of a merge."""

    def lines(self) -> list[str]:
        """Return the result as lines for people."""
        if not self.listed.images:
            return [f"nothing to merge into {self.listed.dataset}", *self.listed.found(), self.version.line()]
        return [
            f"submissions for {counted(self.listed.images, 'image')} merged in "
            f"{counted(len(self.changed_shards), 'shard')}",
            *self.listed.found(),
            *self.last_lines(),
        ]
