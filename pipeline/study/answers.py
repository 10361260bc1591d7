"""Corrections of a study's masks from the answers that people gave in the browser, merged or not."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from segmint.catalogs.dataset.annotations.answers import Answer, AnswerError, read_answers
from segmint.catalogs.layout import image_name
from segmint.infra.storage.location import Location
from segmint.infra.threads import map_ahead
from segmint.operators.annotations.image import AnnotatedImage, AnnotatedMask, CocoRle, Size
from segmint.pipeline.study.corrections import Corrections
from segmint.pipeline.study.pairs import StudyMask

_THREADS = 16

State = list[tuple[int | None, str]]
"""The masks of an image: the id of the mask that was drawn, None for an added one, and its run lengths now."""


def read_answered(
    dataset: Location, drawn: Mapping[int, Sequence[StudyMask]], sizes: Mapping[int, Size]
) -> Corrections:
    """Read what people answered for the images of a study, whose masks are `drawn` by the image's id.

    Of an image that two people annotated the answers of the lowest lane count. Masks are followed from answer to answer
    by their run lengths, as each says what it replaces and deletes; the ids are those that were drawn.
    """

    def read(image: int) -> AnnotatedImage | None:
        found = AnnotatedImage(image_name(image), image, sizes[image])
        try:
            answers = read_answers(dataset, image - 1)
        except AnswerError as error:
            found.leave_out(None, error)
            return found
        if not answers:
            return None
        lane = [answer for answer in answers if answer.lane == answers[0].lane]
        if lane[-1].size != sizes[image]:
            height, width = lane[-1].size
            found.leave_out(None, f"the answer is for {width} x {height} pixels")
        else:
            state = [(mask.id, mask.rle["counts"].decode("ascii")) for mask in drawn[image]]
            for id, counts in follow(state, lane):
                rle: CocoRle = {"size": list(sizes[image]), "counts": counts.encode("ascii")}
                found.masks.append(AnnotatedMask(rle, id))
        return found

    corrections = Corrections(sizes)
    for found in map_ahead(read, sorted(sizes), _THREADS, 4 * _THREADS, "answers"):
        if found is not None:
            corrections.add(found)
    return corrections


def follow(drawn: State, answers: Iterable[Answer]) -> State:
    """Return the masks of an image after the answers of a lane, in order; of those to one state the last counts."""
    state = list(drawn)
    for _, same in groupby(answers, key=lambda answer: answer.base):
        answer = list(same)[-1]
        former = {mask.id: mask.counts for mask in answer.replaced}
        places = {counts: id for id, counts in reversed(state)}  # of equal masks the first
        taken = {*former.values(), *(mask.counts for mask in answer.deleted)}
        state = [mask for mask in state if mask[1] not in taken]
        followed: set[int] = set()
        for mask in answer.masks:
            id = None if mask.parent is None or mask.parent in followed else places.get(former[mask.parent])
            followed |= {mask.parent} if mask.parent is not None else set()
            state.append((id, mask.counts))
    return state
