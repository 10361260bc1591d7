"""Score of a correction study: corrections by people, and the IoU of masks with them.

Corrected masks of a study, from COCO JSON, Label Studio, or Label Studio's converter, paired with the drawn masks.

"Drawn" masks are the masks that were drawn into the study's sample.
"""

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
from pycocotools.mask import area

from segmint.catalogs.dataset.manifest import load_manifest, manifest_generations
from segmint.catalogs.dataset.submissions import (
    Submission,
    SubmissionError,
    assignment_to_merge,
    is_merged,
    read_assignment,
    returned_submissions,
    submissions_of,
)
from segmint.catalogs.dataset.tombstones import by_shard
from segmint.catalogs.dataset.versions import VersionName
from segmint.catalogs.layout import image_name
from segmint.infra.arrays import Size
from segmint.infra.errors import UsageError
from segmint.infra.stopping import map_ahead
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.wording import counted, not_checked_lines
from segmint.model.automatic.rle import CocoRle
from segmint.operators.annotations import coco, label_studio
from segmint.operators.annotations.coco import parse_coco
from segmint.operators.annotations.folder import best_matches, iou
from segmint.operators.annotations.image import AnnotatedImage, AnnotatedMask, image_number
from segmint.operators.annotations.label_studio import iter_tasks
from segmint.operators.intervals import Interval, basis, mean_intervals, share_interval
from segmint.operators.rows import Row
from segmint.operators.shards.put import annotation_id, counts_of, mask_index
from segmint.operators.shards.revise import rows_of, with_latest_commit
from segmint.operators.shards.submission_fit import fit_submission
from segmint.pipeline.engine.study.files import CORRECTED, MANIFEST, read_json, read_manifest
from segmint.pipeline.engine.study.sample import SCHEMA_VERSION, mask_sha256
from segmint.pipeline.export.formats import MAIN_FILES, Format
from segmint.pipeline.quality.statistics.comparison import PAPER
from segmint.pipeline.quality.statistics.ratings import unanswered


@dataclass(frozen=True)
class StudyMask:
    """Mask with its annotation id, or None if a tool lost the id. `rle` is compressed, as pycocotools expects."""

    id: int | None
    rle: dict[str, Any]


@dataclass(frozen=True)
class MaskPair:
    """Drawn mask, identified by its annotation id, with the IoU between it and its correction."""

    id: int
    iou: float
    by_id: bool


@dataclass(frozen=True)
class ImagePairs:
    """Pairs in an image, the annotation ids of its deleted masks, and the number of added masks."""

    pairs: tuple[MaskPair, ...]
    deleted: tuple[int, ...]
    added: int


def ids_hold(drawn: Mapping[int, Sequence[StudyMask]], corrected: Mapping[int, Sequence[StudyMask]]) -> bool:
    """Return whether each returned id belongs to a drawn mask of the same image, so that ids can be used for pairing.

    Some tools renumber annotations, so that a mask gets the id of a mask in another image. New ids are allowed.
    """
    image_of = {}
    for image, masks in drawn.items():
        for mask in masks:
            image_of[mask.id] = image
    for image, masks in corrected.items():
        for mask in masks:
            if image_of.get(mask.id) not in (None, image):
                return False
    return True


def pair_masks(drawn: Sequence[StudyMask], corrected: Sequence[StudyMask], by_id: bool) -> ImagePairs:
    """Pair the drawn masks of an image with their corrections.

    If `by_id` is set, masks with the same annotation id are paired first. The remaining masks are paired by IoU, best
    pair first. A correction without pixels is a deletion. If several corrections have the same id, the first one
    counts.
    """
    solid = [mask for mask in corrected if area(mask.rle) > 0]
    pairs: list[MaskPair] = []
    if by_id:
        by_number: dict[int | None, StudyMask] = {}
        for mask in solid:
            by_number.setdefault(mask.id, mask)
        rest, taken = [], []
        for mask in drawn:
            if mask.id in by_number:
                other = by_number[mask.id]
                pairs.append(MaskPair(_id(mask), float(iou([mask.rle], [other.rle])[0][0]), True))
                taken.append(other)
            else:
                rest.append(mask)
        drawn, solid = rest, _without(solid, taken)
    matches = best_matches([mask.rle for mask in drawn], [mask.rle for mask in solid])
    matched = []
    for row, _, value in matches:
        matched.append(drawn[row])
        pairs.append(MaskPair(_id(drawn[row]), value, False))
    deleted = map(_id, _without(drawn, matched))
    return ImagePairs(tuple(pairs), tuple(deleted), len(solid) - len(matches))


