"""`segmint evaluate points`: evaluation by simulated clicks, from truths and weights to the result and its page."""

import csv
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.operators.evaluate.settings import FirstClick, PointsSettings
from segmint.operators.rows import Row
from segmint.pipeline.engine.evaluate.output import OutputFolder
from segmint.pipeline.engine.evaluate.page import markdown
from segmint.pipeline.engine.evaluate.points.figures import groups_of, means_of
from segmint.pipeline.engine.evaluate.points.measure import DRAWN, SCORES, PointsMeasure
from segmint.pipeline.engine.evaluate.points.page import points_tables, render_page
from segmint.pipeline.engine.evaluate.points.result import KINDS, PointsResult
from segmint.pipeline.engine.evaluate.points.scores import ImageScores, collect
from segmint.pipeline.engine.evaluate.predictions import check_matched, read_predictions
from segmint.pipeline.engine.evaluate.result import EvaluationSubject
from segmint.pipeline.engine.evaluate.session import EvaluationSession
from segmint.pipeline.engine.evaluate.setup import ModelOptions, TruthOptions, check_fail_if_worse, open_truths

IMAGE_KEY, MASK_KEY = "image_id", "annotation_id"
"""Columns that can identify an image or a mask in a groups file. The file has one of them, and a column of labels."""

MASK_COLUMNS = ("label", "source")
"""Columns of masks that can define groups if the images have no column with this name."""

MOST_GROUPS = 50
"""Maximum number of groups. A column with more values is rejected."""

_ENDINGS = (".csv", ".parquet")


@dataclass(frozen=True)
class Groups:
    """Grouping of masks by a column, or by a file's labels of images or masks. `by` is its name in results."""

    by: str
    column: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    of_masks: bool = False

    @property
    def image_columns(self) -> tuple[str, ...]:
        """Columns of a dataset's images that the grouping needs."""
        return () if self.column is None or self.column in MASK_COLUMNS else (self.column,)

    def of(self, row: Row) -> str | None:
        """Return the group of a row of results, or None."""
        if self.column is not None:
            value: str | None = row["group"]
            return value
        if self.of_masks:
            return self.labels.get(str(row["mask"]))
        return self.labels.get(row["image_id"], self.labels.get(row["image"]))


def read_groups(name: str, locate: Callable[[str], Location]) -> Groups:
    """Parse `--groups`, which is a .csv or .parquet file, or the name of a column.

    Raises `UsageError` if the file is unreadable, has unexpected columns, or assigns two labels to an image or mask.
    """
    if PurePosixPath(name).suffix.lower() not in _ENDINGS:
        return Groups(name, column=name)
    file = locate(name)
    try:
        data = file.read()
    except NotFoundError as error:
        raise UsageError(f"--groups {name}: no such file. Image columns have no file extension") from error
    try:
        if name.lower().endswith(".parquet"):
            rows = pq.read_table(io.BytesIO(data)).to_pylist()
        else:
            rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True))
    except (pa.ArrowException, UnicodeDecodeError, csv.Error, OSError) as error:
        raise UsageError(f"can't read --groups {name}: {error}") from error
    return _checked(name, rows)


def _checked(name: str, rows: list[Row]) -> Groups:
    expected = f"expected {IMAGE_KEY} or {MASK_KEY}, and one more column with the label"
    columns = list(rows[0]) if rows else []
    keys = [key for key in (IMAGE_KEY, MASK_KEY) if key in columns]
    if len(keys) != 1 or len(columns) != 2:
        found = ", ".join(map(str, columns)) or "no rows"
        raise UsageError(f"--groups {name} has {found}: {expected}")
    (key,) = keys
    (label,) = (column for column in columns if column != key)
    labels: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        if len(row) != 2:  # for example, a label with an unquoted comma
            raise UsageError(f"--groups {name}, row {number} has more than 2 values: {expected}")
        if row[key] is None or row[label] in (None, ""):
            continue
        known = labels.setdefault(str(row[key]), str(row[label]))
        if known != str(row[label]):
            raise UsageError(
                f"--groups {name}, row {number}: {key} {row[key]} is in {known!r} and in {str(row[label])!r}: expected "
                "one label each"
            )
    if not labels:
        raise UsageError(f"--groups {name} has no label: {expected}")
    return Groups(str(label), labels=labels, of_masks=key == MASK_KEY)


