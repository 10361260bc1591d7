"""What an answer says of its masks, as columns of the table of masks."""

from typing import Any

from segmint.catalogs.dataset.annotations.answers import Answer, AnswerError, AnswerMask, read_answers
from segmint.infra.storage.location import Location
from segmint.operators.rows import Row

_PROMPT = ("kind", "x", "y", "w", "h", "label", "text")


def is_prompted(mask: AnswerMask) -> bool:
    """Whether the model answered to a click or a box."""
    return any(prompt.kind != "mask" for prompt in mask.prompts)


def said_of(mask: AnswerMask, answer: Answer) -> dict[str, Any]:
    """Return the columns that an answer's mask has of it, without label and parent."""
    return {
        "source": mask.source,
        "annotator": answer.annotator,
        "seconds": mask.seconds,
        "prompts": [{**dict.fromkeys(_PROMPT), **prompt.model_dump()} for prompt in mask.prompts],
        "model": answer.model if is_prompted(mask) else None,
    }


def said_by_answers(dataset: Location, image: Row) -> dict[str, dict[str, Any]]:
    """Return what the answers that were merged into an image say of their masks, by run lengths.

    `image` is its row in the table of images. Of answers that have the same mask the last one says it. Empty if none
    was merged, or one cannot be read.
    """
    merged = image.get("answer") or {}
    if merged.get("lane") is None:
        return {}
    try:
        answers = read_answers(dataset, image["ordinal"])
    except AnswerError:
        return {}
    return {
        mask.counts: {**said_of(mask, answer), "label": mask.label, "parent": mask.parent}
        for answer in answers
        if answer.lane == merged["lane"] and answer.n <= merged["n"]
        for mask in answer.masks
    }
