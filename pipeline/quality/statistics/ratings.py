"""What people judged: ratings of masks from 1 to 10, how well raters agree, and missed faces and plates.

Ratings are summarized by mask source (SAM paper, section 7.1, appendix E).

If a rater rated a mask several times, only the last rating counts. Ratings of masks that were later deleted or replaced
don't count.

Agreement of two people who annotated the same image independently: the IoU of their masks of an object.

For comparison, the SAM paper (section 5) reports 0.85 to 0.91 between annotators. Only independent work is compared.
After a merge, one person may see the other's masks, so the comparison uses the last submissions of assignments 0 and 1
for the first state of the image that both people annotated.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import TypeAdapter, ValidationError

from segmint.catalogs.dataset.manifest import manifest_generations
from segmint.catalogs.dataset.ratings import (
    HIGHEST,
    LOWEST,
    Rating,
    counts_digest,
    last_ratings,
    list_ratings,
    read_ratings,
)
from segmint.catalogs.dataset.submissions import (
    Submission,
    SubmissionError,
    annotated_masks,
    independent_submissions,
    latest_submissions,
    list_submissions,
    read_submissions,
)
from segmint.catalogs.dataset.tables import DatasetTables
from segmint.catalogs.dataset.versions import VersionName, name_now, read_version, version_numbers
from segmint.infra.errors import UsageError
from segmint.infra.stopping import map_ahead
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.wording import counted, not_checked_lines, upper_bound
from segmint.operators.annotations.folder import best_matches
from segmint.operators.intervals import Interval, at_most, mean_intervals
from segmint.operators.rows import SOURCES

_AT_ONCE = 2_000  # masks per query
_WANTED = "SELECT annotation_id, source, segmentation.counts AS counts FROM masks WHERE annotation_id IN "


MISSED_KINDS = ("face", "plate", "other")
"""Kinds of regions that people mark in a privacy study."""

ANY = "any"
"""Kind of the `MissedCounts` for all marks. An image counts once, whatever the kinds of its marks."""


@dataclass(frozen=True)
class SourceRatings:
    """Ratings of masks from one source.

    `mean` averages each mask's ratings over its raters, and then averages over masks. `interval` is the mean's 95%
    interval by image, or None if there are too few images. `scores` counts the ratings for each score from 1 to 10.
    """

    source: str
    masks: int
    images: int
    mean: float
    interval: Interval | None
    scores: tuple[int, ...]


@dataclass(frozen=True)
class RaterAgreement:
    """Agreement of raters on masks that at least two people rated.

    `deviation` is the standard deviation (n - 1) of a mask's ratings, averaged over masks. `pairs` counts the pairs of
    ratings of the same mask, and `within_one` is the share of pairs that differ by at most 1.
    """

    masks: int
    pairs: int
    deviation: float
    within_one: float


@dataclass(frozen=True)
class Ratings:
    """Summary of all ratings of current masks.

    `raters` is the number of raters, and `seconds` is the median time per rating. `outdated` counts ratings of masks
    that have since been deleted or replaced. The summary doesn't contain raters' names, because reports are published.
    """

    sources: tuple[SourceRatings, ...]
    raters: int
    seconds: float | None
    agreement: RaterAgreement | None
    outdated: int
    unreadable: int


class RatedMask(NamedTuple):
    """Mask that still exists, with its ratings."""

    image: int
    mask: int
    source: str
    ratings: tuple[Rating, ...]

    @property
    def scores(self) -> list[int]:
        """Scores of the ratings."""
        return [rating.score for rating in self.ratings if rating.score is not None]


def measure_ratings(tables: DatasetTables) -> Ratings | None:
    """Read and summarize a dataset's ratings. Return None if there are no ratings."""
    names = last_ratings(list_ratings(tables.location))
    found: list[Rating] = []
    unreadable = 0
    for rating in read_ratings(tables.location, names):
        if isinstance(rating, Rating):
            if rating.score is not None:
                found.append(rating)
        else:
            unreadable += 1
    if not found and not unreadable:
        return None
    masks = list(_rated_masks(tables, found))
    outdated = len(found) - sum(len(mask.ratings) for mask in masks)
    return summarize(masks, outdated, unreadable)