def check_groups(groups: Groups, found: set[str]) -> None:
    """Raise `UsageError` if no mask belongs to a group, or if there are too many groups to compare."""
    if not found:
        raise UsageError(f"no evaluated mask has a value for {groups.by}, so there is nothing to group by")
    if len(found) > MOST_GROUPS:
        raise UsageError(
            f"{groups.by} has {len(found)} values, such as {', '.join(sorted(found)[:3])}: expected at most "
            f"{MOST_GROUPS} groups. To use fewer, pass a file with a group per image"
        )


GROUP_CLICKS = (1, 3)
"""Numbers of clicks at which groups are compared, as in the paper's fairness analysis."""


@dataclass(frozen=True)
class PointsOptions:
    """Options of the evaluation.

    By default, the `first` click is central. With groups, it is random, as in the paper. `fail_if_worse` is as in
    `EvaluateOptions`.
    """

    truth: TruthOptions
    model: ModelOptions = field(default_factory=ModelOptions)
    settings: PointsSettings = field(default_factory=PointsSettings)
    first: FirstClick | None = None
    groups: str | None = None
    output: str | None = None
    fail_if_worse: str | None = None


def evaluate_points(options: PointsOptions, storage: Storage) -> PointsResult:
    """Click on all masks, compute the scores, and write the results and a page to the output, if any.

    Raises `UsageError` if an option is invalid, and `NothingMeasuredError` if no image can be evaluated.
    """
    groups = None if options.groups is None else read_groups(options.groups, lambda name: Location(storage, name))
    settings = _settings(options, groups is not None)
    check_fail_if_worse(
        options.fail_if_worse, options.model, [f"{kind}_{count}" for kind in KINDS for count in settings.clicks]
    )
    measure = PointsMeasure(settings, None if groups is None else groups.column)
    truths = open_truths(options.truth, storage, () if groups is None else groups.image_columns)
    required = ("annotation_id", "clicks")
    task = options.model.task(measure, read_predictions(options.model.predictions, truths, storage, required))
    measures = tuple(f"{kind}_{count}" for kind in SCORES for count in settings.clicks)
    kept = measure.schema
    for name in DRAWN:
        kept = kept.remove(kept.get_field_index(name))
    with OutputFolder(options.output, storage, truths, kept) as output:
        session = EvaluationSession(task, truths, options.model.run, output)
        group_of = (lambda _: None) if groups is None else groups.of
        scores, worst = collect(session.results(), measures, len(task.weights), group_of, output.add)
        check_matched(task.weights, scores.sums.any(axis=(0, 2)), "image_id and annotation_id")
        answer = _answer(session.subject(scores.masks), settings, scores, groups)
        if options.fail_if_worse is not None:
            change = answer.means.difference(options.fail_if_worse)
            answer = replace(answer, subject=answer.subject.with_change(change.measure, change.mean, change.interval))
        if output.wanted:
            page, tables = render_page(answer, worst, truths), markdown(answer.subject, points_tables(answer))
            output.put(answer.to_dict(), page, tables)
    return answer


def _settings(options: PointsOptions, grouped: bool) -> PointsSettings:
    first = options.first or (FirstClick.RANDOM if grouped else FirstClick.CENTER)
    clicks = {*options.settings.clicks, *(GROUP_CLICKS if grouped else ())}
    return replace(options.settings, first=first, clicks=tuple(sorted(clicks)))


def _answer(
    subject: EvaluationSubject, settings: PointsSettings, scores: ImageScores, groups: Groups | None
) -> PointsResult:
    means = means_of(scores, len(subject.truths), settings.seed)
    if groups is None:
        return PointsResult(subject, settings, means, scores)
    check_groups(groups, {group for group in scores.group if group is not None})
    compared = tuple(f"iou_{count}" for count in GROUP_CLICKS)
    by_group, pairs = groups_of(scores, compared, settings.seed)
    return PointsResult(subject, settings, means, scores, groups.by, by_group, pairs)