def _id(mask: StudyMask) -> int:
    if mask.id is None:
        raise ValueError("a drawn mask has no id")
    return mask.id


def _without(masks: Sequence[StudyMask], gone: Sequence[StudyMask]) -> list[StudyMask]:
    identities = set(map(id, gone))
    return [mask for mask in masks if id(mask) not in identities]


@dataclass
class Corrections:
    """Corrected masks of a study. Each returned image has a key in `masks`, even if all of its masks were deleted.

    `foreign` counts returned images that aren't in the sample. `superseded` counts additional results for an image.
    """

    sizes: Mapping[int, Size]  # sizes of the drawn images, by id
    answers: dict[int, AnnotatedImage] = field(default_factory=dict)
    homeless: list[str] = field(default_factory=list)  # unreadable entries that don't name an image
    foreign: int = 0
    superseded: int = 0

    def add(self, answer: AnnotatedImage) -> None:
        """Add a result for an image. The result that was saved last wins, or the first one if the times are unknown."""
        image = image_number(answer.name)
        if image is None or image not in self.sizes:
            self.foreign += 1
            return
        former = self.answers.get(image)
        self.superseded += former is not None
        if former is None or (former.saved or -math.inf) < (answer.saved or -math.inf):
            self.answers[image] = answer

    @property
    def masks(self) -> dict[int, list[StudyMask]]:
        """Masks of each returned image, by its id."""
        found = {}
        for image, answer in self.answers.items():
            found[image] = [StudyMask(mask.id, dict(mask.rle)) for mask in answer.masks]
        return found

    @property
    def unreadable(self) -> list[str]:
        """Reason for each mask that was skipped."""
        lines = []
        for image, answer in self.answers.items():
            lines += [f"{image_name(image)}, {problem}" for problem in answer.unreadable]
        return [*lines, *self.homeless]

    @property
    def unreadable_ids(self) -> set[int]:
        """Ids of the skipped masks, where known."""
        return {id for answer in self.answers.values() for id in answer.unreadable_ids}

    @property
    def polygons(self) -> int:
        """Number of masks returned as polygons, which lose holes."""
        return sum(mask.polygon for answer in self.answers.values() for mask in answer.masks)

    def size_of(self, name: str) -> Size | None:
        """Return the size of a drawn image, by name."""
        number = image_number(name)
        return None if number is None else self.sizes.get(number)


def read_coco(document: Mapping[str, Any], sizes: Mapping[int, Size]) -> Corrections:
    """Read the masks of a document from `segmint.operators.annotations.coco.parse_coco`.

    Images are identified by file name, because tools renumber them.
    """
    found = Corrections(sizes)
    file = coco.read_coco(document, found.size_of)
    for image in file.images:
        found.add(image)
    found.homeless += file.unreadable
    return found


def read_label_studio(tasks: Iterable[Mapping[str, Any]], sizes: Mapping[int, Size]) -> Corrections:
    """Read the brush strokes from Label Studio's JSON or JSON_MIN.

    For each task, the latest annotation that wasn't canceled counts. A task without such an annotation counts as not
    returned. Raises `KeyError` or `TypeError` if the values aren't tasks.
    """
    found = Corrections(sizes)
    for task in label_studio.read_tasks(tasks, found.size_of):
        found.superseded += task.superseded
        found.add(task.image)
    return found


PAPER_SHARES = {0.90: PAPER.over_90_iou, 0.75: PAPER.over_75_iou}
"""Share of pairs above each IoU threshold in SA-1B, as reported in the SAM paper (section 5)."""


@dataclass(frozen=True)
class ThresholdShare:
    """Share of pairs whose IoU exceeds `threshold`, with its 95% interval by image.

    `interval` is None if there are too few `images`. `of_all` is the share among all `masks`, which are the pairs and
    the deleted masks; a deleted mask counts as a failure. `paper` is SA-1B's share.
    """

    threshold: float
    over: int
    pairs: int
    images: int
    share: float
    interval: Interval | None
    masks: int
    of_all: float
    paper: float


def share_over(threshold: float, ious: Sequence[Sequence[float]], deleted: int) -> ThresholdShare:
    """Compute the share of pairs above a threshold of `PAPER_SHARES`. `ious` is grouped by image and isn't empty."""
    over = [sum(iou > threshold for iou in image) for image in ious]
    pairs = list(map(len, ious))
    total = sum(pairs)
    return ThresholdShare(
        threshold=threshold,
        over=sum(over),
        pairs=total,
        images=sum(map(bool, pairs)),
        share=sum(over) / total,
        interval=share_interval(over, pairs),
        masks=total + deleted,
        of_all=sum(over) / (total + deleted),
        paper=PAPER_SHARES[threshold],
    )


