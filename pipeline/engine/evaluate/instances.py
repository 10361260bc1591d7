"""`segmint evaluate instances`: instance segmentation from boxes, scored against ground truth.

If the boxes have scores, as a detector's boxes do, the result is an AP; otherwise, it is an mIoU.

Masks from boxes as a measure: matches for the AP if the boxes have scores, otherwise the IoU of each mask.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from segmint.infra.arrays import Floats
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.wording import counted
from segmint.operators.evaluate.instances import (
    MOST,
    MOST_LVIS,
    AveragePrecision,
    ImageMatches,
    PredictedMask,
    boxes_of,
    iou_assigned,
    iou_in_order,
    match_masks,
    score_names,
    segment_boxes,
)
from segmint.operators.evaluate.settings import DATASET
from segmint.operators.intervals import Interval, basis, figure_intervals, holm, sign_flip_p, swap_p
from segmint.operators.rows import Row
from segmint.pipeline.engine.evaluate.boxes import (
    NO_CATEGORY,
    BoxesByImage,
    ImageBoxes,
    boxes_of_results,
    no_category_error,
    no_image_error,
    read_boxes,
)
from segmint.pipeline.engine.evaluate.page import ComparedScore, FiguresPage, Table, comparison, text_lines
from segmint.pipeline.engine.evaluate.proposals import true_masks
from segmint.pipeline.engine.evaluate.result import (
    HEAD,
    WEIGHTS,
    EvaluatedWeights,
    EvaluationSubject,
    Model,
    OutputFolder,
    PredictedResult,
    Predictions,
    cell,
    check_matched,
    read_predictions,
    verdict,
    with_embeddings,
)
from segmint.pipeline.engine.evaluate.run import (
    SEED,
    EvaluateOptions,
    EvaluationSession,
    check_fail_if_worse,
    open_truths,
)
from segmint.pipeline.engine.evaluate.truth import Truth, TruthImage, TruthMask


@dataclass(frozen=True)
class PrecisionMeasure:
    """Measure that matches masks from a detector's boxes with the truth, in a row for each image and category.

    With `federated`, as in LVIS, only the categories that were checked in an image count.
    """

    boxes: BoxesByImage
    refine: bool = True
    federated: bool = False

    name = "instances"

    @property
    def schema(self) -> pa.Schema:
        """`HEAD`, the weights, the category, and the fields of `ImageMatches`: scores, bits, and true masks by size."""
        return pa.schema(
            [
                *HEAD,
                WEIGHTS,
                pa.field("category", pa.int64(), nullable=False),
                pa.field("scores", pa.list_(pa.float64()), nullable=False),
                pa.field("bits", pa.binary(), nullable=False),
                pa.field("true_masks", pa.list_(pa.int64()), nullable=False),
            ]
        )

    def rows(self, models: Sequence[Model], image: TruthImage) -> list[Row]:
        """Prompt each model with the image's boxes."""
        wanted = self.boxes.of(image.image_id, image.name)
        wanted = wanted.best_of_all(MOST_LVIS) if self.federated else wanted.best(MOST)
        assert wanted.scores is not None, "a file without scores is another measure"
        checked = image.checked if self.federated else None
        truth: dict[int, list[TruthMask]] = {}
        for true in image.masks:
            truth.setdefault(_category(true) if self.boxes.categories else NO_CATEGORY, []).append(true)
        rows: list[Row] = []
        for weights, masks in enumerate(_segment(models, image, wanted, self.refine)):
            found: dict[int, list[PredictedMask]] = {}
            if self.federated:
                masks = sorted(masks, key=lambda mask: -(mask.score or 0.0))[:MOST_LVIS]
            for mask in masks:
                category = self._category(mask)
                if checked is None or category in checked:
                    found.setdefault(category, []).append(PredictedMask(mask.rle, mask.score or 0.0))
            for category in sorted({*truth, *found}):
                matches = match_masks(
                    true_masks(truth.get(category, [])),
                    found.get(category, []),
                    MOST if checked is None else MOST_LVIS,
                    exhaustive=checked is None or category not in image.not_exhaustive,
                )
                rows.append(
                    {
                        "weights": weights,
                        "category": category,
                        "scores": matches.scores.tolist(),
                        "bits": matches.bits.tobytes(),
                        "true_masks": matches.truth.tolist(),
                    }
                )
        return rows

    def _category(self, mask: PredictedResult) -> int:
        return NO_CATEGORY if mask.category is None or not self.boxes.categories else mask.category


