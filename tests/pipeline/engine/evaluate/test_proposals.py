"""`segmint evaluate proposals`: its average recall is that of COCOeval on files of the same proposals."""

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from segmint.infra.storage.storage import Storage
from segmint.model.automatic.generator import MaskGenerator
from segmint.model.sam.load import load_sam
from segmint.model.sam.predictor import Predictor
from segmint.operators.evaluate.instances import AREAS, LIMITS, RecallCounts, proposal_settings, propose_objects
from segmint.pipeline.engine.evaluate.proposals import evaluate_proposals, gather, proposals_result
from segmint.pipeline.engine.evaluate.result import EvaluatedWeights, EvaluationSubject, Predictions, p_value
from segmint.pipeline.engine.evaluate.run import EvaluateOptions, ModelOptions, TruthOptions
from tests.support.truth_files import results_of, write_truth_files


def test_average_recall_is_coco_evals_on_files(
    tmp_path: Path, coffee: np.ndarray, mobile_sam_path: Path, one_thread: None, embedded_once: None
) -> None:
    files = write_truth_files(tmp_path / "truth", coffee, 2)
    truth = TruthOptions((str(files.coco),), (str(files.images),))
    options = EvaluateOptions(truth, ModelOptions(device="cpu"), str(tmp_path / "out"))
    answer = evaluate_proposals(options, 3, Storage())
    assert (answer.subject.images, answer.subject.masks) == (1, 3)  # no mask, nothing to find

    generator = MaskGenerator(Predictor(load_sam(mobile_sam_path)), proposal_settings(3))
    found = propose_objects(generator, files.pixels[1])
    assert answer.proposals == (len(found),)
    (tmp_path / "results.json").write_text(json.dumps([results_of(1, 3, mask.rle, mask.score) for mask in found]))
    for kind, categories in (("all", [3, 5]), ("rare", [3]), ("frequent", [5])):
        recall = recall_of_files(files.coco, tmp_path / "results.json", categories)
        ours = {(each.limit, each.area): each.value for each in answer.recalls[0] if each.kind == kind}
        expected = {}
        for (limit, area), thresholds in np.ndenumerate(recall):
            known = thresholds[thresholds > -1]
            expected[LIMITS[limit], AREAS[area]] = float(np.mean(known)) if len(known) else None
        assert ours == expected
    assert {each.value for each in answer.recalls[0] if each.kind == "common"} == {None}
    assert ours[1000, "large"] is None
    assert ours[1000, "medium"] > 0.8

    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == json.loads(json.dumps(answer.to_dict()))
    rows = pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    assert [row["kind"] for row in rows] == ["all", "rare", "common", "frequent"]
    assert rows[0]["ar_1000"] == next(each.value for each in answer.recalls[0] if each.limit == 1000)
    assert any(line.startswith("  AR@1000, rare") for line in answer.lines())


def recall_of_files(truth: Path, results: Path, categories: list[int]) -> np.ndarray:
    """Recall by COCOeval, against masks of these categories alone: (limits, areas), each (thresholds,)."""
    with contextlib.redirect_stdout(io.StringIO()):
        document = json.loads(truth.read_text())
        document["annotations"] = [each for each in document["annotations"] if each["category_id"] in categories]
        chosen = results.with_name("chosen.json")
        chosen.write_text(json.dumps(document))
        read = COCO(chosen)
        evaluation = COCOeval(read, read.loadRes(str(results)), iouType="segm")
        evaluation.params.useCats = 0
        evaluation.params.maxDets = list(LIMITS)
        evaluation.evaluate()
        evaluation.accumulate()
    recall = evaluation.eval["recall"][:, 0]
    table = np.empty((len(LIMITS), len(AREAS)), object)
    for limit, area in np.ndindex(*table.shape):
        table[limit, area] = recall[:, area, limit]
    return table


def test_two_weights_are_compared_over_the_same_resampled_images() -> None:
    generator = np.random.default_rng(0)
    rows, totals = [], [[], []]
    for image in range(40):
        truth = np.array([6, 2, 3, 1]) + generator.integers(0, 3)
        for weights, share in enumerate((0.5, 0.7)):
            found = generator.binomial(truth[None, :, None], share, (3, 4, 10))
            totals[weights].append(RecallCounts(found, truth))
            row = {"weights": weights, "kind": "all", "proposals": 7 + weights, "true_masks": truth.tolist()}
            rows.append([{**row, "image_id": str(image), "found": found.reshape(-1).tolist()}])
    subject = EvaluationSubject(
        "proposals", (), (EvaluatedWeights("a", ""), EvaluatedWeights("b", "")), "cpu, fp32", 40, 9, (), 0.0
    )
    answer = proposals_result(
        subject, 64, gather([[*one, *two] for one, two in zip(rows[::2], rows[1::2], strict=True)], 2)
    )
    assert answer.proposals == (7.0, 8.0)
    for weights, each in enumerate(totals):
        expected = sum(each[1:], start=each[0]).average_recall()
        values = [recall.value for recall in answer.recalls[weights]]
        assert values == pytest.approx([value for areas in expected for value in areas])
    for first, second, difference in zip(*answer.recalls, answer.differences, strict=True):
        assert difference.value == pytest.approx(second.value - first.value)
        assert 0.05 < difference.interval[0] < difference.value < difference.interval[1] < 0.35
        assert first.interval[0] < first.value < first.interval[1]
    rows = [line for line in answer.lines() if line.startswith("  AR@")]
    assert [line.split()[-1] for line in rows] == ["better"] * 12
    assert len(set(map(len, rows))) == 1, "the columns are aligned"
    assert {each["verdict"] for each in answer.to_dict()["differences"]} == {"better"}
    (table,) = answer.page().tables
    assert table.heads == ["a", "b", "Difference", "Corrected p", "Verdict"]
    name, cells = table.rows[0]
    first, second, difference = answer.recalls[0][0], answer.recalls[1][0], answer.differences[0]
    assert name == f"AR@10, all ({answer.truth['all']['all']:,})"
    assert [value for value, _ in cells] == [
        f"{100 * first.value:.1f}",
        f"{100 * second.value:.1f}",
        f"{100 * difference.value:+.1f}",
        p_value(difference.holm),
        "better",
    ]
    assert answer.page().render(subject, [[], []]).count('<td class="num state good">better</td>') == 12

    few = replace(answer, differences=tuple(replace(each, verdict="too few images") for each in answer.differences))
    rows = [line for line in few.lines() if line.startswith("  AR@")]
    assert [line.endswith("  too few images") for line in rows] == [True] * 12

    file = Predictions("vitdet.json", "")
    for second in (EvaluatedWeights("b", ""), file):
        other = replace(answer, subject=replace(subject, weights=(file, second)))
        assert ("from a grid of 64 x 64 points" in other.lines()[1]) is (second is not file)
        assert ("Grid" in dict(other.page().made)) is (second is not file)
