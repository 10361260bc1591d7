"""Faults in what becomes of people's answers."""

from tests.support.mutant import Mutant

ROW = "tests/pipeline/corrections/test_merge_row.py"
ASSIGNMENTS = "tests/catalogs/dataset/test_submissions_assignments.py"

ANSWER_MUTANTS = (
    Mutant(
        "what an answer repeated was made by it",
        "operators/shards/submission_fit.py",
        "for mask in reversed(former.masks) if mask.counts not in shown}",
        "for mask in reversed(former.masks)}",
        ROW,
    ),
    Mutant(
        "a mask of the same pixels is the answer's own",
        "operators/shards/submission_fit.py",
        "if _work_columns(row) == _work_columns(mask_columns(own, [*until, former])):",
        "if _work_columns(row) is not None:",
        ROW,
    ),
    Mutant(
        "who says a mask again made it",
        "operators/shards/submission_fit.py",
        "        maker = submission\n",
        "",
        ROW,
    ),
    Mutant(
        "an answer to a mask that is gone fits",
        "operators/shards/submission_fit.py",
        "return done.get(mask.id) == mask.counts",
        "return True",
        ROW,
    ),
    Mutant(
        "what is said again counts as lost",
        "pipeline/corrections/merge.py",
        "lost = _words(earlier) - _words(last)",
        "lost = _words(earlier)",
        ROW,
    ),
    Mutant(
        "the lowest assignment counts after a merge, too",
        "catalogs/dataset/submissions.py",
        "    if before is not None:\n        return before\n",
        "",
        ASSIGNMENTS,
    ),
    Mutant(
        "an answer is merged again",
        "catalogs/dataset/submissions.py",
        'n <= ((merged or {}).get("n") or 0)',
        'n < ((merged or {}).get("n") or 0)',
        "tests/pipeline/corrections/test_merge_run.py",
    ),
    Mutant(
        "people are compared after a merge",
        "catalogs/dataset/submissions.py",
        "for base, submission in last[0].items():",
        "for base, submission in reversed(last[0].items()):",
        ASSIGNMENTS,
    ),
    Mutant(
        "the seconds of an answer that is carried count twice",
        "catalogs/dataset/submissions.py",
        '"seconds": 0.0,',
        '"seconds": submission.seconds,',
        ASSIGNMENTS,
    ),
    Mutant(
        "a mask that somebody timed is untouched",
        "catalogs/dataset/submissions.py",
        "        and mask.seconds == 0\n",
        "",
        ASSIGNMENTS,
    ),
    Mutant(
        "a look at the store undoes a save",
        "pipeline/engine/annotate/queue.py",
        "if now != known.get(assignment) and (",
        "if now is None and (",
        "tests/pipeline/engine/annotate/test_queue_progress_board.py",
    ),
    Mutant(
        "a study keeps what an answer takes away",
        "pipeline/engine/study/score.py",
        "after = [(id, counts) for id, counts in after if id not in fit.gone]",
        "pass",
        "tests/pipeline/quality/test_study_submissions.py",
    ),
    Mutant(
        "the audit takes any seconds",
        "operators/audit/submissions.py",
        "if whole and not (",
        "if not whole and not (",
        "tests/operators/audit/test_submissions.py",
    ),
    Mutant(
        "the audit takes a mask that was taken away",
        "operators/audit/submissions.py",
        "if here.get(former.id) == former.counts:",
        "if former.id not in here:",
        "tests/operators/audit/test_submissions.py",
    ),
)
