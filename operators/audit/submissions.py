"""Audit of where masks come from: their sources, redacted regions around them, and submissions."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segmint.catalogs.dataset.mask_labels import MASK_LABEL, is_of_model
from segmint.catalogs.dataset.ratings import Rating, RatingName, counts_digest, list_ratings, read_ratings
from segmint.catalogs.dataset.submissions import (
    ANNOTATIONS,
    MOST_MASKS,
    Submission,
    SubmissionError,
    SubmissionName,
    SubmittedMask,
    image_of,
    last_of_states,
    merged_assignment,
    parse_return_path,
    parse_submission_path,
    read_assignment,
    read_return,
    read_submission,
    return_path,
    submission_path,
    submissions_of,
)
from segmint.catalogs.dataset.tables import DatasetTables
from segmint.catalogs.findings import Code, Finding, FindingLocation
from segmint.catalogs.layout import MOST_PIXELS, image_stem
from segmint.infra.arrays import Bools, Floats
from segmint.infra.stopping import map_ahead
from segmint.infra.storage.location import Location
from segmint.model.automatic import rle
from segmint.operators.audit.masks import MaskLimits, of_people
from segmint.operators.describe import redaction_columns
from segmint.operators.redactions import MANUAL, redacted_share
from segmint.operators.rows import AUTOMATIC, IMPORT, MASKS_PER_IMAGE_LIMIT, PERSON, SOURCES, Row
from segmint.operators.shards.submission_fit import label_columns, mask_columns

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
            yield place.mask_finding(former.id, Code.OTHER_SUBMISSION, expected, "it is there")
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
            yield place.mask_finding(id, Code.OTHER_SUBMISSION, expected, other)


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
    return place.mask_finding(name.mask, Code.BAD_RATING, expected, found)


TOLERANCE = 1e-6
"""Maximum difference between a stored share and the recomputed share."""

_ANNOTATION = ("submission", "annotator", "stage", "seconds", "complete", "masks_model")
_LABELS = (*MASK_LABEL, "output")
_SIZES = ("source_height", "source_width", "height", "width")


def annotated_images(images: pa.Table, masks: pa.Table) -> frozenset[int]:
    """Return the ordinals of images whose masks people or `segmint apply` changed, by their or their masks' rows."""
    said = [pc.is_valid(images.column(name)) for name in _ANNOTATION]
    by_row = images.column("ordinal").to_numpy()[np.any([each.to_numpy() for each in said], axis=0)]
    return frozenset({*by_row.tolist(), *masks.column("ordinal").to_numpy()[of_people(masks)].tolist()})


@dataclass(frozen=True)
class MaskOrigins:
    """Columns of the masks table about the origins of N masks."""

    source: Sequence[str | None]
    share: Floats  # (N,) NaN if missing
    iou: Floats  # (N,) NaN if missing
    bad_label: Bools  # (N,) true if the columns of the label or the output are invalid
    bad_container: Bools  # (N,) true if the container isn't a larger mask of the same image

    @classmethod
    def of(cls, masks: pa.Table) -> "MaskOrigins":
        """Read the origins from a table with the schema `MASKS`."""
        share, iou = (masks.column(name).to_numpy() for name in ("redacted_share", "redaction_iou"))
        return cls(
            masks.column("source").to_pylist(),
            np.asarray(share, np.float64),
            np.asarray(iou, np.float64),
            _bad_labels(masks),
            _bad_containers(masks),
        )


def _bad_labels(masks: pa.Table) -> Bools:
    """Return, for each mask, whether its label columns contradict each other or the format in docs/dataset.md."""

    label, score, source, output = (masks.column(name) for name in _LABELS)
    by_model = bools(pc.match_substring_regex(source, r"\Amodel:[0-9a-f]{64}\z"))
    known = by_model | bools(pc.is_in(source, pa.array([PERSON, IMPORT])))
    stray = bools(source.is_valid()) & ~bools(pc.equal(source, PERSON))  # without a label, a person removed it
    bad: Bools = np.where(bools(label.is_valid()), ~known, stray)
    bad |= bools(score.is_valid()) & ~(by_model & bools(pc.is_finite(score)))
    return bad | bools(pc.or_(pc.less(output, 0), pc.greater(output, 2)))