def matches_of(row: Row) -> ImageMatches:
    """Return the matches of a row of `PrecisionMeasure`."""
    return ImageMatches(
        np.array(row["scores"], dtype=np.float64),
        np.frombuffer(row["bits"], dtype=np.uint8),
        np.array(row["true_masks"], dtype=np.int64),
    )


@dataclass(frozen=True)
class OverlapMeasure:
    """Measure of the IoU between masks from boxes and the truth, in a row for each true mask except crowds.

    Without `boxes`, the prompts are the boxes of the true masks. Otherwise, the prompts are the file's boxes, and each
    true mask is paired with at most one predicted mask of its category. The pairing maximizes the sum of the IoUs.
    """

    boxes: BoxesByImage | None = None
    refine: bool = True

    name = "instances"

    @property
    def schema(self) -> pa.Schema:
        """`HEAD`, the weights, the mask's id, label, and area, and its IoU."""
        return pa.schema(
            [
                *HEAD,
                WEIGHTS,
                pa.field("mask", pa.int64(), nullable=False),  # id of the annotation
                pa.field("label", pa.string()),
                pa.field("area", pa.int64(), nullable=False),  # pixels
                pa.field("iou", pa.float64(), nullable=False),
            ]
        )

    def rows(self, models: Sequence[Model], image: TruthImage) -> list[Row]:
        """Prompt each model with the boxes. Raises ValueError if the image has no masks other than crowds."""
        masks = [mask for mask in image.masks if not mask.crowd]
        if not masks:
            raise ValueError("it has no mask")
        rows: list[Row] = []
        given = None if self.boxes is None else self.boxes.of(image.image_id, image.name)
        boxes = boxes_of([mask.rle for mask in masks]) if given is None else given.boxes
        prompts = given or ImageBoxes(boxes, None, np.full(len(boxes), NO_CATEGORY))
        for weights, (model, found) in enumerate(
            zip(models, _segment(models, image, prompts, self.refine), strict=True)
        ):
            in_order = given is None and not isinstance(model, Predictions)
            for mask, iou in zip(masks, self._overlaps(masks, found, in_order), strict=True):
                place = {"weights": weights, "mask": mask.id, "label": mask.label, "area": mask.area}
                rows.append({**place, "iou": float(iou)})
        return rows

    def _overlaps(self, masks: Sequence[TruthMask], found: Sequence[PredictedResult], in_order: bool) -> Floats:
        rles = [mask.rle for mask in masks]
        if in_order:
            return iou_in_order(rles, [mask.rle for mask in found])
        overlaps = np.zeros(len(masks))
        categories = self.boxes is not None and self.boxes.categories
        of_mask = [_category(mask) if categories else NO_CATEGORY for mask in masks]
        for category in set(of_mask):
            places = [place for place, each in enumerate(of_mask) if each == category]
            among = [mask.rle for mask in found if not categories or mask.category == category]
            overlaps[places] = iou_assigned([rles[place] for place in places], among)
        return overlaps


def _segment(
    models: Sequence[Model], image: TruthImage, prompts: ImageBoxes, refine: bool
) -> list[Sequence[PredictedResult]]:
    """Predict each model's masks for the boxes, with the boxes' scores and categories, or return its `Predictions`."""
    scores = [None] * len(prompts.boxes) if prompts.scores is None else prompts.scores.tolist()
    found: list[Sequence[PredictedResult]] = []
    if not len(prompts.boxes):  # without boxes, no model needs an embedding
        return [each.results_for(image) if isinstance(each, Predictions) else [] for each in models]
    for model in with_embeddings(models, image.pixels):
        if isinstance(model, Predictions):
            found.append(model.results_for(image))
            continue
        masks = segment_boxes(*model, prompts.boxes, refine)
        rows = zip(masks, scores, prompts.categories.tolist(), strict=True)
        found.append([PredictedResult(mask.rle, score, category) for mask, score, category in rows])
    return found


def _category(mask: TruthMask) -> int:
    return NO_CATEGORY if mask.category is None else mask.category


SHOWN = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "AP small",
    "ap_medium": "AP medium",
    "ap_large": "AP large",
    "ap_r": "AP rare",
    "ap_c": "AP common",
    "ap_f": "AP frequent",
    f"ar_{MOST}": f"AR@{MOST}",
    f"ar_{MOST_LVIS}": f"AR@{MOST_LVIS}",
}
"""Scores to show if the boxes have scores, with their names. Scores by frequency exist only for LVIS."""

OVERLAPS = {"masks": "mIoU over masks", "images": "mIoU over images"}
"""Scores to show if the boxes have no scores, with their names."""

