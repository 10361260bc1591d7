"""Audit of submissions, of the rows that record which submission was merged, and of ratings."""

import math
from collections.abc import Collection, Iterator, Sequence
from itertools import groupby

from segmint.catalogs.dataset.annotations.assignments import last_of_states, merged_assignment
from segmint.catalogs.dataset.annotations.names import (
    ANNOTATIONS,
    SubmissionName,
    image_of,
    parse_return_path,
    parse_submission_path,
    return_path,
    submission_path,
    submissions_of,
)
from segmint.catalogs.dataset.annotations.ratings import Rating, RatingName, counts_digest, list_ratings, read_ratings
from segmint.catalogs.dataset.annotations.submissions import (
    MOST_MASKS,
    Submission,
    SubmissionError,
    SubmittedMask,
    read_assignment,
    read_return,
    read_submission,
)
from segmint.catalogs.dataset.mask_labels import is_of_model
from segmint.catalogs.dataset.tables import DatasetTables
from segmint.catalogs.findings import Code, Finding, FindingLocation
from segmint.catalogs.layout import image_stem
from segmint.infra.storage.location import Location
from segmint.infra.threads import map_ahead
from segmint.operators.rows import Row
from segmint.operators.schemas import AUTOMATIC, SOURCES
from segmint.operators.shards.submitted_masks import label_columns, mask_columns

_THREADS = 16


def audit_submissions(dataset: Location, rows: Sequence[range], taken: Collection[int]) -> Iterator[Finding]:
    """Yield findings about `annotations/`: invalid submissions or returns, unknown images, and files of `taken` images.

    `rows` contains the ranges of the dataset's ordinals, and `taken` the ordinals of images that were taken down.
    """
    names = []
    for path in sorted(f"{ANNOTATIONS}/{entry.name}" for entry in (dataset / ANNOTATIONS).walk()):
        ordinal, name, returned = image_of(path), parse_submission_path(path), parse_return_path(path)
        if ordinal is not None and ordinal in taken:
            place = FindingLocation(path, image=ordinal + 1)
            expected = "nothing of an image that was taken down"
            yield place.finding(Code.STILL_THERE, expected, "a file", f"id {ordinal + 1}")
        elif (each := name or returned) is not None and not any(each.ordinal in span for span in rows):
            yield FindingLocation(path).finding(
                Code.BAD_SUBMISSION, "an image of the dataset", image_stem(each.ordinal + 1)
            )
        elif name is not None:
            names.append(name)
        elif returned is not None:
            try:
                read_return(dataset, returned)
            except SubmissionError as error:
                yield _bad(returned, "a return", str(error).removeprefix(f"{dataset}/"), return_path(returned))

    def problem(name: SubmissionName) -> Finding | None:
        try:
            read_submission(dataset, name)
        except SubmissionError as error:
            return _bad(name, "a submission", str(error).removeprefix(f"{dataset}/"))
        return None

    names.sort()
    found = map_ahead(problem, names, _THREADS, 4 * _THREADS, "submissions")
    for finding in found:
        if finding is not None:
            yield finding
    for (_, assignment), of_assignment in groupby(names, key=lambda name: name[:2]):
        assignment_names = list(of_assignment)
        missing = sorted(set(range(1, assignment_names[-1].n)) - {name.n for name in assignment_names})
        if missing:
            expected = f"the submissions 1 to {assignment_names[-1].n} of assignment {assignment}"
            yield _bad(assignment_names[-1]._replace(n=missing[0]), expected, f"{len(missing)} missing")