@dataclass(frozen=True)
class Study:
    """Study of masks: the drawn images' masks and (height, width), by image id, and the dataset's version."""

    masks: Mapping[int, list[StudyMask]]
    sizes: Mapping[int, Size]
    version: VersionName


@dataclass(frozen=True)
class StudyScore:
    """Result of a correction study, which counts what happened to each drawn mask.

    `drawn` = `by_id` + `by_iou` + `deleted` + `unread` + `unanswered_masks`. `unread` counts drawn masks whose
    corrections are unreadable, and `unreadable` lists the reason for each unreadable returned mask. `added` counts
    returned masks that don't correct a drawn mask. `superseded` results and `foreign` images are ignored. `polygons`
    counts masks that were returned as polygons, which lose holes. `shares` is empty without pairs. `version` is the
    version of the dataset that the sample was drawn from.
    """

    images: int
    answered: int
    drawn: int
    by_id: int
    by_iou: int
    deleted: int
    unread: int
    added: int
    unanswered_masks: int
    unreadable: list[str]
    foreign: int
    superseded: int
    polygons: int
    mean_iou: float | None
    interval: Interval | None  # 95% interval of `mean_iou`
    shares: list[ThresholdShare]
    version: VersionName

    def lines(self) -> list[str]:
        lines = [
            f"{self.answered:,} of {counted(self.images, 'image')} answered; of {counted(self.drawn, 'mask')} drawn "
            f"{self.by_id + self.by_iou:,} are paired ({self.by_id:,} by id, {self.by_iou:,} by IoU), "
            f"{self.deleted:,} deleted, {self.unread:,} unreadable, {self.unanswered_masks:,} in images without an "
            "answer",
            f"added: {counted(self.added, 'mask')}; unreadable: {counted(len(self.unreadable), 'mask')}; ignored: "
            f"{counted(self.foreign, 'image')} not drawn, {counted(self.superseded, 'outdated answer')}",
        ]
        lines += not_checked_lines(self.not_checked)
        if self.polygons:
            lines.append(
                f"  {counted(self.polygons, 'mask')} came back as polygons, which lose holes and separate pieces, so "
                "even untouched masks score lower. Run lengths don't (in Label Studio, export as JSON)"
            )
        if self.mean_iou is None:
            lines.append("no masks came back, so there is nothing to score")
        else:
            pairs, images = self.shares[0].pairs, self.shares[0].images
            mean = f"{self.mean_iou:.4f}{_between(self.interval, '.4f')}"
            lines.append(f"mean IoU {mean} of {counted(pairs, 'pair')} in {counted(images, 'image')}, {basis(images)}")
            lines += map(_share_line, self.shares)
        return [*lines, self.version.line()]

    @property
    def not_checked(self) -> list[str]:
        """Images without an answer, and the problem of each unreadable mask."""
        return [*unanswered(self.images, self.answered), *self.unreadable]


def score_study(folder: Location, corrected: Location | None) -> StudyScore:
    """Compare a study's masks with their corrections, from a COCO or Label Studio file or a dataset's submissions.

    Raises `UsageError` if there is no study, if its masks aren't the ones that were drawn, or if the corrected file is
    missing or in an unknown format.
    """
    study = load_study(folder)
    if corrected is not None and manifest_generations(corrected):
        corrections = read_submitted(corrected, study.masks, study.sizes)
    else:
        corrections = read_corrections(corrected or folder / CORRECTED, study.sizes)
    by_id = ids_hold(study.masks, corrections.masks)
    images = {}
    for image, masks in sorted(corrections.masks.items()):
        drawn = study.masks[image]
        if by_id:
            drawn = [mask for mask in drawn if mask.id not in corrections.unreadable_ids]
        images[image] = pair_masks(drawn, masks, by_id)
    return _score(study, corrections, images)