def bools(values: pa.ChunkedArray) -> Bools:
    """Convert a Boolean column to an array, with False for null."""
    return np.asarray(pc.fill_null(values, False).to_numpy(), bool)


def _bad_containers(masks: pa.Table) -> Bools:
    """Return, for each mask, whether its container is invalid. A container must be a larger mask of the same image.

    If two masks have the same area, the one with the lower id counts as larger.
    """
    columns = (masks.column(name) for name in ("annotation_id", "id", "area", "container"))
    ids, images, areas, containers = (column.fill_null(-1).to_numpy() for column in columns)
    if not len(ids):
        return np.zeros(0, bool)
    order = np.argsort(ids, kind="stable")
    place = order[np.searchsorted(ids, containers, sorter=order).clip(0, len(ids) - 1)]
    larger = (areas[place] > areas) | ((areas[place] == areas) & (containers < ids))
    holds = (ids[place] == containers) & (images[place] == images) & larger
    return np.asarray(bools(masks.column("container").is_valid()) & ~holds)


def audit_origins(
    row: Row,
    origins: MaskOrigins,
    span: tuple[int, int],
    codes: Sequence[str] | None,
    ids: Sequence[int],
    place: FindingLocation,
    limits: MaskLimits | None,
) -> Iterator[Finding]:
    """Yield findings about the origins of an image's masks.

    - `row`: the image's row of `images/*.parquet`.
    - `span`: the range [start, stop) of the masks' positions in the table.
    - `codes`: the compressed run lengths of these masks, or None if any of them are damaged.
    - `ids`: the annotation ids of these masks.
    - `limits`: the build's limits, with its filter of artifacts. If they are None, shares aren't checked.
    """
    start, stop = span
    for source, id in zip(origins.source[start:stop], ids, strict=True):
        if source not in SOURCES:
            expected = f"a source of {', '.join(SOURCES)}"
            yield place.mask_finding(id, Code.UNKNOWN_SOURCE, expected, repr(source))
    for index in np.flatnonzero(origins.bad_label[start:stop]).tolist():
        expected = "a label with its source, a model's score, an output from 0 to 2"
        yield place.mask_finding(ids[index], Code.BAD_LABEL, expected, "other values")
    for index in np.flatnonzero(origins.bad_container[start:stop]).tolist():
        expected = "a larger mask of its image as container"
        yield place.mask_finding(ids[index], Code.BAD_CONTAINER, expected, "another value")
    found = np.stack([origins.share[start:stop], origins.iou[start:stop]], axis=1)
    absent = np.isnan(found)
    automatic = np.array([source == AUTOMATIC for source in origins.source[start:stop]], bool)
    needed = np.array([source in SOURCES for source in origins.source[start:stop]], bool)
    if limits is None or codes is None or (absent.all() and not needed.any()):
        return
    try:
        shares, ious = redaction_columns({**row, "regions": _regions(row)}, codes)
    except (TypeError, ValueError, ArithmeticError) as error:
        yield place.finding(Code.REDACTED_SHARE, "regions in an image of known sizes", error, f"id {row['id']}")
        return
    wanted = np.stack([np.asarray(shares, np.float64), np.asarray(ious, np.float64)], axis=1)
    near = np.abs(found - wanted) <= TOLERANCE
    right = near.all(axis=1) | (absent.all(axis=1) & ~needed)
    for index in np.flatnonzero(~right).tolist():
        (share, iou), (is_share, is_iou) = wanted[index].tolist(), found[index].tolist()
        expected = f"redacted_share {share:.6g} and redaction_iou {iou:.6g}, by the image's regions"
        id = ids[index]
        yield place.mask_finding(id, Code.REDACTED_SHARE, expected, f"{is_share:.6g} and {is_iou:.6g}")

    if limits.artifact_iou is None or not automatic.any():
        return
    # The build knew only its own regions, not manual ones.
    known = [region for region in _regions(row) if region["source"] != MANUAL]
    if len(known) < len(_regions(row)):
        _, ious = redaction_columns({**row, "regions": known}, codes)
    for id, near_iou, made in zip(ids, ious, automatic, strict=True):
        if made and near_iou is not None and near_iou >= limits.artifact_iou:
            expected = f"an IoU under {limits.artifact_iou:g} with each redacted region"
            yield place.mask_finding(id, Code.REDACTION_ARTIFACT, expected, f"{near_iou:.6g}")