def summarize(masks: Sequence[RatedMask], outdated: int = 0, unreadable: int = 0) -> Ratings:
    """Summarize the ratings of masks. Each mask needs at least one rating."""
    by_source: dict[str, list[RatedMask]] = {}
    times, raters = [], set()
    for mask in masks:
        by_source.setdefault(mask.source, []).append(mask)
        for rating in mask.ratings:
            times.append(rating.seconds)
            raters.add(rating.rater)
    seconds = None
    if times:
        seconds = float(np.median(times))
    sources = []
    for source in (*SOURCES, *sorted(by_source.keys() - SOURCES)):
        if source in by_source:
            sources.append(_of_source(source, by_source[source]))
    return Ratings(tuple(sources), len(raters), seconds, _agreement(masks), outdated, unreadable)


def _rated_masks(tables: DatasetTables, ratings: Sequence[Rating]) -> Iterator[RatedMask]:
    """Yield the masks that haven't changed since they were rated, by id."""
    grouped: dict[int, list[Rating]] = {}
    for rating in sorted(ratings, key=lambda rating: (rating.mask, rating.rater)):
        grouped.setdefault(rating.mask, []).append(rating)
    masks = list(grouped)
    for start in range(0, len(masks), _AT_ONCE):
        some = masks[start : start + _AT_ONCE]
        rows = tables.query(f"{_WANTED} ({', '.join(map(str, some))})").to_pylist()
        there = {row["annotation_id"]: (row["source"], counts_digest(row["counts"])) for row in rows}
        for mask in some:
            source, digest = there.get(mask, ("", ""))
            same = tuple(rating for rating in grouped[mask] if rating.counts_sha256 == digest)
            if same:
                yield RatedMask(same[0].image, mask, source, same)


def _of_source(source: str, masks: Sequence[RatedMask]) -> SourceRatings:
    images = sorted({mask.image for mask in masks})
    place = {image: index for index, image in enumerate(images)}
    sums, counts = np.zeros((len(images), 1)), np.zeros(len(images))
    scores = np.zeros(HIGHEST - LOWEST + 1, np.int64)
    for mask in masks:
        sums[place[mask.image]] += np.mean(mask.scores)
        counts[place[mask.image]] += 1
        np.add.at(scores, np.array(mask.scores) - LOWEST, 1)
    mean = float(sums.sum() / counts.sum())
    return SourceRatings(
        source,
        len(masks),
        len(images),
        mean,
        mean_intervals(sums, counts, limits=(LOWEST, HIGHEST))[0],
        tuple(scores.tolist()),
    )


def _agreement(masks: Sequence[RatedMask]) -> RaterAgreement | None:
    several = [np.array(mask.scores) for mask in masks if len(mask.scores) > 1]
    if not several:
        return None
    deviation = float(np.mean([scores.std(ddof=1) for scores in several]))
    apart = np.concatenate([np.abs(scores[:, None] - scores)[np.triu_indices(len(scores), 1)] for scores in several])
    return RaterAgreement(len(several), len(apart), deviation, float((apart <= 1).mean()))


@dataclass(frozen=True)
class MissedCounts:
    """Counts for one kind of mark: the marks themselves, and the images that contain one.

    An image with an unreadable mark counts for every kind. `share` is relative to the reviewed images. `at_most` is its
    one-sided 95% Clopper-Pearson upper bound. Both are None if no images were reviewed.
    """

    kind: str
    marks: int
    images: int
    share: float | None
    at_most: float | None