def audit_merged_submission(
    dataset: Location, row: Row, masks: Sequence[Row], images: FindingLocation, place: FindingLocation
) -> Iterator[Finding]:
    """Yield findings unless an image's merged submission exists and the dataset contains its data.

    `masks` contains the image's rows of `masks/*.parquet`. `images` and `place` locate findings in the image's row and
    in its masks' rows. After an import of masks, the image's row names the imported file but still contains the
    submission's number, so the submission must still exist.
    """
    if merged_assignment(row["submission"]) is None or row["submission"]["n"] is None:
        return
    last = SubmissionName(row["ordinal"], row["submission"]["assignment"], row["submission"]["n"])
    names = []
    if last.n > 1:
        for name in submissions_of(dataset, last.ordinal):
            if name.assignment == last.assignment and name.n < last.n:
                names.append(name)
    try:
        submissions = read_assignment(dataset, [*names, last])
    except SubmissionError as error:
        problem = str(error).removeprefix(f"{dataset}/")
        wanted = f"the submission {submission_path(*last)}"
        yield images.finding(Code.OTHER_SUBMISSION, wanted, problem, f"id {row['id']}")
        return
    if submissions[-1].sha256 != row["submission"]["sha256"] and row["stage"] is None:
        return
    expected, found = _of_image(row, submissions, whole=len(submissions) == last.n)
    if found != expected:
        said = f"what {submissions[-1].path} says: {expected}"
        yield images.finding(Code.OTHER_SUBMISSION, said, found, f"id {row['id']}")
    if submissions[-1].sha256 == row["submission"]["sha256"]:
        yield from _audit_masks(row, masks, submissions, place)


def _of_image(row: Row, submissions: Sequence[Submission], *, whole: bool) -> tuple[Row, Row]:
    """Return the expected and actual annotation columns of an image's row. `whole` is true if all submissions exist."""
    submission = submissions[-1]
    expected: Row = {"sha256": submission.sha256, "annotator": submission.annotator, "stage": submission.stage}
    found: Row = {"sha256": row["submission"]["sha256"], "annotator": row["annotator"], "stage": row["stage"]}
    seconds = sum(each.seconds for each in last_of_states(submissions))
    if whole and not (row["seconds"] is not None and math.isclose(row["seconds"], seconds)):
        expected["seconds"], found["seconds"] = seconds, row["seconds"]
    # If masks were replaced, deleted, or superseded, parts of the submission may not have fit.
    unfit = bool(submission.replaced or submission.deleted) or any(
        each.base == submission.base for each in submissions[:-1]
    )
    if row["complete"] != submission.complete and not (unfit and row["complete"] is False):
        expected["complete"], found["complete"] = submission.complete, row["complete"]
    return expected, found


def _audit_masks(
    row: Row, masks: Sequence[Row], submissions: Sequence[Submission], place: FindingLocation
) -> Iterator[Finding]:
    """Yield findings for masks that differ from the last submission, are missing, or should have been removed."""
    submission, where = submissions[-1], f"id {row['id']}"
    here = {mask["annotation_id"]: _counts(mask) for mask in masks}
    there = frozenset(here.values())
    missing, stays = set(), set()
    for mask in submission.masks:
        stays.add(mask.counts)
        # A merge skips a mask whose parent doesn't fit, and then marks the image as incomplete.
        if mask.counts not in there and (mask.parent is None or row["complete"]):
            missing.add(mask.counts)
    if missing:
        yield place.finding(
            Code.OTHER_SUBMISSION, f"the masks of {submission.path}", f"{len(missing)} not there", where
        )
    for former in (*submission.deleted, *(mask for mask in submission.replaced if mask.counts not in stays)):
        if here.get(former.id) == former.counts:
            expected = f"no such mask, as {submission.path} says"
            yield place.finding(Code.OTHER_SUBMISSION, expected, "it is there", f"mask {former.id}", mask=former.id)
    said: dict[str, list[tuple[SubmittedMask, Sequence[Submission]]]] = {}
    for number, each in enumerate(submissions, 1):
        for mask in each.masks:
            said.setdefault(mask.counts, []).append((mask, submissions[:number]))
    for found in masks:
        words = said.get(_counts(found), [])
        if found["source"] == AUTOMATIC or not words:
            continue
        if found["origin"] is not None and not any(mask.parent == found["parent"] is not None for mask, _ in words):
            continue  # an imported mask with the same pixels
        wrong = _other_label(found, [mask for mask, _ in words])
        others = [_unlike(found, mask, until) for mask, until in words]
        if all(others):
            wrong = others[-1] | wrong
        if wrong:
            id = found["annotation_id"]
            expected = f"what {words[-1][1][-1].path} says: {wrong}"
            other = {name: found[name] for name in wrong}
            yield place.finding(Code.OTHER_SUBMISSION, expected, other, f"mask {id}", mask=id)


