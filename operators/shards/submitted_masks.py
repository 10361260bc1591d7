"""What a submission says of its masks, as columns of the table of masks."""

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

_PROMPT = ("kind", "x", "y", "w", "h", "label", "text")


def is_prompted(mask: SubmittedMask) -> bool:
    """Whether the model answered to a click or a box."""
    return any(prompt.kind != "mask" for prompt in mask.prompts)


def made_in(mask: SubmittedMask, submissions: Sequence[Submission]) -> Submission:
    """Return the submission that a mask of the last of an assignment's submissions, in order, came with.

    Each submission says again what those before it said: the same pixels, prompts and source since then.
    """
    *earlier, maker = submissions
    for submission in reversed(earlier):
        if not any(_is_same(mask, other) for other in submission.masks):
            break
        maker = submission
    return maker


def _is_same(one: SubmittedMask, other: SubmittedMask) -> bool:
    return (one.counts, one.source, one.prompts) == (other.counts, other.source, other.prompts)


def mask_columns(mask: SubmittedMask, submissions: Sequence[Submission]) -> dict[str, Any]:
    """Return a mask's columns, without label and parent, by the last of an assignment's submissions, in order.

    Who made it, and the model that answered, are of the submission that it came with.
    """
    maker = made_in(mask, submissions)
    return {
        "source": mask.source,
        "annotator": maker.annotator,
        "seconds": mask.seconds,
        "prompts": [{**dict.fromkeys(_PROMPT), **prompt.model_dump()} for prompt in mask.prompts],
        "model": maker.model if is_prompted(mask) else None,
    }


def submitted_columns(dataset: Location, image: Row) -> dict[str, dict[str, Any]]:
    """Return what the submissions that were merged into an image say of their masks, by run lengths.

    `image` is its row in the table of images. Of submissions that have the same mask the last one says it. Empty if
    none was merged, or one cannot be read.
    """
    merged = image.get("submission") or {}
    if merged.get("assignment") is None:
        return {}
    try:
        submissions = read_submissions(dataset, image["ordinal"])
    except SubmissionError:
        return {}
    of_assignment = [
        submission
        for submission in submissions
        if submission.assignment == merged["assignment"] and submission.n <= merged["n"]
    ]
    return {
        mask.counts: {**mask_columns(mask, of_assignment[: place + 1]), "label": mask.label, "parent": mask.parent}
        for place, submission in enumerate(of_assignment)
        for mask in submission.masks
    }