Estimate = tuple[float | None, Interval | None]
"""Score or difference of scores, with its interval."""


@dataclass(frozen=True)
class InstancesSettings:
    """Settings for predicting masks from `boxes`; None stands for the boxes of the truth.

    `prompted` is False if there are no weights to prompt.
    """

    refine: bool
    boxes: BoxesByImage | None
    prompted: bool = True

    def to_dict(self) -> dict[str, Any]:
        if self.boxes is None:
            return {"refine": self.refine, "boxes": "truth"}
        return {"refine": self.refine, "boxes": dict(self.boxes.facts)}

    def line(self) -> str:
        """Describe the prompts in words."""
        boxes = "the boxes of the ground truth masks"
        if self.boxes is not None:
            facts = self.boxes.facts
            if not self.prompted:
                return f"{facts['boxes']:,} predicted masks"
            boxes = f"{facts['boxes']:,} boxes"
            unknown = facts.get("categories_without_a_mask", [])
            if unknown:
                boxes += f" ({counted(len(unknown), 'category id')} of them without a ground truth mask)"
        line = f"prompts: {boxes}, the mask of the highest predicted IoU"
        if self.refine:
            line += ", then the box with the mask logits"
        return line


@dataclass(frozen=True)
class InstancesResult:
    """Scores and intervals of each set of weights, and the differences between two sets.

    `shown` names the scores to show: mIoU over masks and over images, or the scores in `SHOWN`. `what` describes them.
    `categories` contains each category's id, its number of true masks, and the AP of each set of weights.
    """

    subject: EvaluationSubject
    settings: InstancesSettings
    what: str
    shown: Mapping[str, str]
    scores: tuple[Mapping[str, Estimate], ...]
    differences: Mapping[str, Estimate] | None
    holm: Mapping[str, float | None]  # p of a test that swaps the models by image, corrected over `shown`
    categories: Sequence[tuple[int, int, Sequence[float | None]]] | None = None

    def to_dict(self) -> dict[str, Any]:
        answer: dict[str, Any] = {
            **self.subject.to_dict(),
            "settings": self.settings.to_dict(),
            "means" if "masks" in self.shown else "figures": list(map(_named, self.scores)),
        }
        if self.categories is not None:
            categories: list[dict[str, float | None]] = [{} for _ in self.scores]
            answer["categories"], answer["true_masks"] = categories, {}
            for id, masks, aps in self.categories:
                answer["true_masks"][str(id)] = masks
                for own, ap in zip(categories, aps, strict=True):
                    own[str(id)] = ap
        if self.differences is not None:
            answer["differences"] = _named(self.differences)
            for name, each in answer["differences"].items():
                each |= {"holm": self.holm.get(name), "verdict": self._verdict(name)}
        return answer

    def lines(self) -> list[str]:
        described = f"{self.settings.line()}; {self.what}, in percent, {basis(self.subject.images)}"
        return [self.subject.head(), described, *text_lines([self._scores()]), *self.subject.closing_lines()]

    def page(self) -> FiguresPage:
        """Return the contents of the page."""
        tables = [self._scores()]
        if self.categories is not None:
            compared = []
            for id, masks, aps in self.categories:
                known = [each for each in aps if each is not None]
                gain = None
                if len(known) == 2:
                    gain = known[1] - known[0]
                compared.append(ComparedScore(f"category {id} ({masks:,})", list(map(cell, aps)), gain))
            tables.append(self._table("AP by category", compared))
        first = next(iter(self.shown))
        note = f"In parentheses: the number of ground truth masks or images; {basis(self.subject.images)}"
        if self.categories is not None:
            note += ", except by category"
        return FiguresPage(
            "Weights evaluated by boxes",
            f"{self.what}, in percent, of masks made from boxes.",
            f"{note}.",
            "IoU",
            [(name, cell(each[first][0])[0]) for name, each in zip(self.subject.names, self.scores, strict=True)],
            tables,
            [("Prompts", self.settings.line())],
        )

    def _scores(self) -> Table:
        compared = []
        for name, text in self.shown.items():
            cells = [cell(*each[name]) for each in self.scores]
            change, interval = self._change(name)
            compared.append(ComparedScore(text, cells, change, interval, self.holm.get(name), self._verdict(name)))
        return self._table("Score", compared)

    def _change(self, name: str) -> Estimate:
        if self.differences is None:
            return None, None
        return self.differences[name]

    def _verdict(self, name: str) -> str:
        return verdict(*self._change(name), self.holm.get(name), self.subject.images)

    def _table(self, first: str, scores: Sequence[ComparedScore]) -> Table:
        if self.differences is not None:
            return comparison(self.subject, first, scores)
        return Table(self.subject.size, first, self.subject.names, [each[:2] for each in scores])