def audit_next_mask(
    row: Row,
    ids: Sequence[int],
    place: FindingLocation,
    sources: Sequence[str | None] | None = None,
    applied: Collection[int] = (),
) -> Iterator[Finding]:
    """Yield findings unless all mask numbers of an annotated image are below `next_mask`. `ids` are ascending mask ids.

    `next_mask` must be at least the number of masks that the build wrote and at most `MASKS_PER_IMAGE_LIMIT`. If
    `sources` is given, the numbers of the build's masks must be below `funnel.written`, and all other numbers must be
    at least as high, including those of masks that `segmint apply` made, whose ids are in `applied`.
    """
    next_mask, written = row["next_mask"], (row["funnel"] or {}).get("written")
    if next_mask is None or not (written or 0) <= next_mask <= MASKS_PER_IMAGE_LIMIT:
        expected = f"a next_mask from {written or 0} to {MASKS_PER_IMAGE_LIMIT:,} in an image that people annotated"
        yield place.finding(Code.ROW_IDENTITY, expected, next_mask, f"id {row['id']}")
        return
    end = row["id"] * MASKS_PER_IMAGE_LIMIT + next_mask
    if ids and ids[-1] >= end:
        expected = f"an annotation_id under {end}, as next_mask says"
        yield place.mask_finding(ids[-1], Code.ROW_IDENTITY, expected, ids[-1])
        return
    if sources is None or written is None:
        return
    first = row["id"] * MASKS_PER_IMAGE_LIMIT + written
    for id, source in zip(ids, sources, strict=True):
        built = source == AUTOMATIC and id not in applied
        if built and id >= first:
            expected = f"an annotation_id under {first}, as funnel.written says of masks that the build wrote"
            yield place.mask_finding(id, Code.ROW_IDENTITY, expected, id)
        elif source in SOURCES and not built and id < first:
            expected = f"an annotation_id of {first} or over: the build wrote the masks under it"
            yield place.mask_finding(id, Code.ROW_IDENTITY, expected, id)


def codes_hold(masks: Sequence[Row], image: Row) -> bool:
    """Return whether the run lengths of all masks can be read and cover their image exactly."""
    size = image["height"], image["width"]
    try:
        for mask in masks:
            if tuple(mask["segmentation"]["size"]) != size:
                return False
            rle.area(rle.Rle(size, mask["segmentation"]["counts"] or ""))
    except (ValueError, TypeError):
        return False
    return True


def audit_redacted_share(row: Row, place: FindingLocation) -> Iterator[Finding]:
    """Yield a finding if the redacted share of an image's row doesn't match its regions. Format 3 has no such share."""
    found = row["redacted_share"]
    try:
        wanted: object = redacted_share({**row, "regions": _regions(row)})
    except (TypeError, ValueError, ArithmeticError) as error:
        wanted = error
    if not isinstance(wanted, float) or found is None or not abs(found - wanted) <= TOLERANCE:
        yield place.finding(Code.REDACTED_SHARE, f"redacted_share {wanted}", found, f"id {row['id']}")


def _regions(row: Row) -> list[Any]:
    """Return the regions of a row. Raise `ValueError` if there are regions but the row's sizes are invalid."""
    regions: list[Any] = row["regions"] or []
    if regions:
        sizes = [row[name] for name in _SIZES]
        if not all(isinstance(size, int) and size > 0 for size in sizes) or sizes[2] * sizes[3] > MOST_PIXELS:
            raise ValueError(f"{', '.join(_SIZES)} are {sizes}")
    return regions