@dataclass(frozen=True)
class PrivacyScore:
    """Result of a privacy study: the faces and plates that redaction missed in a dataset's released images.

    The sample contains `images` of the dataset's `population` images, and reviewers answered for `answered` of them.
    `missed` has an entry for each kind of region, and a last entry for `any` kind. `foreign` is the number of reviewed
    images outside the sample, which are ignored. `further` is the number of repeated reviews. If an image was reviewed
    more than once, the marks from all of its reviews count. `version` names the version of the dataset from which the
    sample was drawn, and `config_sha256` is the hash of the dataset's configuration.
    """

    name: str
    config_sha256: str
    images: int
    population: int
    answered: int
    missed: tuple[MissedCounts, ...]
    unreadable: tuple[str, ...]
    foreign: int
    further: int
    version: VersionName
    kind: Literal["privacy"] = "privacy"
    regions: str | None = None  # file that was written for `segmint redact`

    def lines(self) -> list[str]:
        lines = [
            f"{self.answered:,} of {counted(self.images, 'image')} answered, drawn from {self.population:,}",
            f"ignored: {counted(self.foreign, 'image')} not drawn",
            f"{counted(self.further, 'further answer')} for the same images, whose marks count",
            *not_checked_lines(self.not_checked),
        ]
        if not self.answered:
            lines.append("no image was answered, so there is no bound")
        else:
            lines += [f"{each.kind:<7}{self.sentence(each)}" for each in self.missed]
            lines.append("the bound is one-sided Clopper-Pearson at 95% confidence, exact for a random sample")
        if 0 < self.answered < self.images:
            lines.append("note: the bound holds only if no image is without an answer because of its content")
        if self.regions is not None:
            lines.append(f"marks: {self.regions}. Redact them with `segmint redact DATASET --regions {self.regions}`")
        return [*lines, self.version.line()]

    def sentence(self, missed: MissedCounts) -> str:
        """Describe the misses of a kind in a sentence without a period."""
        if missed.at_most is None:
            return "no images were inspected"
        return (
            f"{counted(missed.marks, 'mark')}, in {missed.images:,} of {counted(self.answered, 'image')}: at most "
            f"{upper_bound(missed.at_most)} of all images"
        )

    @property
    def not_checked(self) -> list[str]:
        """Images without an answer, and the problem of each unreadable mark, which counts as a miss."""
        unreadable = (f"unreadable, and counted as missed: {problem}" for problem in self.unreadable)
        return [*unanswered(self.images, self.answered), *unreadable]

    @property
    def any(self) -> MissedCounts:
        """Counts for marks of any kind."""
        return self.missed[-1]


