"""Comparison of an annotator's submission with an image's current masks, shared by merges and studies.

Columns of the masks table for the masks of a submission.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segmint.catalogs.dataset.submissions import (
    FormerMask,
    Merged,
    Submission,
    SubmissionError,
    SubmittedMask,
    is_merged,
    last_of_states,
    read_submissions,
)
from segmint.infra.storage.location import Location
from segmint.operators.rows import AUTOMATIC, PERSON, Row
from segmint.operators.shards.put import counts_of

_PROMPT = ("kind", "x", "y", "w", "h", "label", "text", "clip_sha256")


def is_prompted(mask: SubmittedMask) -> bool:
    """Return whether the model predicted the mask from a click, a box, or a text."""
    return any(prompt.kind != "mask" for prompt in mask.prompts)


def made_in(mask: SubmittedMask, submissions: Sequence[Submission]) -> Submission:
    """Return the submission that first contained a mask of the last submission.

    `submissions` contains an assignment's submissions, in order. Each of them repeats the masks of earlier ones.
    Starting at the last submission, this function goes back as long as the mask's pixels, prompts, and source are the
    same.
    """
    *earlier, maker = submissions
    for submission in reversed(earlier):
        others = ((other.counts, other.source, other.prompts) for other in submission.masks)
        if (mask.counts, mask.source, mask.prompts) not in others:
            break
        maker = submission
    return maker


def mask_columns(mask: SubmittedMask, submissions: Sequence[Submission]) -> dict[str, Any]:
    """Return the columns of a mask, except for its label and parent.

    `submissions` contains an assignment's submissions, in order. The annotator and the model come from the first
    submission that contained the mask.
    """
    maker = made_in(mask, submissions)
    return {
        "source": mask.source,
        "annotator": maker.annotator,
        "seconds": mask.seconds,
        "prompts": [{**dict.fromkeys(_PROMPT), **prompt.model_dump()} for prompt in mask.prompts],
        "model": maker.model if is_prompted(mask) else None,
    }


def label_columns(mask: SubmittedMask) -> dict[str, Any]:
    """Return the label columns that a submission specifies for a mask. An empty label means that it was removed."""
    return {"label": mask.label or None, "label_score": None, "label_source": None if mask.label is None else PERSON}


def submitted_columns(dataset: Location, image: Row) -> dict[str, dict[str, Any]]:
    """Return the columns of an image's masks from its merged submissions, keyed by run lengths.

    `image` is the image's row in the images table. If several submissions contain the same mask, the last one wins. The
    result is empty if no submission was merged, or if one of them can't be read.
    """
    merged = image.get("submission") or {}
    if merged.get("assignment") is None:
        return {}
    try:
        submissions = read_submissions(dataset, image["ordinal"])
    except SubmissionError:
        return {}
    until: list[Submission] = []
    found = {}
    for submission in submissions:
        if submission.assignment == merged["assignment"] and submission.n <= merged["n"]:
            until.append(submission)
            for mask in submission.masks:
                found[mask.counts] = {**mask_columns(mask, until), **label_columns(mask), "parent": mask.parent}
    return found


_OF_WORK = ("annotator", "seconds", "prompts", "model")


@dataclass(frozen=True)
class SubmissionFit:
    """The parts of a submission that still apply to an image. Annotation ids identify the image's masks."""

    new: Sequence[SubmittedMask]  # masks to write, without duplicates
    parents: Mapping[str, FormerMask]  # the mask that each new one replaces, keyed by the new mask's run lengths
    gone: frozenset[int]  # masks to remove from the image
    same: int  # number of submitted masks that the image already contains, pixel for pixel
    unfit: Sequence[str]  # one reason per mask or deletion that refers to a mask that has since changed or disappeared
    repeated: Sequence[str]  # one message per mask that repeats an earlier mask of the submission


