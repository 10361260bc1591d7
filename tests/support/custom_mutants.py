"""Faults in custom stages."""

from tests.support.mutant import Mutant

_TESTS = "tests/operators/custom/test_contract_load.py tests/operators/custom/test_stage.py"

CUSTOM_MUTANTS = (
    Mutant(
        "a stage's rows in any order",
        "operators/custom/contract.py",
        'if result["ordinal"] != row["ordinal"]:',
        'if result["ordinal"] < 0:',
        _TESTS,
    ),
    Mutant(
        "a stage sees the original",
        "operators/custom/stage.py",
        'HIDDEN = frozenset({"original", *VERDICT.names})',
        "HIDDEN = frozenset(VERDICT.names)",
        _TESTS,
    ),
    Mutant(
        "a worker with another version of a stage",
        "operators/custom/contract.py",
        "if here != self:",
        "if here.name != self.name:",
        _TESTS,
    ),
    Mutant(
        "a segmenter that didn't ask for it sees the original",
        "operators/custom/stage.py",
        'HIDDEN - {"original"} if with_original else HIDDEN',
        'HIDDEN - {"original"}',
        "tests/operators/segmenter/test_segmenter.py",
    ),
    Mutant(
        "an image of a segmenter has more masks than ids",
        "operators/segmenter/found_masks.py",
        '    check_count(len(columns["masks"]))\n',
        "",
        "tests/operators/segmenter/test_found_masks.py",
    ),
    Mutant(
        "an image has more masks than ids after a stage added some",
        "operators/segmenter/found_masks.py",
        "    check_count(len(masks))\n",
        "",
        "tests/operators/segmenter/test_found_masks.py",
    ),
    Mutant(
        "masks that a stage adds take the place of the others",
        "operators/segmenter/segmenter.py",
        "            return added_columns(earlier, result, self._spec.sha256)\n",
        "            return result\n",
        "tests/operators/segmenter/test_segmenter.py",
    ),
    Mutant(
        "a stage that adds masks keeps artifacts that SAM's masks mustn't be",
        "pipeline/config/config.py",
        "    limits = [iou for iou in (artifact_iou, filters.drop_redaction_artifacts) if iou is not None]\n",
        "    limits = [iou for iou in (None, filters.drop_redaction_artifacts) if iou is not None]\n",
        "tests/pipeline/building/execution/test_stages.py",
    ),
    Mutant(
        "the audit wants scores above SAM's thresholds of masks that a stage added",
        "operators/audit/masks.py",
        "            people |= pc.is_in",
        "            people &= pc.is_in",
        "tests/operators/audit/test_sound_masks.py",
    ),
    Mutant(
        "the masks of thousands of prompts are arrays",
        "operators/segmenter/prompted.py",
        "        encodes = len(prompts) * height * width > PIXELS_AT_ONCE\n",
        "        encodes = False\n",
        "tests/operators/segmenter/test_prompted.py",
    ),
    Mutant(
        "a segmenter isn't tried before a build",
        "pipeline/building/dataset.py",
        "        try_segmenters(config)\n",
        "",
        "tests/end_to_end/test_segmenters.py",
    ),
    Mutant(
        "masks' values of a stage by half",
        "operators/custom/stage.py",
        "if spec.sets_masks and row.mask_values is not None and len(row.mask_values) != count:",
        "if spec.sets_masks and row.mask_values is not None and len(row.mask_values) > count:",
        _TESTS,
    ),
    Mutant(
        "the columns of stages lost in describe",
        "operators/describe.py",
        "return carried(table, described)",
        "return described",
        _TESTS,
    ),
    Mutant(
        "a death of a stage blamed on the segment stage",
        "infra/row_ledger.py",
        "numbers = [self._first + ordinal for ordinal in ordinals]",
        "numbers = list(ordinals)",
        "tests/infra/test_row_ledger.py",
    ),
)