def read_score(file: Location) -> PrivacyScore:
    """Read the output of `segmint study score --json` for a privacy study. Raises `UsageError` for anything else."""
    expected = "expected the output of `segmint study score DIR --json` for a privacy study"
    try:
        score = TypeAdapter(PrivacyScore).validate_json(file.read())
    except NotFoundError as error:
        raise UsageError(f"{file} does not exist; {expected}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(f"{file} is not a score: {where}: {first['msg']}; {expected}") from error
    counted_again = tuple(missed_share(each.kind, each.marks, each.images, score.answered) for each in score.missed)
    if [each.kind for each in score.missed] != [*MISSED_KINDS, ANY] or counted_again != score.missed:
        raise UsageError(f"{file} is not a score: its shares contradict its counts; {expected}")
    return score


def check_sampled(score: PrivacyScore, where: str, dataset: Location) -> PrivacyScore:
    """Check that a score's sample was drawn from a dataset's current version or a recorded version. Return the score.

    Otherwise, raises `UsageError`, which names the score's source `where`.
    """
    digests = {name_now(dataset).digest} if manifest_generations(dataset) else set()
    if score.version.digest not in digests | {read_version(dataset, n).digest for n in version_numbers(dataset)}:
        raise UsageError(
            f"{where} scores sha256:{score.version.digest}, which is not a version of {dataset}. Draw a sample of this "
            "dataset, and score the marks made there"
        )
    return score


def missed_share(kind: str, marks: int, images: int, answered: int) -> MissedCounts:
    """Return the counts with their share of the `answered` images, and its upper bound."""
    if not answered:
        return MissedCounts(kind, marks, images, None, None)
    return MissedCounts(kind, marks, images, images / answered, at_most(images, answered))


def unanswered(images: int, answered: int) -> list[str]:
    """Return a line about the images without an answer, or nothing if all are answered."""
    return [f"{counted(images - answered, 'image')} without an answer"] if answered < images else []


SAME_OBJECT_IOU = 0.5
"""Minimum IoU for two people's masks to count as the same object."""

_THREADS = 16


@dataclass(frozen=True)
class AnnotatorAgreement:
    """Agreement on images that two people annotated, without their names.

    `pairs` counts the pairs of masks of the same object. `mean_iou` is the mean over these pairs, or None without any.
    `interval` is its 95% interval by image, or None if there are too few images. `unpaired` counts masks of objects
    that only one person drew.
    """

    images: int
    pairs: int
    mean_iou: float | None
    interval: Interval | None
    unpaired: int


def agreement(one: Submission, other: Submission) -> tuple[float, ...]:
    """Pair two people's masks of the same objects in an image, and return the IoU of each pair.

    Two kinds of masks are ignored: masks of the dataset that neither person changed, and untouched prefills
    (`is_untouched`). Masks are paired one to one, best pair first. Pairs below `SAME_OBJECT_IOU` count as different
    objects.
    """
    ours, theirs = _rles(one), _rles(other)
    if one.size != other.size or not ours or not theirs:
        return ()
    return tuple(float(iou) for _, _, iou in best_matches(ours, theirs) if iou >= SAME_OBJECT_IOU)


def _rles(submission: Submission) -> list[dict[str, Any]]:
    size = list(submission.size)
    return [{"size": size, "counts": mask.counts.encode()} for mask in annotated_masks(submission)]


def sum_up(pairs: Iterable[tuple[Submission, Submission]]) -> AnnotatorAgreement | None:
    """Summarize pairs of submissions from `independent_submissions`, one per image. Return None without any pair."""
    ious: list[Sequence[float]] = []
    masks = 0
    for one, other in pairs:
        ious.append(agreement(one, other))
        masks += len(annotated_masks(one)) + len(annotated_masks(other))
    if not ious:
        return None
    found = list(filter(None, ious))
    if not found:
        return AnnotatorAgreement(images=len(ious), pairs=0, mean_iou=None, interval=None, unpaired=masks)
    sums = np.array([[sum(image)] for image in found])
    counts = np.array(list(map(len, found)), np.float64)
    total = int(counts.sum())
    return AnnotatorAgreement(
        images=len(ious),
        pairs=total,
        mean_iou=float(sums.sum()) / total,
        interval=mean_intervals(sums, counts, limits=(SAME_OBJECT_IOU, 1.0))[0],
        unpaired=masks - 2 * total,
    )


def measure_agreement(dataset: Location) -> AnnotatorAgreement | None:
    """Compare and summarize the submissions for images that two people annotated. Return None if there are none."""
    both = []
    for ordinal, assignments in latest_submissions(list_submissions(dataset)).items():
        if len(assignments) > 1:
            both.append(ordinal)
    found = map_ahead(lambda ordinal: read_pairs(dataset, ordinal), both, _THREADS, 4 * _THREADS, "submissions")
    return sum_up(pair for pair in found if pair is not None)


def read_pairs(dataset: Location, ordinal: int) -> tuple[Submission, Submission] | None:
    """Read two people's independent submissions for an image. Return None if there is no such pair.

    Images with an unreadable submission are skipped, because the audit reports them.
    """
    try:
        return independent_submissions(read_submissions(dataset, ordinal))
    except SubmissionError:
        return None