def load_study(folder: Location) -> Study:
    """Read the drawn masks. Raises `UsageError` if they differ from the masks that the manifest pins."""
    manifest = read_manifest(folder)
    file = folder / MAIN_FILES[Format.COCO]
    document = read_json(file, f"the masks of the study {folder} are missing. Draw the sample again")
    try:
        if manifest["schema_version"] != SCHEMA_VERSION:
            raise UsageError(f"{folder}: its schema_version is {manifest['schema_version']}, expected {SCHEMA_VERSION}")
        pinned, sizes = {}, {}
        masks: dict[int, list[StudyMask]] = {}
        for image in manifest["images"]:
            sizes[image["id"]] = (image["height"], image["width"])
            masks[image["id"]] = []
            for mask in image["masks"]:
                pinned[mask["id"]] = mask["sha256"]
        dataset = manifest["dataset"]
        version = VersionName(dataset["digest"], dataset["number"])
        for annotation in document["annotations"]:
            segmentation = annotation["segmentation"]
            if pinned.pop(annotation["id"], None) != mask_sha256(segmentation):
                raise _changed(file, annotation["id"])
            rle = {"size": segmentation["size"], "counts": segmentation["counts"].encode("ascii")}
            masks[annotation["image_id"]].append(StudyMask(annotation["id"], rle))
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{folder}: {MANIFEST} or {file} is damaged ({error!r}). Draw the sample again") from error
    if pinned:
        raise _changed(file, next(iter(pinned)))
    return Study(masks, sizes, version)


def read_corrections(file: Location, sizes: Mapping[int, Size]) -> Corrections:
    """Read corrected masks. Raises `UsageError` if the file is missing, or is neither COCO nor Label Studio's."""
    try:
        with file.open() as stream:
            first = _first_byte(stream)
            if first == b"[":
                return read_label_studio(iter_tasks(stream), sizes)
            return read_coco(_document(stream.read(), file), sizes)
    except NotFoundError as error:
        raise UsageError(f"{file} doesn't exist. Pass the corrected masks with --corrected") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"{file} can't be read as corrected masks ({type(error).__name__}: {error}): expected COCO JSON, or Label "
            "Studio's JSON or JSON_MIN"
        ) from error


def _document(data: bytes, file: Location) -> Mapping[str, Any]:
    try:
        return parse_coco(data, str(file))
    except UsageError as error:
        raise ValueError(str(error)) from error


def _score(study: Study, corrections: Corrections, images: Mapping[int, ImagePairs]) -> StudyScore:
    deleted = added = by_id = by_iou = 0
    ious = []
    for image in images.values():
        deleted += len(image.deleted)
        added += image.added
        ious.append([pair.iou for pair in image.pairs])
        for pair in image.pairs:
            by_id += pair.by_id
            by_iou += not pair.by_id
    drawn = {image: len(masks) for image, masks in study.masks.items()}
    unanswered = sum(count for image, count in drawn.items() if image not in images)
    pairs = by_id + by_iou
    mean = interval = None
    shares = []
    if pairs:
        mean = sum(pair.iou for image in images.values() for pair in image.pairs) / pairs
        sums, counts = np.array([[sum(image)] for image in ious]), np.array(list(map(len, ious)), np.float64)
        interval = mean_intervals(sums, counts, limits=(0.0, 1.0))[0]
        shares = [share_over(threshold, ious, deleted) for threshold in PAPER_SHARES]
    return StudyScore(
        images=len(study.masks),
        answered=len(images),
        drawn=sum(drawn.values()),
        by_id=by_id,
        by_iou=by_iou,
        deleted=deleted,
        unread=sum(drawn.values()) - pairs - deleted - unanswered,
        added=added,
        unanswered_masks=unanswered,
        unreadable=corrections.unreadable,
        foreign=corrections.foreign,
        superseded=corrections.superseded,
        polygons=corrections.polygons,
        mean_iou=mean,
        interval=interval,
        shares=shares,
        version=study.version,
    )


def _share_line(share: ThresholdShare) -> str:
    return (
        f"over {share.threshold:.2f} IoU: {share.share:.1%}{_between(share.interval, '.1%')} of "
        f"{counted(share.pairs, 'pair')}; {share.of_all:.1%} of {counted(share.masks, 'mask')} with deleted ones as "
        f"failures; SA-1B in the paper: {share.paper:.0%}"
    )


def _between(interval: Interval | None, form: str) -> str:
    if interval is None:
        return ""
    return f" ({interval[0]:{form}} to {interval[1]:{form}})"


def _changed(file: Location, mask: int) -> UsageError:
    return UsageError(
        f"{file} has changed since it was drawn (mask {mask}). Keep corrected masks in a separate file, and draw "
        "the sample again"
    )


def _first_byte(stream: BinaryIO) -> bytes:
    """Return the first byte that is not whitespace, and rewind the stream."""
    byte = stream.read(1)
    while byte.isspace():
        byte = stream.read(1)
    stream.seek(0)
    return byte


