"""`segmint evaluate proposals`: from truths and weights to the answer."""

from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.operators.evaluate.proposals import LIMITS
from segmint.operators.rows import Row
from segmint.pipeline.engine.evaluate.output import OutputFolder
from segmint.pipeline.engine.evaluate.proposals.measure import ALL, ProposalsMeasure
from segmint.pipeline.engine.evaluate.proposals.result import ProposalsResult, gather, proposals_result
from segmint.pipeline.engine.evaluate.session import SEED, EvaluateOptions, EvaluationSession
from segmint.pipeline.engine.evaluate.setup import open_truths


def evaluate_proposals(options: EvaluateOptions, points_per_side: int, storage: Storage) -> ProposalsResult:
    """Propose objects in all images, and count the true masks found; with an output also write the results.

    Raises `UsageError` for wrong options, and `NothingMeasuredError` if no image can be evaluated.
    """
    if points_per_side < 1:
        raise UsageError(f"--points-per-side is {points_per_side}: expected 1 or more")
    truths = open_truths(options.truth, storage)
    frequencies = {number: truth.frequencies for number, truth in enumerate(truths) if truth.frequencies}
    measure = ProposalsMeasure(points_per_side, frequencies)
    task = options.model.task(measure)
    folder = None if options.output is None else Location(storage, options.output)
    with OutputFolder(folder, truths, measure.schema) as output:
        session = EvaluationSession(task, truths, options.model.run, output, _score)
        counts = gather(session.tables(), len(task.weights))
        subject = session.subject(int(counts[ALL].truth[:, 0].sum()))
        answer = proposals_result(subject, points_per_side, counts, SEED)
        if output.wanted:
            output.put(answer.to_dict(), answer.page().render(subject, session.lowest))
    return answer


def _score(row: Row) -> float | None:
    score: float | None = row[f"ar_{LIMITS[-1]}"] if row["kind"] == ALL else None
    return score
