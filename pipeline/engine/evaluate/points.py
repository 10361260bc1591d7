"""`segmint evaluate points`: evaluation by simulated clicks, from truths and weights to the result and its page.

Page of the evaluation by clicks, with curves, tables, groups, and the masks with the lowest scores.
"""

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pycocotools import mask as coco

from segmint.infra.arrays import Bools, Pixels
from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.wording import count, counted
from segmint.operators.evaluate.settings import FirstClick, PointsSettings
from segmint.operators.images import JpegDecoder
from segmint.operators.intervals import Interval, basis
from segmint.operators.rows import Row
from segmint.pipeline.engine.evaluate.page import (
    Curve,
    Curves,
    markdown,
    render,
)
from segmint.pipeline.engine.evaluate.result import (
    EvaluationSubject,
    OutputFolder,
    check_matched,
    percent,
    read_predictions,
)
from segmint.pipeline.engine.evaluate.run import (
    EvaluateOptions,
    EvaluationSession,
    check_fail_if_worse,
    open_truths,
)
from segmint.pipeline.engine.evaluate.scores import (
    DRAWN,
    KINDS,
    SCORES,
    ImageScores,
    PointsMeasure,
    PointsResult,
    WorstMask,
    collect,
    groups_of,
    means_of,
)
from segmint.pipeline.engine.evaluate.truth import Decoders, Truth, TruthImage, TruthPart, UnreadableTruthError

_FIRST = {
    "center": "The first click is on the pixel farthest from the mask's boundary.",
    "random": "The first click is on a random pixel of the mask.",
}
_SEVERAL = {
    "single": "the single mask for unambiguous prompts",
    "three": "the mask with the highest predicted IoU of three",
}

SIDE = 320
"""Length of the longer side of a drawn image in pixels."""

_MARGIN = 0.25  # margin of a square around the masks, as a share of their longer side
_LEAST_CROP = 48  # pixels of the image
_TRUTH, _CHOICE = (20, 90, 200), (240, 130, 30)
_FOREGROUND, _BACKGROUND = (25, 125, 50), (190, 35, 30)
_FILL = 0.5
_QUALITY = 85

Crop = tuple[int, int, int, int]
"""Crop of an image as (left, top, right, bottom) in pixels, where right and bottom are exclusive."""


def render_page(answer: PointsResult, worst: Sequence[Sequence[WorstMask]], truths: Sequence[Truth]) -> str:
    """Render the page as HTML. `worst` are masks of each set of weights, whose images are read again to draw them."""
    subject, settings = answer.subject, answer.settings
    ends = f"iou_{settings.clicks[0]}", f"iou_{settings.clicks[-1]}"
    return render(
        "points.html.j2",
        subject,
        "Weights evaluated by clicks",
        _tiles(answer),
        made=[
            ("First click", _FIRST[settings.first]),
            ("Two clicks or more", _SEVERAL[settings.several]),
            ("Seed", str(settings.seed)),
        ],
        first_click=_FIRST[settings.first],
        basis=basis(subject.images),
        charts=[_chart(answer, scope) for scope in answer.scopes()],
        compared=list(answer.compared()),
        tables=list(answer.tables()),
        grouped_by=answer.grouped_by,
        groups=list(answer.group_tables()),
        worst=[
            {"name": name, "pictures": draw_worst(masks, truths, ends)}
            for name, masks in zip(subject.names, worst, strict=True)
        ],
    )


def _tiles(answer: PointsResult) -> list[tuple[str, str]]:
    tiles = [("Masks", count(answer.subject.masks)), ("Images", count(answer.subject.images))]
    one, last = answer.settings.clicks[0], answer.settings.clicks[-1]
    for number, label in enumerate(answer.subject.names):
        name = ""
        if len(answer.subject.weights) > 1:
            name = f"{label}, "
        for measure, text in (
            (f"iou_{one}", "1 click"),
            (f"oracle_{one}", "best of three"),
            (f"iou_{last}", f"{last} clicks"),
        ):
            tiles.append((f"{name}{text}", percent(answer.means.mean(measure, number).mean)))
    return list(dict(tiles).items())


