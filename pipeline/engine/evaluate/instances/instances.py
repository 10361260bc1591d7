"""`segmint evaluate instances`: instance segmentation from boxes, scored against ground truth.

A detector's boxes, which have scores, give AP; boxes without scores give mIoU.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.wording import counted
from segmint.operators.evaluate.coco_matching import CocoPrecision, ImageMatches
from segmint.operators.evaluate.lvis import FederatedPrecision
from segmint.operators.intervals import Interval, basis, figure_intervals
from segmint.operators.resampling import holm, sign_flip_p
from segmint.operators.rows import Row
from segmint.pipeline.engine.evaluate.instances.boxes import (
    BoxesByImage,
    boxes_of_results,
    no_category_error,
    no_image_error,
    read_boxes,
)
from segmint.pipeline.engine.evaluate.instances.measure import OverlapMeasure, PrecisionMeasure, matches_of
from segmint.pipeline.engine.evaluate.kinds import DATASET
from segmint.pipeline.engine.evaluate.measure import EvaluatedWeights
from segmint.pipeline.engine.evaluate.output import OutputFolder
from segmint.pipeline.engine.evaluate.page import ComparedScore, FiguresPage, Table, cell, comparison
from segmint.pipeline.engine.evaluate.predictions import check_matched, read_predictions
from segmint.pipeline.engine.evaluate.result import EvaluationSubject, p_value, percent, table_line, verdict
from segmint.pipeline.engine.evaluate.session import SEED, EvaluateOptions, EvaluationSession
from segmint.pipeline.engine.evaluate.setup import open_truths
from segmint.pipeline.engine.evaluate.truth import Truth

Floats = NDArray[np.float64]

SHOWN = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "AP small",
    "ap_medium": "AP medium",
    "ap_large": "AP large",
    "ar_100": "AR@100",
}


SHOWN_LVIS = {
    **{name: text for name, text in SHOWN.items() if name != "ar_100"},
    "ap_r": "AP rare",
    "ap_c": "AP common",
    "ap_f": "AP frequent",
    "ar_300": "AR@300",
}


@dataclass(frozen=True)
class InstancesSettings:
    """Settings for making masks from `boxes`, None for those of the truth; without weights, nothing is `prompted`."""

    refine: bool
    boxes: BoxesByImage | None
    prompted: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return {"refine": self.refine, "boxes": "truth" if self.boxes is None else dict(self.boxes.facts)}

    def line(self) -> str:
        """Return the prompts in words."""
        facts = {} if self.boxes is None else self.boxes.facts
        if not self.prompted:
            return f"{facts['boxes']:,} predicted masks"
        boxes = f"{facts['boxes']:,} boxes" if facts else "the boxes of the ground truth masks"
        unknown = facts.get("categories_without_a_mask", [])
        alone = f" ({counted(len(unknown), 'category id')} of them without a ground truth mask)" if unknown else ""
        refined = ", then the box with the mask logits" if self.refine else ""
        return f"prompts: {boxes}{alone}, the mask of the highest predicted IoU{refined}"


@dataclass(frozen=True)
class PrecisionResult:
    """COCO's twelve scores for each set of weights, or LVIS's, and the AP of each category by its id.

    `truth` is the number of true masks by category.
    """

    subject: EvaluationSubject
    settings: InstancesSettings
    figures: tuple[Mapping[str, float | None], ...]
    categories: tuple[Mapping[int, float | None], ...] | None
    truth: Mapping[int, int]
    federated: bool = False

    @property
    def shown(self) -> Mapping[str, str]:
        """Scores to show, with their names."""
        return SHOWN_LVIS if self.federated else SHOWN

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        answer: dict[str, Any] = {
            **self.subject.to_dict(),
            "settings": self.settings.to_dict(),
            "figures": [dict(each) for each in self.figures],
        }
        if self.categories is not None:
            answer["categories"] = [{str(id): ap for id, ap in each.items()} for each in self.categories]
            answer["true_masks"] = {str(id): masks for id, masks in self.truth.items()}
        if len(self.figures) == 2:
            answer["differences"] = _minus(*self.figures)
        return answer

    def lines(self) -> list[str]:
        """Return the result as lines for people."""
        known = sum(masks > 0 for masks in self.truth.values())  # without a true mask, a category has no AP
        over = "without categories" if self.categories is None else f"over {known} categories"
        whose = "LVIS's federated" if self.federated else "COCO's"
        return [
            self.subject.head(),
            f"{self.settings.line()}; {whose} AP {over}, in percent",
            "",
            table_line(self.subject.size, list(self.shown.values()), 12),
            *self._rows(),
            *self.subject.skipped_lines(),
        ]

    def page(self) -> FiguresPage:
        """Return the contents of the page."""
        names = self.subject.names
        tables = [_figures_table(self.subject, "Figure", self.figures, self.shown)]
        if self.categories is not None:
            by_id = {id: f"category {id} ({counted(masks, 'mask')})" for id, masks in self.truth.items()}
            tables.append(_figures_table(self.subject, "AP by category", self.categories, by_id))
        return FiguresPage(
            "Weights evaluated by boxes of a detector",
            f"{'LVIS' if self.federated else 'COCO'}'s average precision, in percent, of masks made from a detector's "
            "boxes, ranked by box score.",
            "Without intervals.",
            "",
            [(name, cell(each["ap"])[0]) for name, each in zip(names, self.figures, strict=True)],
            tables,
            [("Prompts", self.settings.line())],
        )

    def _rows(self) -> Iterator[str]:
        for weights, figures in zip(self.subject.weights, self.figures, strict=True):
            yield table_line(weights.label, [percent(figures[name]) for name in self.shown], 12)
        if len(self.figures) == 2:
            first, second = (each.label for each in self.subject.weights)
            difference = _minus(*self.figures)
            cells = [percent(difference[name], sign="+") for name in self.shown]
            yield table_line(f"{second} minus {first}", cells, 12)


@dataclass(frozen=True)
class OverlapResult:
    """mIoU over masks and over images for each set of weights, with intervals, and the differences between two."""

    subject: EvaluationSubject
    settings: InstancesSettings
    means: tuple[Mapping[str, tuple[float | None, Interval | None]], ...]
    differences: Mapping[str, tuple[float | None, Interval | None]] | None
    holm: Mapping[str, float | None] = field(default_factory=dict)  # p by flipping signs of whole images, corrected

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        answer = {
            **self.subject.to_dict(),
            "settings": self.settings.to_dict(),
            "means": [_named(each) for each in self.means],
        }
        if self.differences is not None:
            answer["differences"] = {
                over: {**each, "holm": self.holm[over], "verdict": word}
                for (over, each), word in zip(_named(self.differences).items(), self._verdicts, strict=True)
            }
        return answer

    def lines(self) -> list[str]:
        """Return the result as lines for people."""
        return [
            self.subject.head(),
            f"{self.settings.line()}; mIoU in percent, {basis(self.subject.images)}; AP needs scores",
            "",
            table_line(self.subject.size, ["over masks", "over images"]),
            *(
                table_line(weights.label, [percent(*each) for each in means.values()])
                for weights, means in zip(self.subject.weights, self.means, strict=True)
            ),
            *self._difference(),
            *self.subject.skipped_lines(),
        ]

    def page(self) -> FiguresPage:
        """Return the contents of the page."""
        names = self.subject.names
        if self.differences is None:
            row = [cell(*each) for each in self.means[0].values()]
            table = Table(f"mIoU, {self.subject.size}", "Weights", ["over masks", "over images"], [(names[0], row)])
        else:
            compared = [
                ComparedScore(f"mIoU over {over}", [cell(*each[over]) for each in self.means], *change, self.holm[over])
                for over, change in self.differences.items()
            ]
            table = comparison(self.subject, "Mean", compared)
        return FiguresPage(
            "Weights evaluated by boxes",
            "Mean IoU with the ground truth, in percent, of masks made from boxes.",
            f"Means are in percent, {basis(self.subject.images)}.",
            "IoU",
            [(name, cell(*each["masks"])[0]) for name, each in zip(names, self.means, strict=True)],
            [table],
            [("Prompts", self.settings.line())],
        )

    def _difference(self) -> Iterator[str]:
        if self.differences is not None:
            first, second = (each.label for each in self.subject.weights)
            cells = [percent(*each, sign="+") for each in self.differences.values()]
            yield table_line(f"{second} minus {first}", cells)
            yield table_line("  corrected by Holm's method", [p_value(p) for p in self.holm.values()])
            yield table_line("  verdict", self._verdicts)

    @property
    def _verdicts(self) -> list[str]:
        changes = (self.differences or {}).items()
        return [verdict(*change, self.holm[over], self.subject.images) for over, change in changes]


class MatchesByCategory:
    """Matches of a run for each set of weights and category, by image; a few bytes per box."""

    def __init__(self, tables: Iterable[Sequence[Row]], weights: int) -> None:
        """Collect the rows of `PrecisionMeasure`."""
        self.by_category: list[dict[int, list[tuple[str, ImageMatches]]]] = [{} for _ in range(weights)]
        for rows in tables:
            for row in rows:
                home = self.by_category[row["weights"]].setdefault(row["category"], [])
                home.append((row["image_id"], matches_of(row)))

    @property
    def masks(self) -> int:
        """Number of true masks without crowds."""
        return sum(int(matches.truth[0]) for images in self.by_category[0].values() for _, matches in images)

    def check(self, boxes: BoxesByImage, models: Sequence[EvaluatedWeights] = ()) -> None:
        """Raise `UsageError` if no box belongs to an evaluated image, or none to a category with true masks.

        Also raises it if none of a model's predictions belongs to an evaluated image.
        """
        images = self.by_category[0].values()
        found = [any(len(each.scores) for of in home.values() for _, each in of) for home in self.by_category]
        check_matched(models, found)
        if not found[0]:
            raise no_image_error(boxes)
        both = (
            any(len(matches.scores) for _, matches in category) and any(matches.truth[0] for _, matches in category)
            for category in images
        )
        if not any(both):
            raise no_category_error(boxes)

    def answer(
        self,
        subject: EvaluationSubject,
        settings: InstancesSettings,
        categories: bool,
        frequencies: Mapping[int, str] | None = None,
    ) -> PrecisionResult:
        """Return the scores, accumulated by ascending category and image id as in COCO's evaluation.

        They are LVIS's if `frequencies` are given.
        """
        figures, by_category, truth = [], [], dict[int, int]()
        for home in self.by_category:
            total = CocoPrecision() if frequencies is None else FederatedPrecision(frequencies)
            each = dict[int, float | None]()
            for category in sorted(home):
                images = [matches for _, matches in sorted(home[category], key=lambda pair: _order(pair[0]))]
                truth[category] = sum(int(matches.truth[0]) for matches in images)
                if isinstance(total, FederatedPrecision):
                    each[category] = total.add(category, images)
                    continue
                alone = CocoPrecision()
                alone.add(images)
                total.extend(alone)
                each[category] = alone.figures()["ap"]
            figures.append(total.figures())
            by_category.append(each)
        by_id = tuple(by_category) if categories else None
        ordered = dict(sorted(truth.items()))
        return PrecisionResult(subject, settings, tuple(figures), by_id, ordered, frequencies is not None)


def gather_overlaps(tables: Iterable[Sequence[Row]], weights: int, boxes: BoxesByImage | None = None) -> Floats:
    """Return each image's number of masks and sums of IoUs by weights, (I, 1 + W), from `OverlapMeasure`'s rows.

    Raises `UsageError` if no image has any of the `boxes`.
    """
    images: dict[tuple[int, str], list[float]] = {}
    boxed = boxes is None
    for rows in tables:
        for row in rows:
            sums = images.setdefault((row["truth"], row["image_id"]), [0.0] * (1 + weights))
            sums[0] += row["weights"] == 0
            sums[1 + row["weights"]] += row["iou"]
            boxed = boxed or (boxes is not None and len(boxes.of(row["image_id"], row["image"]).boxes) > 0)
    if boxes is not None and not boxed:
        raise no_image_error(boxes)
    return np.array(list(images.values()), dtype=np.float64).reshape(-1, 1 + weights)


def overlap_result(subject: EvaluationSubject, settings: InstancesSettings, sums: Floats, seed: int) -> OverlapResult:
    """Compute the result from the output of `gather_overlaps`. Images are resampled jointly for all weights."""
    weights = sums.shape[1] - 1
    of_images = np.concatenate([np.ones((len(sums), 1)), sums[:, 1:] / sums[:, :1]], axis=1)

    def means(drawn: Floats) -> Floats:
        found = drawn[:, 1:] / drawn[:, :1]
        return np.concatenate([found, found[:, 1:] - found[:, :1]], axis=1) if weights == 2 else found

    ways = {
        "masks": figure_intervals(sums, means, [seed, 0], weights),
        "images": figure_intervals(of_images, means, [seed, 1], weights),
    }
    by_weights = [
        {over: (values[place], intervals[place]) for over, (values, intervals) in ways.items()}
        for place in range(3 if weights == 2 else weights)
    ]
    if weights < 2:
        return OverlapResult(subject, settings, tuple(by_weights), None)
    changes = np.stack([each[:, 2] - each[:, 1] for each in (sums, of_images)], axis=1)
    ps = dict(zip(ways, holm(sign_flip_p(changes, [seed, 2])), strict=True))
    return OverlapResult(subject, settings, tuple(by_weights[:2]), by_weights[2], ps)


def _order(image_id: str) -> tuple[int, int, str]:
    """Return a sort key that orders numbers by value, before names."""
    return (0, int(image_id), "") if image_id.isdecimal() else (1, 0, image_id)


def _figures_table(
    subject: EvaluationSubject,
    first: str,
    figures: Sequence[Mapping[Any, float | None]],
    shown: Mapping[Any, str],
) -> Table:
    """Return the table of figures without intervals, with a row for each one that is shown."""
    rows = [(key, text, [cell(each.get(key)) for each in figures]) for key, text in shown.items()]
    if len(figures) < 2:
        return Table(subject.size, first, subject.names, [(text, cells) for _, text, cells in rows])
    changes = _minus(*figures)
    return comparison(subject, first, [ComparedScore(text, cells, changes.get(key)) for key, text, cells in rows])


def _minus(first: Mapping[Any, float | None], second: Mapping[Any, float | None]) -> dict[Any, float | None]:
    return {
        name: None if value is None or (other := first.get(name)) is None else value - other
        for name, value in second.items()
    }


def _named(means: Mapping[str, tuple[float | None, Interval | None]]) -> dict[str, Any]:
    return {over: {"value": value, "interval": interval} for over, (value, interval) in means.items()}


def evaluate_instances(
    options: EvaluateOptions, boxes_file: str | None, refine: bool, storage: Storage
) -> PrecisionResult | OverlapResult:
    """Make a mask from each box, compare it with the truth, and write the results to the output, if any.

    Boxes with scores give AP. Boxes without scores give mIoU, as do the truth's boxes, which are used without a file.
    Raises `UsageError` for invalid options, and `NothingMeasuredError` if no image can be evaluated.
    """
    truths = open_truths(options.truth, storage)
    boxes = None if boxes_file is None else boxes_for(truths, Location(storage, boxes_file))
    scored = (boxes is not None and boxes.scored) or (boxes is None and not options.model.weights)
    required = [*(["score"] if scored else []), *(["category_id"] if boxes is not None and boxes.categories else [])]
    predictions = read_predictions(options.model.predictions, truths, storage, required)
    if boxes is None and scored:
        boxes = checked_boxes(truths, boxes_of_results(predictions))
    if boxes is not None and boxes.scored:  # detections in an image without masks count as wrong
        truths = open_truths(replace(options.truth, empty=True), storage)
    settings = InstancesSettings(refine, boxes, bool(options.model.weights))
    measure: PrecisionMeasure | OverlapMeasure
    if boxes is not None and boxes.scored:
        measure = PrecisionMeasure(boxes, refine, boxes.categories and truths[0].federated)
    else:
        measure = OverlapMeasure(boxes, refine)
    task = options.model.task(measure, predictions)
    folder = None if options.output is None else Location(storage, options.output)
    with OutputFolder(folder, truths, measure.schema) as output:
        session = EvaluationSession(task, truths, options.model.run, output, lambda row: row.get("iou"))
        answer: PrecisionResult | OverlapResult
        if isinstance(measure, PrecisionMeasure):
            matches = MatchesByCategory(session.tables(), len(task.weights))
            matches.check(measure.boxes, task.weights)
            frequencies = truths[0].frequencies if measure.federated else None
            subject = session.subject(matches.masks)
            answer = matches.answer(subject, settings, measure.boxes.categories, frequencies)
        else:
            sums = gather_overlaps(session.tables(), len(task.weights), boxes)
            check_matched(task.weights, sums[:, 1:].any(axis=0))
            answer = overlap_result(session.subject(int(sums[:, 0].sum())), settings, sums, SEED)
        answer.page().put(output, answer.to_dict(), answer.subject, session.lowest)
    return answer


def boxes_for(truths: Sequence[Truth], file: Location) -> BoxesByImage:
    """Read the boxes for a truth. Raises `UsageError` for several truths, or if no category has a true mask."""
    if len(truths) > 1:
        raise UsageError(f"--boxes takes only one dataset or file, but {len(truths)} were given")
    return checked_boxes(truths, read_boxes(file, truths[0].kind == DATASET))


def checked_boxes(truths: Sequence[Truth], boxes: BoxesByImage) -> BoxesByImage:
    """Return the boxes, without categories if the truth has none. Raises `UsageError` if no category has a mask."""
    categories = truths[0].categories
    if not (boxes.categories and categories):  # only some COCO files have category ids of masks
        return boxes.without_categories()
    if not boxes.of_categories & categories:
        raise no_category_error(boxes)
    unknown = sorted(boxes.of_categories - categories)
    return replace(boxes, facts={**boxes.facts, "categories_without_a_mask": unknown}) if unknown else boxes
