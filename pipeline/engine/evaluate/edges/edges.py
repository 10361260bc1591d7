"""`segmint evaluate edges`: from label maps and weights to the answer."""

from collections.abc import Sequence
from dataclasses import replace

from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.pipeline.engine.evaluate.edges.measure import EdgesMeasure, open_annotator
from segmint.pipeline.engine.evaluate.edges.result import EdgesResult, edges_result, gather
from segmint.pipeline.engine.evaluate.output import OutputFolder
from segmint.pipeline.engine.evaluate.session import SEED, EvaluateOptions, EvaluationSession
from segmint.pipeline.engine.evaluate.setup import open_truths


def evaluate_edges(
    options: EvaluateOptions, measure: EdgesMeasure, annotators: Sequence[str], storage: Storage
) -> EdgesResult:
    """Find edges in all images, and match them with boundaries of label maps; with an output also write the results.

    `annotators` are folders of further label maps of the same images. Raises `UsageError` for wrong options, and
    `NothingMeasuredError` if no image can be evaluated.
    """
    _check(measure)
    truths = open_truths(options.truth, storage)
    measure = replace(measure, annotators=tuple(open_annotator(Location(storage, each)) for each in annotators))
    task = options.model.task(measure)
    folder = None if options.output is None else Location(storage, options.output)
    with OutputFolder(folder, truths, measure.schema) as output:
        session = EvaluationSession(task, truths, options.model.run, output, lambda row: float(row["f"]))
        counts = gather(session.tables(), len(task.weights))
        answer = edges_result(session.subject(None), measure, counts, SEED)
        if output.wanted:
            output.put(answer.to_dict(), answer.page().render(answer.subject, session.lowest))
    return answer


def _check(measure: EdgesMeasure) -> None:
    for name, value in (("--points-per-side", measure.points_per_side), ("--thresholds", measure.cuts)):
        if value < 1:
            raise UsageError(f"{name} is {value}: expected 1 or more")
    if not 0 < measure.tolerance <= 1:
        raise UsageError(f"--tolerance is {measure.tolerance:g}: expected a share of the diagonal, over 0 and up to 1")