def _chart(answer: PointsResult, truth: int | None) -> Curves:
    clicks = answer.settings.clicks
    curves = []
    for number, label in enumerate(answer.subject.names):
        for kind, name in KINDS.items():
            means = [answer.means.mean(f"{kind}_{each}", number, truth) for each in clicks]
            text = name
            if len(answer.subject.weights) > 1:
                text = f"{label}: {name}"
            values = tuple(mean.mean for mean in means)
            intervals: tuple[Interval | None, ...] = ()
            if kind == "iou":
                intervals = tuple(mean.interval for mean in means)
            curves.append(Curve(text, values, intervals, number, kind != "iou"))
    ends = "; ".join(f"{curve.name} {percent(curve.values[0])} to {percent(curve.values[-1])}" for curve in curves)
    return Curves(
        answer.scope(truth),
        "clicks",
        f"mean IoU over masks in percent, {basis(answer.subject.images)}",
        tuple(map(str, clicks)),
        tuple(curves),
        f"Mean IoU after {clicks[0]} to {counted(clicks[-1], 'click')}: {ends}",
    )


@dataclass(frozen=True)
class WorstMaskImage:
    """Drawings of a mask after the first and the last click, as data URIs. `problem` explains a missing drawing."""

    image: str
    mask: int
    label: str | None
    clicks: int
    before: str  # IoU in percent
    after: str
    credit: str = ""
    first: str = ""
    last: str = ""
    problem: str = ""


def draw_worst(worst: Sequence[WorstMask], truths: Sequence[Truth], measures: tuple[str, str]) -> list[WorstMaskImage]:
    """Draw the masks in order, reading their images again. `measures` names the first and the last IoU."""
    parts = [part for truth in truths for part in truth.parts]
    images: dict[tuple[int, str], TruthImage | str] = {}
    with JpegDecoder(own=True, processes=1) as own, JpegDecoder(own=False, processes=1) as foreign:
        for number in sorted({each.part for each in worst}):
            wanted = {each.row["image_id"] for each in worst if each.part == number}
            for id, image in _read(parts[number], wanted, Decoders(own, foreign)):
                images[number, id] = image
    return [_picture(each.row, images.get((each.part, each.row["image_id"]), "it is gone"), measures) for each in worst]


