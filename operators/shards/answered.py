"""What an answer says of its masks, as columns of the table of masks."""

from collections.abc import Sequence
from typing import Any

from segmint.catalogs.dataset.annotations.answers import Answer, AnswerError, AnswerMask, read_answers
from segmint.infra.storage.location import Location
from segmint.operators.rows import Row

_PROMPT = ("kind", "x", "y", "w", "h", "label", "text")


def is_prompted(mask: AnswerMask) -> bool:
    """Whether the model answered to a click or a box."""
    return any(prompt.kind != "mask" for prompt in mask.prompts)


def made_in(mask: AnswerMask, answers: Sequence[Answer]) -> Answer:
    """Return the answer that a mask of the last of a lane's answers, in order, came with.

    Each answer says again what those before it said: the same pixels, prompts and source since then.
    """
    *earlier, maker = answers
    for answer in reversed(earlier):
        if not any(_is_same(mask, other) for other in answer.masks):
            break
        maker = answer
    return maker


def _is_same(one: AnswerMask, other: AnswerMask) -> bool:
    return (one.counts, one.source, one.prompts) == (other.counts, other.source, other.prompts)


def said_of(mask: AnswerMask, answers: Sequence[Answer]) -> dict[str, Any]:
    """Return the columns that a mask has of the last of a lane's answers, in order, without label and parent.

    Who made it, and the model that answered, are of the answer that it came with.
    """
    maker = made_in(mask, answers)
    return {
        "source": mask.source,
        "annotator": maker.annotator,
        "seconds": mask.seconds,
        "prompts": [{**dict.fromkeys(_PROMPT), **prompt.model_dump()} for prompt in mask.prompts],
        "model": maker.model if is_prompted(mask) else None,
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
    of_lane = [answer for answer in answers if answer.lane == merged["lane"] and answer.n <= merged["n"]]
    return {
        mask.counts: {**said_of(mask, of_lane[: place + 1]), "label": mask.label, "parent": mask.parent}
        for place, answer in enumerate(of_lane)
        for mask in answer.masks
    }