_THREADS = 16

State = list[tuple[int | None, str]]
"""Masks of an image, each with its current run lengths and the id of the drawn mask that it corrects. The id is None
for an added mask."""


def read_submitted(
    dataset: Location, drawn: Mapping[int, Sequence[StudyMask]], sizes: Mapping[int, Size]
) -> Corrections:
    """Read corrections from the annotators' submissions for a study's images. `drawn` contains the masks by image id.

    The corrections are the image's current masks after `fit_submission` has applied unmerged submissions, as in a
    merge. If the owner returned the image's submission to the annotator, the image has no corrections. Each mask has
    the id of the drawn mask that it was made from, if there is one.
    """
    images = sorted(sizes)
    listed = map_ahead(lambda image: submissions_of(dataset, image - 1), images, _THREADS, 4 * _THREADS, "submissions")
    names = {image: found for image, found in zip(images, listed, strict=True) if found}
    rows = _rows(dataset, names)

    def read(image: int) -> AnnotatedImage | None:
        row = rows.get(image)
        if row is None or row["reason"] is not None:
            return None
        found = AnnotatedImage(image_name(image), image, sizes[image])
        assignment = assignment_to_merge(row["submission"], (name.assignment for name in names[image]))
        own = [name for name in names[image] if name.assignment == assignment]
        if own and own[-1] in returned_submissions(dataset, image - 1):
            return None
        answers = []
        try:
            if own:
                answers = read_assignment(dataset, own)
        except SubmissionError as error:
            found.leave_out(None, error)
            return found
        said = [submission.size for submission in answers[-1:]]
        for height, width in (*said, (row["height"], row["width"])):
            if (height, width) != sizes[image]:
                found.leave_out(None, f"the submission is for {width} x {height} pixels")
                return found
        ids = frozenset(mask.id for mask in drawn[image] if mask.id is not None)
        for id, counts in follow(ids, row, answers):
            rle: CocoRle = {"size": list(sizes[image]), "counts": counts.encode("ascii")}
            found.masks.append(AnnotatedMask(rle, id))
        return found

    corrections = Corrections(sizes)
    for found in map_ahead(read, list(names), _THREADS, 4 * _THREADS, "submissions"):
        if found is not None:
            corrections.add(found)
    return corrections


def follow(drawn: Container[int], row: Row, answers: Sequence[Submission]) -> State:
    """Return an image's masks after applying an assignment's submissions, in order, to its described `row`.

    `drawn` contains the ids of drawn masks. If several masks were made from the same drawn mask, the first one is its
    correction.
    """
    masks = {annotation_id(row["id"], mask_index(mask, place)): mask for place, mask in enumerate(row["masks"])}
    after: State = [(id, counts_of(mask)) for id, mask in masks.items()]
    if answers and not is_merged(row["submission"], answers[-1].assignment, answers[-1].n):
        fit = fit_submission(masks, answers, row["submission"])
        after = [(id, counts) for id, counts in after if id not in fit.gone]
        after += [(mask.parent, mask.counts) for mask in fit.new]
    parents = _parents(masks, answers)
    corrected: set[int | None] = {None}
    state: State = []
    for id, counts in after:
        while id is not None and id not in drawn:
            id = parents.get(id)
        state.append((None if id in corrected else id, counts))
        corrected.add(id)
    return state


def _parents(masks: Mapping[int, Row], answers: Sequence[Submission]) -> dict[int, int]:
    """Return the parent of each current or replaced mask. A parent always has a lower id than its child."""
    found = [(id, mask["parent"]) for id, mask in masks.items() if mask["parent"] is not None]
    made: dict[str, int] = {}  # parents from earlier submissions, by run lengths
    for submission in answers:
        for replaced in submission.replaced:
            if replaced.counts in made:
                found.append((replaced.id, made[replaced.counts]))
        for drawn in submission.masks:
            if drawn.parent is not None:
                made[drawn.counts] = drawn.parent
    return {id: parent for id, parent in found if parent < id}


def _rows(dataset: Location, images: Iterable[int]) -> dict[int, Row]:
    """Read the described rows of these images, if their shards are committed."""
    ordinals = by_shard((image - 1 for image in images), load_manifest(dataset).images_per_shard)

    def read(shard: int) -> list[Row]:
        return with_latest_commit(dataset, shard, lambda commit: rows_of(dataset, commit, ordinals[shard])) or []

    found = map_ahead(read, ordinals, _THREADS, _THREADS, "shards")
    return {row["id"]: row for rows in found for row in rows}
