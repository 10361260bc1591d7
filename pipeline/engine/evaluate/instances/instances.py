"""`segmint evaluate instances`: from truths, weights and boxes to the answer."""

from collections.abc import Sequence
from dataclasses import replace

from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.pipeline.engine.evaluate.instances.boxes import BoxesByImage, no_category_error, read_boxes
from segmint.pipeline.engine.evaluate.instances.measure import OverlapMeasure, PrecisionMeasure
from segmint.pipeline.engine.evaluate.instances.result import (
    InstancesSettings,
    MatchesByCategory,
    OverlapResult,
    PrecisionResult,
    gather_overlaps,
    overlap_result,
)
from segmint.pipeline.engine.evaluate.kinds import DATASET
from segmint.pipeline.engine.evaluate.output import OutputFolder
from segmint.pipeline.engine.evaluate.session import SEED, EvaluateOptions, EvaluationSession
from segmint.pipeline.engine.evaluate.setup import open_truths
from segmint.pipeline.engine.evaluate.truth import Truth


def evaluate_instances(
    options: EvaluateOptions, boxes_file: str | None, refine: bool, storage: Storage
) -> PrecisionResult | OverlapResult:
    """Make a mask of each box, and compare with the truth; with an output also write the results.

    Boxes with scores give AP, others, and those of the truth without a file, mIoU. Raises `UsageError` for wrong
    options, and `NothingMeasuredError` if no image can be evaluated.
    """
    truths = open_truths(options.truth, storage)
    boxes = None if boxes_file is None else boxes_for(truths, Location(storage, boxes_file))
    if boxes is not None and boxes.scored:  # what a detector finds in an image without a mask is wrong, and counts
        truths = open_truths(replace(options.truth, empty=True), storage)
    settings = InstancesSettings(refine, boxes)
    measure: PrecisionMeasure | OverlapMeasure
    if boxes is not None and boxes.scored:
        measure = PrecisionMeasure(boxes, refine)
    else:
        measure = OverlapMeasure(boxes, refine)
    task = options.model.task(measure)
    folder = None if options.output is None else Location(storage, options.output)
    with OutputFolder(folder, truths, measure.schema) as output:
        session = EvaluationSession(task, truths, options.model.run, output, lambda row: row.get("iou"))
        answer: PrecisionResult | OverlapResult
        if isinstance(measure, PrecisionMeasure):
            matches = MatchesByCategory(session.tables(), len(task.weights))
            matches.check(measure.boxes)
            answer = matches.answer(session.subject(matches.masks), settings, measure.boxes.categories)
        else:
            sums = gather_overlaps(session.tables(), len(task.weights), boxes)
            answer = overlap_result(session.subject(int(sums[:, 0].sum())), settings, sums, SEED)
        if output.wanted:
            output.put(answer.to_dict(), answer.page().render(answer.subject, session.lowest))
    return answer


def boxes_for(truths: Sequence[Truth], file: Location) -> BoxesByImage:
    """Read the boxes for a truth; raises `UsageError` for several truths, or if no true mask is of their categories."""
    if len(truths) > 1:
        raise UsageError(
            f"--boxes has boxes of the images of one dataset or file, and {len(truths)} were named: expected one"
        )
    boxes = read_boxes(file, truths[0].kind == DATASET)
    categories = truths[0].categories
    if not (boxes.categories and categories):  # only COCO files say which masks are of which category id, and not all
        return boxes.without_categories()
    if not boxes.of_categories & categories:
        raise no_category_error(boxes)
    unknown = sorted(boxes.of_categories - categories)
    return replace(boxes, facts={**boxes.facts, "categories_without_a_mask": unknown}) if unknown else boxes