class MatchesByCategory:
    """Matches of a run by image, for each set of weights and category. They take a few bytes per box."""

    def __init__(self, tables: Iterable[Sequence[Row]], weights: int) -> None:
        """Collect the rows of `PrecisionMeasure`."""
        self.by_category: list[dict[int, list[tuple[str, ImageMatches]]]] = [{} for _ in range(weights)]
        for rows in tables:
            for row in rows:
                home = self.by_category[row["weights"]].setdefault(row["category"], [])
                home.append((row["image_id"], matches_of(row)))

    @property
    def masks(self) -> int:
        """Number of true masks, not counting crowds."""
        return sum(int(matches.truth[0]) for images in self.by_category[0].values() for _, matches in images)

    def check(self, boxes: BoxesByImage, models: Sequence[EvaluatedWeights] = ()) -> None:
        """Raise `UsageError` if no box belongs to an evaluated image, or if no box's category has true masks.

        Each model must also have a prediction in an evaluated image.
        """
        found = [False] * len(self.by_category)
        both = False
        for weights, categories in enumerate(self.by_category):
            for images in categories.values():
                predicted = any(len(matches.scores) for _, matches in images)
                found[weights] = found[weights] or predicted
                if weights == 0 and predicted:
                    both = both or any(matches.truth[0] for _, matches in images)
        check_matched(models, found)
        if not found[0]:
            raise no_image_error(boxes)
        if not both:
            raise no_category_error(boxes)

    def answer(
        self,
        subject: EvaluationSubject,
        settings: InstancesSettings,
        categories: bool,
        frequencies: Mapping[int, str] | None = None,
    ) -> InstancesResult:
        """Compute COCO's scores, with intervals and tests over the units. With `frequencies`, compute LVIS's scores."""
        precision = AveragePrecision(self.by_category, frequencies)
        names, units, weights, masks = precision.names, precision.units, len(self.by_category), precision.masks
        plain, exchanged = np.eye(units, 2 * units), np.eye(units, 2 * units, k=units)
        found = list(zip(*figure_intervals(plain, precision.figures, [SEED], weights * len(names)), strict=True))
        scores = [dict(zip(names, found[start:], strict=False)) for start in range(0, len(found), len(names))]
        ps = dict[str, float | None]()
        if weights == 2:
            last = swap_p(plain, exchanged, lambda chosen: precision.figures(chosen)[:, -len(names) :], [SEED, 1])
            ps = dict(zip(names, last, strict=True))
        shown = {name: f"{text} ({masks[name]:,})" for name, text in SHOWN.items() if name in masks}
        by_category = list(precision.by_category())
        known = sum(each > 0 for _, each, _ in by_category)  # categories without true masks have no AP
        what = "COCO's AP"
        if frequencies is not None:
            what = "LVIS's federated AP"
        answer = InstancesResult(
            subject,
            settings,
            f"{what} without categories",
            shown,
            tuple(scores[:weights]),
            None,
            dict(zip(shown, holm(list(map(ps.get, shown))), strict=True)),
        )
        if weights == 2:
            answer = replace(answer, differences=scores[2])
        if categories:
            answer = replace(answer, what=f"{what} over {known} categories", categories=by_category)
        return answer