def draw_mask(pixels: Pixels, truth: Bools, choice: Bools, clicks: Sequence[Row], crop: Crop) -> Pixels:
    """Draw both masks and the clicks on a crop of the image, at most `SIDE` pixels long, (H, W, 3) uint8 RGB."""
    left, top, right, bottom = crop
    scale = SIDE / max(right - left, bottom - top)
    size = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    sharp = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    canvas = np.asarray(cv2.resize(pixels[top:bottom, left:right], size, interpolation=sharp), np.uint8)
    truth, choice = (
        cv2.resize(mask[top:bottom, left:right].astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
        for mask in (truth, choice)
    )
    tinted = canvas[choice].astype(np.float32) * (1 - _FILL) + np.array(_CHOICE, np.float32) * _FILL
    canvas[choice] = np.rint(tinted).astype(np.uint8)
    contours, _ = cv2.findContours(truth.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, contours, -1, (255, 255, 255), 5, cv2.LINE_AA)
    cv2.drawContours(canvas, contours, -1, _TRUTH, 2, cv2.LINE_AA)
    for number, click in enumerate(clicks, start=1):
        place = round((click["x"] + 0.5 - left) * scale), round((click["y"] + 0.5 - top) * scale)
        _draw_click(canvas, place, number, bool(click["label"]))
    return canvas


def _draw_click(canvas: Pixels, place: tuple[int, int], number: int, foreground: bool) -> None:
    color = _FOREGROUND if foreground else _BACKGROUND
    cv2.circle(canvas, place, 8, (255, 255, 255), -1, cv2.LINE_AA)
    cv2.circle(canvas, place, 7, color, -1, cv2.LINE_AA)
    x, y = place
    cv2.line(canvas, (x - 4, y), (x + 4, y), (255, 255, 255), 2)
    if foreground:
        cv2.line(canvas, (x, y - 4), (x, y + 4), (255, 255, 255), 2)
    at = x + 9, y - 6
    cv2.putText(canvas, str(number), at, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 3, cv2.LINE_AA)
    cv2.putText(canvas, str(number), at, cv2.FONT_HERSHEY_SIMPLEX, 0.45, color, 1, cv2.LINE_AA)


def _crop(masks: Bools, clicks: Sequence[Row]) -> Crop:
    """Choose a crop around masks and clicks, with a margin, inside the image."""
    ys, xs = (np.flatnonzero(masks.any(axis=axis)) for axis in (1, 0))
    spans = []
    for found, key, limit in ((xs, "x", masks.shape[1]), (ys, "y", masks.shape[0])):
        places = [*found[[0, -1]].tolist(), *(click[key] for click in clicks)]
        spans.append((min(places), max(places) + 1, limit))
    side = max(_LEAST_CROP, round((1 + 2 * _MARGIN) * max(stop - start for start, stop, _ in spans)))
    (left, right), (top, bottom) = (_around(start, stop, min(side, limit), limit) for start, stop, limit in spans)
    return left, top, right, bottom


def _around(start: int, stop: int, side: int, limit: int) -> tuple[int, int]:
    """Center a span of `side` pixels on another span, and shift it into the image's `limit`."""
    first = min(max(0, (start + stop - side) // 2), limit - side)
    return first, first + side


def _read(part: TruthPart, wanted: set[str], decoders: Decoders) -> list[tuple[str, TruthImage | str]]:
    found: list[tuple[str, TruthImage | str]] = []
    try:
        for pending in part.pending():
            if pending.image_id in wanted:
                try:
                    found.append((pending.image_id, pending.load(decoders)))
                except UnreadableTruthError as error:
                    found.append((pending.image_id, str(error)))
                if len(found) == len(wanted):
                    break
    except (SegmintError, OSError) as error:
        for id in wanted.difference(dict(found)):
            found.append((id, str(error)))
    return found


def _picture(row: Row, image: TruthImage | str, measures: tuple[str, str]) -> WorstMaskImage:
    before, after = (f"{100 * row[measure]:.1f}" for measure in measures)
    shown = WorstMaskImage(row["image"], row["mask"], row["label"], len(row["clicks"]), before, after)
    if isinstance(image, str):
        return replace(shown, problem=image)
    truth, first, last = (coco.decode(row[name]).astype(bool) for name in ("truth_rle", "first_rle", "last_rle"))
    crop = _crop(truth | last, row["clicks"])
    credit = [image.columns.get(name) for name in ("attribution", "provider", "license")]
    return replace(
        shown,
        credit=" · ".join(str(each) for each in credit if each),
        first=_uri(draw_mask(image.pixels, truth, first, row["clicks"][:1], crop)),
        last=_uri(draw_mask(image.pixels, truth, last, row["clicks"], crop)),
    )


def _uri(pixels: Pixels) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


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


def read_groups(name: str, storage: Storage) -> Groups:
    """Parse `--groups`, which is a .csv or .parquet file, or the name of a column.

    Raises `UsageError` if the file is unreadable, has unexpected columns, or assigns two labels to an image or mask.
    """
    if PurePosixPath(name).suffix.lower() not in _ENDINGS:
        return Groups(name, column=name)
    file = Location(storage, name)
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


def evaluate_points(
    options: EvaluateOptions,
    settings: PointsSettings,
    storage: Storage,
    first: FirstClick | None = None,
    group_by: str | None = None,
) -> PointsResult:
    """Click on all masks, compute the scores, and write the results and a page to the output, if any.

    By default, the `first` click is central. With groups, it is random, as in the paper. `group_by` is the value of
    `--groups`. Raises `UsageError` if an option is invalid, and `NothingMeasuredError` if no image can be evaluated.
    """
    groups = None if group_by is None else read_groups(group_by, storage)
    settings = _settings(settings, first, groups is not None)
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
            tables = [*answer.compared(), *answer.tables(), *answer.group_tables()]
            page = render_page(answer, worst, truths)
            output.put(answer.to_dict(), page, markdown(answer.subject, tables))
    return answer


def _settings(settings: PointsSettings, first: FirstClick | None, grouped: bool) -> PointsSettings:
    first = first or (FirstClick.RANDOM if grouped else FirstClick.CENTER)
    clicks = {*settings.clicks, *(GROUP_CLICKS if grouped else ())}
    return replace(settings, first=first, clicks=tuple(sorted(clicks)))


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
