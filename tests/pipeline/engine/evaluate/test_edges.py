"""`segmint evaluate edges`: from label maps of one annotator or more to the benchmark's figures."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from segmint.infra.errors import UsageError
from segmint.infra.storage.storage import Storage
from segmint.operators.evaluate.edges import EdgeCounts, edge_scores, label_boundaries, thresholds
from segmint.pipeline.engine.evaluate.edges import (
    COUNTS,
    EdgesMeasure,
    counts_of,
    edges_result,
    evaluate_edges,
    gather,
    open_annotator,
)
from segmint.pipeline.engine.evaluate.result import EvaluatedWeights, EvaluationSubject, NothingMeasuredError
from segmint.pipeline.engine.evaluate.run import EvaluateOptions, ModelOptions, TruthOptions
from tests.support.locations import location_of
from tests.support.truth_files import TruthFiles, write_truth_files

MEASURE = EdgesMeasure(points_per_side=4, cuts=19)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, coffee: np.ndarray) -> TruthFiles:
    return write_truth_files(tmp_path_factory.mktemp("truth") / "scene", coffee, 1)


def options(files: TruthFiles, target: Path, output: Path | None = None) -> EvaluateOptions:
    truth = TruthOptions((str(target),), (str(files.images),))
    return EvaluateOptions(truth, ModelOptions(device="cpu"), None if output is None else str(output))


@pytest.mark.usefixtures("weights")
def test_drawn_shapes_are_found_and_each_annotator_counts(
    files: TruthFiles, tmp_path: Path, one_thread: None, embedded_once: None
) -> None:
    second = tmp_path / "second"
    second.mkdir()
    labels = np.asarray(Image.open(files.maps / "1.png"))
    Image.fromarray(np.where(labels == 2, 9, 0).astype(np.uint8)).save(second / "1.png")  # drew one of three shapes
    own = options(files, files.maps, tmp_path / "out")
    own = replace(own, truth=replace(own.truth, ignore=(3,)))  # the small disk
    answer = evaluate_edges(own, MEASURE, [str(second)], Storage())
    figures = {figure.name: figure.value for figure in answer.figures[0]}
    assert figures["ods"] > 0.7
    assert figures["r50"] > 0.6
    assert figures["ods"] == answer.scores[0].ods
    (row,) = pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    assert (row["image"], row["annotators"]) == ("1.png", 2)
    both = counts_of(row)
    drawn = [np.where(labels == 3, 0, labels), labels == 2]
    assert set(both.true) == {sum(label_boundaries(each.astype(np.int64)).sum() for each in drawn)}
    assert edge_scores([both], thresholds(19)).ods == figures["ods"]
    # What the second annotator did not draw is right by the first, and what both drew is recalled twice.
    assert (both.found_matched < both.true_matched).all()
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == json.loads(json.dumps(answer.to_dict()))
    assert answer.lines()[0] == f"edges: 1 image of {files.maps}"


@pytest.mark.usefixtures("weights")
def test_a_map_of_another_size_costs_its_image_and_masks_are_no_truth(files: TruthFiles, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="edges are measured on label maps"):
        evaluate_edges(options(files, files.coco), MEASURE, [], Storage())
    with pytest.raises(UsageError, match="contains no label maps"):
        evaluate_edges(options(files, files.maps), MEASURE, [str(tmp_path)], Storage())
    for wrong in (EdgesMeasure(points_per_side=0), EdgesMeasure(cuts=0), EdgesMeasure(tolerance=0.0)):
        with pytest.raises(UsageError, match="expected"):
            evaluate_edges(options(files, files.maps), wrong, [], Storage())
    small = tmp_path / "small"
    small.mkdir()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(small / "1.png")
    with pytest.raises(NothingMeasuredError, match="is 9 x 9 pixels, but the image is 128 x 96"):
        evaluate_edges(options(files, files.maps), MEASURE, [str(small)], Storage())


def test_an_annotators_map_contains_numbers_and_an_edge_map_gray_values(tmp_path: Path) -> None:
    edges = np.zeros((8, 9), bool)
    edges[2:5, 3:6] = True
    Image.fromarray(edges).save(tmp_path / "thin.png")
    soft = np.tile([0, 60, 120, 180, 240], (4, 1)).astype(np.uint8)
    Image.fromarray(soft).save(tmp_path / "soft.png")
    annotator = open_annotator(location_of(tmp_path))
    np.testing.assert_array_equal(annotator.labels("thin", (8, 9)), edges)
    np.testing.assert_array_equal(annotator.labels("thin", (8, 9), is_edge_map=True), edges * 255)
    np.testing.assert_array_equal(annotator.labels("soft", (4, 5), is_edge_map=True), soft)
    with pytest.raises(ValueError, match=r"soft\.png: its edges are soft"):
        annotator.labels("soft", (4, 5))


def test_two_weights_are_compared_over_the_same_resampled_images() -> None:
    generator = np.random.default_rng(0)
    cuts = thresholds(5)
    rows: list[list[dict]] = []
    by_weights: list[list[EdgeCounts]] = [[], []]
    for _ in range(30):
        pair = []
        for weights, share in enumerate((0.5, 0.8)):
            found = np.array([400, 300, 200, 100, 50])
            matched = generator.binomial(found, share * np.array([0.4, 0.6, 0.8, 0.9, 1]))
            counts = EdgeCounts(matched, found, matched, np.full(5, 300))
            by_weights[weights].append(counts)
            lists = {name: getattr(counts, name).tolist() for name in COUNTS}
            pair.append({"weights": weights, **lists})
        rows.append(pair)
    subject = EvaluationSubject(
        "edges", (), (EvaluatedWeights("a", ""), EvaluatedWeights("b", "")), "cpu, fp32", 30, None, (), 0.0
    )
    answer = edges_result(subject, EdgesMeasure(cuts=5), gather(rows, 2))
    for scores, images in zip(answer.scores, by_weights, strict=True):
        expected = edge_scores(images, cuts)
        assert (scores.ods, scores.ois, scores.ap) == (expected.ods, expected.ois, expected.ap)
    first, second, difference = (
        {figure.name: figure for figure in each} for each in (*answer.figures, answer.differences)
    )
    for name in ("ods", "ois"):
        assert difference[name].value == pytest.approx(second[name].value - first[name].value)
        assert 0.05 < difference[name].interval[0] < difference[name].value < difference[name].interval[1]
    (table,) = answer.page().tables
    assert table.heads == ["a", "b", "Difference", "Corrected p", "Verdict"]
    assert [(name, cells[-1][0]) for name, cells in table.rows[:2]] == [("ODS", "better"), ("OIS", "better")]
    assert [line.split()[-1] for line in answer.lines() if line.startswith(("  ODS", "  OIS"))] == ["better", "better"]
    told = answer.to_dict()["differences"]["ods"]
    assert (told["verdict"], told["holm"]) == ("better", difference["ods"].holm)