def fit_submission(masks: Mapping[int, Row], submissions: Sequence[Submission], merged: Merged) -> SubmissionFit:
    """Determine which parts of an assignment's last submission still apply to an image.

    `masks` contains the image's mask rows by annotation id. `submissions` contains all submissions of the assignment,
    in order. `merged` is the column `submission` of the image's row.

    A mask stays if the last submission neither replaces nor deletes it, or replaces it with the same pixels. If the
    last submission was made for the same state of the image as the last merged submission, it supersedes the merged
    one. The masks that the merged submission added are then removed, unless the last submission contains them too.
    """
    submission = submissions[-1]
    former = merged_before(submissions, merged)
    by_counts = {counts_of(mask): id for id, mask in masks.items()}
    done: dict[int, str] = {}  # masks that the former submission removed
    undone: set[int] = set()
    if former is not None:
        done = {mask.id: mask.counts for mask in (*former.replaced, *former.deleted)}
        held = {mask.counts for mask in submission.masks}
        undone = {id for id in _made_by(former, masks, submissions) if counts_of(masks[id]) not in held}

    def fits(mask: FormerMask) -> bool:
        if mask.id in masks:
            return counts_of(masks[mask.id]) == mask.counts
        return done.get(mask.id) == mask.counts

    def changed(id: int) -> str:
        return "has changed since" if id in masks else "no longer exists"

    replaced = {mask.id: mask for mask in submission.replaced if fits(mask)}
    deleted, unfit = set(), []
    for each in submission.deleted:
        if fits(each):
            deleted.add(each.id)
        else:
            unfit.append(f"mask {each.id} isn't deleted: it {changed(each.id)}")
    kept = done.keys() - {mask.id for mask in (*submission.replaced, *submission.deleted)}
    for id in sorted(kept):
        did = "relabeled" if id in masks else "removed"
        unfit.append(f"mask {id} isn't restored: a submission that was merged {did} it")
    gone = undone | (deleted & masks.keys())
    stays: set[int] = set()
    new: dict[str, SubmittedMask] = {}
    parents: dict[str, FormerMask] = {}
    repeated = []
    same = 0
    for place, mask in enumerate(submission.masks, 1):
        if mask.parent is not None and mask.parent not in replaced:
            parent = f"mask {mask.parent}, which it replaces, {changed(mask.parent)}"
            unfit.append(f"mask {place} of {submission.path} isn't merged: {parent}")
            continue
        here = by_counts.get(mask.counts)
        if here is not None and here not in gone:
            same += 1
            stays.add(here)
        elif mask.counts not in new:
            new[mask.counts] = mask
            if mask.parent is not None:
                parents[mask.counts] = replaced[mask.parent]
        else:
            repeated.append(f"mask {place} of {submission.path} isn't merged: it repeats an earlier one")
    gone |= (replaced.keys() & masks.keys()) - stays
    return SubmissionFit(list(new.values()), parents, frozenset(gone), same, unfit, repeated)


def merged_before(submissions: Sequence[Submission], merged: Merged) -> Submission | None:
    """Return the last merged submission, or None unless it was made for the same state as the last submission."""
    *earlier, submission = submissions
    found = None
    for each in earlier:
        if is_merged(merged, each.assignment, each.n) and each.n == (merged or {})["n"]:
            found = each
    if found is None or found.base != submission.base:
        return None
    return found


def _made_by(former: Submission, masks: Mapping[int, Row], submissions: Sequence[Submission]) -> set[int]:
    """Return the ids of the image's masks that a submission added.

    A mask wasn't added if it was already in the state that the submission was based on, even if the submission contains
    the same pixels. This excludes masks from submissions to earlier states, masks from a build, and masks whose columns
    differ from the submission's.
    """
    until = [submission for submission in submissions if submission.n < former.n]
    shown: set[str] = set()
    for earlier in last_of_states(submission for submission in until if submission.base != former.base):
        for removed in (*earlier.replaced, *earlier.deleted):
            shown.discard(removed.counts)
        for mask in earlier.masks:
            shown.add(mask.counts)
    made = {mask.counts: mask for mask in reversed(former.masks) if mask.counts not in shown}
    found = set()
    for id, row in masks.items():
        own = made.get(counts_of(row))
        if row["source"] == AUTOMATIC or own is None:
            continue
        if _work_columns(row) == _work_columns(mask_columns(own, [*until, former])):
            found.add(id)
    return found


def _work_columns(row: Row) -> Row:
    return {name: row[name] for name in _OF_WORK}
