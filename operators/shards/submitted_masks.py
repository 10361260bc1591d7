"""Columns of the masks table for the masks of a submission."""

from collections.abc import Sequence
from typing import Any

from segmint.catalogs.dataset.annotations.submissions import (
    Submission,
    SubmissionError,
    SubmittedMask,
    read_submissions,
)
from segmint.infra.storage.location import Location
from segmint.operators.rows import Row
from segmint.operators.schemas import PERSON

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