def _unlike(row: Row, mask: SubmittedMask, submissions: Sequence[Submission]) -> Row:
    """Return the columns, except for the label's, that differ between the last submission and a mask's row."""
    expected = {**mask_columns(mask, submissions), "parent": mask.parent}
    if mask.source == "corrected" and row["source"] in SOURCES:
        del expected["source"]  # the row may have kept the replaced mask's source
    return {name: value for name, value in expected.items() if row[name] != value}


def _other_label(row: Row, masks: Sequence[SubmittedMask]) -> Row:
    """Return a row's expected label columns if no submitted mask explains its label, or an empty dictionary."""
    if any(mask.label is None and mask.parent is not None for mask in masks):
        return {}  # the label may come from the parent
    if masks[-1].label is None and is_of_model(row["label_source"]):
        return {}  # a model may label a mask that the person left without a label
    for mask in masks:
        label = label_columns(mask)
        if all(row[name] == label[name] for name in label):
            return {}
    return label


def _counts(mask: Row) -> str:
    """Return the run lengths in a mask's row, which may be damaged."""
    return str((mask["segmentation"] or {}).get("counts"))


def _bad(name: SubmissionName, expected: str, found: str, path: str | None = None) -> Finding:
    image = name.ordinal + 1
    return FindingLocation(path or submission_path(*name), image=image).finding(
        Code.BAD_SUBMISSION, expected, found, f"id {image}"
    )


_AT_ONCE = 2_000  # ratings whose masks are requested in one query


def audit_ratings(tables: DatasetTables, taken: Collection[int]) -> Iterator[Finding]:
    """Yield findings about `annotations/ratings/`: files that aren't ratings, and ratings of masks that never existed.

    A rated mask may have been replaced or deleted since, but its number is always below the image's `next_mask`.
    `taken` contains the ordinals of removed images; `audit_submissions` reports their remaining files.
    """
    names = [name for name in list_ratings(tables.location) if name.ordinal not in taken]
    for start in range(0, len(names), _AT_ONCE):
        some = names[start : start + _AT_ONCE]
        numbers, counts = _masks_of(tables, sorted({name.ordinal + 1 for name in some}))
        for name, rating in zip(some, read_ratings(tables.location, some), strict=True):
            if not isinstance(rating, Rating):
                yield _finding(name, "a rating", str(rating).removeprefix(f"{tables.location}/"))
            elif rating.image not in numbers:
                yield _finding(name, "an image of the dataset", f"id {rating.image}")
            elif name.mask not in counts and name.mask % MOST_MASKS >= numbers[rating.image]:
                yield _finding(name, "a mask of the dataset", f"mask {name.mask}")
            elif name.mask in counts and rating.counts_sha256 != counts_digest(counts[name.mask]):
                yield _finding(name, f"a rating of mask {name.mask} as it is", "one of other run lengths")


def _masks_of(tables: DatasetTables, images: Sequence[int]) -> tuple[dict[int, int], dict[int, str]]:
    """Return the next mask number of each image, keyed by image, and the run lengths, keyed by annotation id."""
    among = ", ".join(map(str, images))
    known = f"SELECT id, coalesce(next_mask, {MOST_MASKS}) AS next FROM images WHERE id IN ({among})"
    rows = tables.query(known).to_pylist()
    masks = tables.query(
        f"SELECT annotation_id AS mask, coalesce(segmentation.counts, '') AS counts FROM masks WHERE id IN ({among})"
    ).to_pylist()
    return {row["id"]: row["next"] for row in rows}, {row["mask"]: row["counts"] for row in masks}


def _finding(name: RatingName, expected: str, found: str) -> Finding:
    place = FindingLocation(name.path, image=name.ordinal + 1)
    return place.finding(Code.BAD_RATING, expected, found, f"mask {name.mask}", mask=name.mask)
