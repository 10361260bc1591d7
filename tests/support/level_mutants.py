"""Faults in the levels of masks: their outputs and containers."""

from tests.support.mutant import Mutant

LEVEL_MUTANTS = (
    Mutant(
        "of masks of equal area the later one is the larger",
        "operators/redactions.py",
        "np.lexsort((-np.arange(len(areas)), areas))",
        "np.lexsort((np.arange(len(areas)), areas))",
        "tests/operators/test_redactions_containment.py",
    ),
    Mutant(
        "95 percent of a mask are too little for its container",
        "operators/redactions.py",
        "contains = (shares >= CONTAINED_SHARE)",
        "contains = (shares > CONTAINED_SHARE)",
        "tests/operators/test_redactions_containment.py",
    ),
    Mutant(
        "the largest container instead of the smallest",
        "operators/redactions.py",
        "outer[contains[row].argmax()]",
        "outer[np.flatnonzero(contains[row])[-1]]",
        "tests/operators/test_redactions_containment.py",
    ),
    Mutant(
        "containers of a merged image stay",
        "pipeline/corrections/import_merge.py",
        '{**mask, "container": container}',
        "{**mask}",
        "tests/pipeline/corrections/test_merge_row.py",
    ),
    Mutant(
        "outputs of another prompt",
        "model/automatic/proposals.py",
        "        outputs[source],\n",
        "        outputs[: len(source)],\n",
        "tests/model/automatic/test_proposals.py",
    ),
    Mutant(
        "levels are not in the JSON",
        "operators/shards/put.py",
        "if values.count(None) < len(values):",
        "if False:",
        "tests/operators/shards/test_put_files.py",
    ),
    Mutant(
        "a container may be smaller",
        "operators/audit/submissions.py",
        "(images[place] == images) & larger",
        "(images[place] == images)",
        "tests/operators/audit/test_submissions_origins.py",
    ),
)
