"""The next row of an image from its row and a person's answer for it: a pure function.

What an answer replaces or deletes is compared with what the image has, so that of an answer to an earlier state what
still fits is merged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from segmint.catalogs.dataset.annotations.answers import Answer, AnswerMask, FormerMask
from segmint.catalogs.dataset.annotations.lanes import is_merged, lane_to_merge, last_of_states
from segmint.catalogs.dataset.annotations.names import AnswerName
from segmint.catalogs.reasons import Reason
from segmint.operators.describe import image_statistics
from segmint.operators.rows import Row
from segmint.operators.schemas import ANNOTATION_STAGE, AUTOMATIC, MASKS_PER_IMAGE_LIMIT
from segmint.operators.shards.answered import is_prompted, said_of
from segmint.operators.shards.files import annotation_id
from segmint.operators.shards.fitting import fit_answer
from segmint.pipeline.corrections.people_masks import (
    NewMask,
    described_masks,
    is_of_build,
    numbered_masks,
)


class Left(StrEnum):
    """Why an image stays as it is though it has an answer."""

    TAKEN_DOWN = "taken down"
    REFUSED = "refused by the build"
    NOT_BUILT = "not built yet"
    UNREADABLE = "an answer that cannot be read"
    OTHER_SIZE = "masks of another size than the image"
    TOO_MANY = "over 10,000 masks with those that it ever had"


@dataclass(frozen=True)
class MergedRow:
    """The next row of an image: the same object if it is left as it is. Masks are counted."""

    row: Row
    left: Left | None = None
    same: int = 0  # of the answer, that the image has already, pixel for pixel
    corrected: int = 0  # that take the place of a mask
    added: int = 0
    deleted: int = 0
    unfit: int = 0  # of the answer, whose mask in the image is another one now, or gone
    superseded: int = 0  # earlier answers, to other states, never merged, that say what the one merged does not

    @property
    def changes_masks(self) -> bool:
        """Whether the image has other masks then."""
        return bool(self.corrected or self.added or self.deleted)


def answer_to_merge(row: Row, names: Sequence[AnswerName]) -> AnswerName | None:
    """Return which of an image's answers is to be merged into its described row; None if that was done.

    That is the last one of the lane that was merged before, or else of the lowest lane. The other lane only says how
    well people agree.
    """
    lane = lane_to_merge(row["answer"], (name.lane for name in names))
    last = max((name for name in names if name.lane == lane), default=None)
    return None if last is None or is_merged(row["answer"], last.lane, last.n) else last


def left_alone(row: Row) -> Left | None:
    """Return why no answer can be merged into a row; None if one can."""
    if row["reason"] is None:
        return None
    return Left.TAKEN_DOWN if row["reason"] == Reason.TAKEN_DOWN else Left.REFUSED


def merge_answer(row: Row, answers: Sequence[Answer]) -> MergedRow:
    """Merge the last of a lane's answers, all of which are given in order, into an image's described row.

    Masks that the answer neither replaces nor deletes are kept, and so is each whose replacement is the same pixel for
    pixel. A mask whose parent is another one now, or gone, does not fit and is left out; so is a deletion. Where the
    answer was given to the same state as the one that was merged last, it takes that one's place. Raises
    `DamagedDatasetError` if the row's masks or its `next_mask` are damaged.
    """
    answer = answers[-1]
    left = left_alone(row)
    if left is None and answer.size != (row["height"], row["width"]):
        left = Left.OTHER_SIZE
    if left is not None:
        return MergedRow(row, left)
    old = numbered_masks(row)
    by_id = {annotation_id(row["id"], mask["index"]): mask for mask in old}
    plan = fit_answer(by_id, answers, row["answer"])
    parents = {counts: by_id.get(former.id) or _as_it_was(row, former) for counts, former in plan.parents.items()}
    first = int(row["next_mask"])
    if first + len(plan.new) > MASKS_PER_IMAGE_LIMIT:
        return MergedRow(row, Left.TOO_MANY)
    gone = {by_id[id]["index"] for id in plan.gone}
    kept = [mask for mask in old if mask["index"] not in gone]
    new = [_new_mask(mask, parents.get(mask.counts), answers) for mask in plan.new]
    masks = [*kept, *described_masks(row, new, parents, first, {})]
    corrected = len({former.id for former in plan.parents.values()} & plan.gone)
    next_row: Row = {
        **row,
        "masks": masks,
        "next_mask": first + len(new),
        "answer": {"lane": answer.lane, "n": answer.n, "sha256": answer.sha256},
        "annotator": answer.annotator,
        ANNOTATION_STAGE: answer.stage,
        "seconds": seconds_of(answers),
        "complete": answer.complete and not plan.unfit,
    }
    if plan.new or plan.gone:
        next_row["statistics"] = image_statistics(answer.size, masks)
    return MergedRow(
        next_row,
        same=plan.same,
        corrected=sum(mask.counts in plan.parents for mask in plan.new),
        added=sum(mask.counts not in plan.parents for mask in plan.new),
        deleted=len(plan.gone) - corrected,
        unfit=plan.unfit,
        superseded=_superseded(row, answers),
    )


def seconds_of(answers: Sequence[Answer]) -> float:
    """Return the active seconds of a lane's answers, in order: of those to one state the last has them all."""
    return sum(answer.seconds for answer in last_of_states(answers))


def _superseded(row: Row, answers: Sequence[Answer]) -> int:
    """Return how many states have an answer that was never merged, and says what the last one does not say again."""
    waiting = [answer for answer in answers if not is_merged(row["answer"], answer.lane, answer.n)]
    last = _words(answers[-1])
    return sum(not _words(answer) <= last for answer in last_of_states(waiting) if answer.base != answers[-1].base)


def _words(answer: Answer) -> set[str | int]:
    """Return what an answer says: new masks, and those of the dataset that are not to stay."""
    return {mask.counts for mask in answer.masks} | {mask.id for mask in (*answer.replaced, *answer.deleted)}


def _as_it_was(row: Row, mask: FormerMask) -> Row:
    """Return what is known of a mask that is gone: it counts as one of a build."""
    return {
        "index": mask.id - annotation_id(row["id"], 0),
        "segmentation": {"size": [row["height"], row["width"]], "counts": mask.counts},
        "source": AUTOMATIC,
        "label": None,
        "origin": None,
    }


def _new_mask(mask: AnswerMask, parent: Row | None, answers: Sequence[Answer]) -> NewMask:
    # What is made from an imported mask stays under the license of its file.
    said = {**said_of(mask, answers), "origin": None if parent is None else parent["origin"]}
    if mask.source == "corrected" and parent is not None and not is_of_build(parent):
        drawn = is_prompted(mask) and parent["source"] == "manual"
        said["source"] = "assisted" if drawn else parent["source"]
    return NewMask(mask.counts, None, mask.label, said)
