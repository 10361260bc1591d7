"""Corrections of a study's masks from what people made of them in a dataset: merged, or answered and not merged yet."""

from collections.abc import Container, Iterable, Mapping, Sequence

from segmint.catalogs.dataset.annotations.answers import Answer, AnswerError, read_lane
from segmint.catalogs.dataset.annotations.lanes import is_merged, lane_to_merge
from segmint.catalogs.dataset.annotations.names import answers_of
from segmint.catalogs.dataset.manifest import load_manifest
from segmint.catalogs.layout import image_name
from segmint.infra.storage.location import Location
from segmint.infra.threads import map_ahead
from segmint.operators.annotations.image import AnnotatedImage, AnnotatedMask, CocoRle, Size
from segmint.operators.rows import Row
from segmint.operators.shards.committed_rows import rows_of
from segmint.operators.shards.files import annotation_id, counts_of, mask_index
from segmint.operators.shards.fitting import fit_answer
from segmint.operators.shards.revise import with_holding
from segmint.pipeline.quality.study.corrections import Corrections
from segmint.pipeline.quality.study.pairs import StudyMask

_THREADS = 16

State = list[tuple[int | None, str]]
"""The masks of an image: the id of the mask that was drawn, None for an added one, and its run lengths now."""


def read_answered(
    dataset: Location, drawn: Mapping[int, Sequence[StudyMask]], sizes: Mapping[int, Size]
) -> Corrections:
    """Read what people made of the images of a study that were answered; their masks are `drawn` by the image's id.

    These are the masks that the images have, and of the answers that are not merged what a merge would take: both by
    one rule (`fit_answer`). Each mask has the id of the one that was drawn from which it was made, if there is one.
    """
    images = sorted(sizes)
    listed = map_ahead(lambda image: answers_of(dataset, image - 1), images, _THREADS, 4 * _THREADS, "answers")
    names = {image: found for image, found in zip(images, listed, strict=True) if found}
    rows = _rows(dataset, names)

    def read(image: int) -> AnnotatedImage | None:
        row = rows.get(image)
        if row is None or row["reason"] is not None:
            return None
        found = AnnotatedImage(image_name(image), image, sizes[image])
        lane = lane_to_merge(row["answer"], (name.lane for name in names[image]))
        own = [name for name in names[image] if name.lane == lane]
        try:
            answers = read_lane(dataset, own) if own else []
        except AnswerError as error:
            found.leave_out(None, error)
            return found
        said = [answer.size for answer in answers[-1:]]
        wrong = [size for size in (*said, (row["height"], row["width"])) if size != sizes[image]]
        if wrong:
            found.leave_out(None, f"the answer is for {wrong[0][1]} x {wrong[0][0]} pixels")
            return found
        ids = frozenset(mask.id for mask in drawn[image] if mask.id is not None)
        for id, counts in follow(ids, row, answers):
            rle: CocoRle = {"size": list(sizes[image]), "counts": counts.encode("ascii")}
            found.masks.append(AnnotatedMask(rle, id))
        return found

    corrections = Corrections(sizes)
    for found in map_ahead(read, list(names), _THREADS, 4 * _THREADS, "answers"):
        if found is not None:
            corrections.add(found)
    return corrections


def follow(drawn: Container[int], row: Row, answers: Sequence[Answer]) -> State:
    """Return the masks of an image's described row after the last of a lane's answers, which are given in order.

    `drawn` are ids of masks; of several masks that were made from one of them the first is its correction.
    """
    masks = {annotation_id(row["id"], mask_index(mask, place)): mask for place, mask in enumerate(row["masks"])}
    fit = None
    if answers and not is_merged(row["answer"], answers[-1].lane, answers[-1].n):
        fit = fit_answer(masks, answers, row["answer"])
    after: State = [(id, counts_of(mask)) for id, mask in masks.items() if fit is None or id not in fit.gone]
    after += [(mask.parent, mask.counts) for mask in fit.new] if fit is not None else []
    parents = _parents(masks, answers)
    corrected: set[int | None] = {None}
    state: State = []
    for id, counts in after:
        while id is not None and id not in drawn:
            id = parents.get(id)
        state.append((None if id in corrected else id, counts))
        corrected.add(id)
    return state


def _parents(masks: Mapping[int, Row], answers: Sequence[Answer]) -> dict[int, int]:
    """Return the mask that each was made from, which has a lower id: of those there are, and of those that are gone."""
    found = [(id, mask["parent"]) for id, mask in masks.items() if mask["parent"] is not None]
    made: dict[str, int] = {}  # parents in earlier answers, by run lengths
    for answer in answers:
        found += [(mask.id, made[mask.counts]) for mask in answer.replaced if mask.counts in made]
        made |= {mask.counts: mask.parent for mask in answer.masks if mask.parent is not None}
    return {id: parent for id, parent in found if parent < id}


def _rows(dataset: Location, images: Iterable[int]) -> dict[int, Row]:
    """Return the described rows of these images, as far as their shards are committed."""
    per_shard = load_manifest(dataset).images_per_shard
    by_shard: dict[int, list[int]] = {}
    for image in images:
        by_shard.setdefault((image - 1) // per_shard, []).append(image - 1)

    def read(shard: int) -> list[Row]:
        return with_holding(dataset, shard, lambda commit: rows_of(dataset, commit, by_shard[shard])) or []

    found = map_ahead(read, sorted(by_shard), _THREADS, _THREADS, "shards")
    return {row["id"]: row for rows in found for row in rows}