def gather_overlaps(tables: Iterable[Sequence[Row]], weights: int, boxes: BoxesByImage | None = None) -> Floats:
    """Sum the rows of `OverlapMeasure` by image: the number of masks, and the IoUs for each set of weights, (I, 1 + W).

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


def overlap_result(subject: EvaluationSubject, settings: InstancesSettings, sums: Floats) -> InstancesResult:
    """Compute the result from the output of `gather_overlaps`. Each resample draws the same images for all weights."""
    weights = sums.shape[1] - 1
    of_images = np.concatenate([np.ones((len(sums), 1)), sums[:, 1:] / sums[:, :1]], axis=1)

    def means(drawn: Floats) -> Floats:
        found = drawn[:, 1:] / drawn[:, :1]
        if weights == 2:
            found = np.concatenate([found, found[:, 1:] - found[:, :1]], axis=1)
        return found

    shown = {}
    for (name, text), count in zip(OVERLAPS.items(), (subject.masks or 0, len(sums)), strict=True):
        shown[name] = f"{text} ({count:,})"
    ways = [figure_intervals(each, means, [SEED, place], weights) for place, each in enumerate((sums, of_images))]
    scores = [
        {name: (values[place], intervals[place]) for name, (values, intervals) in zip(shown, ways, strict=True)}
        for place in range(3 if weights == 2 else 1)
    ]
    what = "mIoU (AP needs scores)"
    if weights < 2:
        return InstancesResult(subject, settings, what, shown, tuple(scores), None, {})
    changes = np.stack([each[:, 2] - each[:, 1] for each in (sums, of_images)], axis=1)
    corrected = dict(zip(shown, holm(sign_flip_p(changes, [SEED, 2])), strict=True))
    return InstancesResult(subject, settings, what, shown, tuple(scores[:2]), scores[2], corrected)


def _named(scores: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: {"value": value, "interval": interval} for name, (value, interval) in scores.items()}


def evaluate_instances(
    options: EvaluateOptions, boxes_file: str | None, refine: bool, storage: Storage
) -> InstancesResult:
    """Predict a mask for each box, compare the masks with the truth, and write the results to the output, if any.

    Boxes with scores result in an AP, and boxes without scores in an mIoU. Without a file, the truth's own boxes, which
    have no scores, are the prompts. Raises `UsageError` if an option is invalid, and `NothingMeasuredError` if no image
    can be evaluated.
    """
    truths = open_truths(options.truth, storage)
    boxes = None
    if boxes_file is not None:
        boxes = boxes_for(truths, Location(storage, boxes_file))
    scored = (boxes is not None and boxes.scored) or (boxes is None and not options.model.weights)
    required = []
    if scored:
        required.append("score")
    if boxes is not None and boxes.categories:
        required.append("category_id")
    predictions = read_predictions(options.model.predictions, truths, storage, required)
    if boxes is None and scored:
        boxes = checked_boxes(truths, boxes_of_results(predictions))
    if boxes is not None and boxes.scored:  # detections in an image without masks count as wrong
        truths = open_truths(replace(options.truth, empty=True), storage)
    settings = InstancesSettings(refine, boxes, bool(options.model.weights))
    measure: PrecisionMeasure | OverlapMeasure
    if boxes is not None and boxes.scored:
        measure = PrecisionMeasure(boxes, refine, boxes.categories and truths[0].federated)
        names = [name for name in SHOWN if name in score_names(measure.federated)]
    else:
        measure = OverlapMeasure(boxes, refine)
        names = list(OVERLAPS)
    check_fail_if_worse(options.fail_if_worse, options.model, names)
    task = options.model.task(measure, predictions)
    with OutputFolder(options.output, storage, truths, measure.schema) as output:
        session = EvaluationSession(task, truths, options.model.run, output, lambda row: row.get("iou"))
        if isinstance(measure, PrecisionMeasure):
            matches = MatchesByCategory(session.tables(), len(task.weights))
            matches.check(measure.boxes, task.weights)
            frequencies = None
            if measure.federated:
                frequencies = truths[0].frequencies
            subject = session.subject(matches.masks)
            answer = matches.answer(subject, settings, measure.boxes.categories, frequencies)
        else:
            sums = gather_overlaps(session.tables(), len(task.weights), boxes)
            check_matched(task.weights, sums[:, 1:].any(axis=0))
            answer = overlap_result(session.subject(int(sums[:, 0].sum())), settings, sums)
        if options.fail_if_worse is not None:
            change = (answer.differences or {})[options.fail_if_worse]
            answer = replace(answer, subject=answer.subject.with_change(options.fail_if_worse, *change))
        answer.page().put(output, answer.to_dict(), answer.subject, session.lowest)
    return answer


def boxes_for(truths: Sequence[Truth], file: Location) -> BoxesByImage:
    """Read a file of boxes for a truth.

    Raises `UsageError` if there are several truths, or if no category in the file has true masks.
    """
    if len(truths) > 1:
        raise UsageError(f"--boxes takes only one dataset or file, but {len(truths)} were given")
    return checked_boxes(truths, read_boxes(file, truths[0].kind == DATASET))


def checked_boxes(truths: Sequence[Truth], boxes: BoxesByImage) -> BoxesByImage:
    """Drop the boxes' categories if the truth has none. Raises `UsageError` if no box's category has true masks."""
    categories = truths[0].categories
    if not (boxes.categories and categories):  # some COCO files don't contain categories of masks
        return boxes.without_categories()
    if not boxes.of_categories & categories:
        raise no_category_error(boxes)
    unknown = sorted(boxes.of_categories - categories)
    if unknown:
        boxes = replace(boxes, facts={**boxes.facts, "categories_without_a_mask": unknown})
    return boxes
