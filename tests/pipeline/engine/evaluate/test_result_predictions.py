"""Predictions of other models in place of weights: the same figures as pycocotools', and files that can't be used."""

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from segmint.infra.errors import UsageError
from segmint.infra.storage.storage import Storage
from segmint.operators.evaluate.settings import PointsSettings
from segmint.pipeline.engine.evaluate.edges import EdgesMeasure, evaluate_edges
from segmint.pipeline.engine.evaluate.instances import evaluate_instances
from segmint.pipeline.engine.evaluate.page import Table, markdown
from segmint.pipeline.engine.evaluate.points import evaluate_points
from segmint.pipeline.engine.evaluate.proposals import evaluate_proposals
from segmint.pipeline.engine.evaluate.result import p_value, verdict
from segmint.pipeline.engine.evaluate.run import EvaluateOptions, ModelOptions, TruthOptions
from tests.support.truth_files import TruthFiles, results_of, write_truth_files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, coffee: np.ndarray) -> TruthFiles:
    return write_truth_files(tmp_path_factory.mktemp("truth") / "scene", coffee, 13)


def truths(files: TruthFiles) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(files.coco.read_text())["annotations"]
    return found


def grown(annotation: dict[str, Any], pixels: int) -> dict[str, Any]:
    """The mask of an annotation with so many pixels more on each side, or less."""
    mask = coco.decode({**annotation["segmentation"], "counts": annotation["segmentation"]["counts"].encode()})
    kernel = np.ones((3, 3), np.uint8)
    changed = (
        cv2.dilate(mask, kernel, iterations=pixels) if pixels >= 0 else cv2.erode(mask, kernel, iterations=-pixels)
    )
    return coco.encode(np.asfortranarray(changed))


def detections(files: TruthFiles, path: Path, most: int = 4) -> str:
    """Write a grown mask for most annotations, of which some have another category."""
    entries = [
        results_of(
            each["image_id"],
            3 if each["id"] % 7 == 0 else each["category_id"],
            grown(each, each["id"] % most),
            1 / (1 + each["id"] % 5),
        )
        for each in truths(files)
        if each["id"] % 9
    ]
    path.write_text(json.dumps(entries))
    return str(path)


def options(files: TruthFiles, *predictions: str, output: Path | None = None) -> EvaluateOptions:
    model = ModelOptions((), predictions, device="cpu")
    return EvaluateOptions(TruthOptions((str(files.coco),), (str(files.images),)), model, output and str(output))


def coco_stats(files: TruthFiles, results: str, categories: bool, limits: tuple[int, ...]) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(files.coco)
        evaluation = COCOeval(truth, truth.loadRes(results), iouType="segm")
        evaluation.params.useCats = int(categories)
        evaluation.params.maxDets = list(limits)
        evaluation.evaluate()
        evaluation.accumulate()
        if categories:
            evaluation.summarize()
    return evaluation


@pytest.mark.usefixtures("processes")
def test_ap_of_predicted_masks_is_coco_evals(files: TruthFiles, tmp_path: Path) -> None:
    one, other = detections(files, tmp_path / "one.json"), detections(files, tmp_path / "other.json", 2)
    answer = evaluate_instances(options(files, one, other, output=tmp_path / "out"), None, True, Storage())
    assert answer.lines()[-1] == f"written: open {tmp_path}/out/index.html"
    for name, scores in zip((one, other), answer.scores, strict=True):
        expected = coco_stats(files, name, True, (1, 10, 100)).stats
        found = [value for value, _ in scores.values()]
        assert found == pytest.approx([None if value < 0 else value for value in expected], abs=1e-12)
    (first, _), (second, _) = (each["ap"] for each in answer.scores)
    assert 0.1 < first < second < 0.95
    lines = answer.lines()
    assert lines[0].endswith("; one.json and other.json: predictions from a file")
    assert "predicted masks; COCO's AP over 2 categories, in percent, with 95% intervals by image" in lines[1]
    assert lines[3].split("  ")[0] == answer.page().tables[0].title
    assert any(line.startswith("Differences are other.json minus one.json.") for line in lines)
    assert answer.differences is not None
    change, interval = answer.differences["ap"]
    assert change == pytest.approx(second - first, abs=1e-12)
    assert interval is not None
    assert 0 < interval[0] < change < interval[1]
    assert answer.holm["ap"] is not None
    assert answer.holm["ap"] < 0.05
    assert answer.holm["ap_large"] is None  # nothing is large
    scores, by_category = answer.page().tables
    assert scores.heads == ["one.json", "other.json", "Difference", "Corrected p", "Verdict"]
    name, cells = scores.rows[0]
    assert name == f"AP ({answer.subject.masks})"
    assert [cells[0][0], cells[2], cells[3][0], cells[4][0]] == [
        f"{100 * first:.1f}",
        (f"{100 * change:+.1f}", f"{100 * interval[0]:+.1f} to {100 * interval[1]:+.1f}"),
        p_value(answer.holm["ap"]),
        "better",
    ]
    assert by_category.heads == ["one.json", "other.json", "Difference"]  # nothing is tested
    assert "verdict" in by_category.note


@pytest.mark.usefixtures("processes")
def test_recall_of_predicted_proposals_is_coco_evals(files: TruthFiles, tmp_path: Path) -> None:
    one, other = detections(files, tmp_path / "one.json"), detections(files, tmp_path / "other.json", 2)
    answer = evaluate_proposals(options(files, one, other, output=tmp_path / "out"), 64, Storage())
    assert answer.lines()[-1] == f"written: open {tmp_path}/out/index.html"
    for name, recalls in zip((one, other), answer.recalls, strict=True):
        recall = coco_stats(files, name, False, (10, 100, 1000)).eval["recall"]  # (thresholds, 1, areas, limits)
        for each in recalls:
            if each.kind == "all":
                place = ("all", "small", "medium", "large").index(each.area), (10, 100, 1000).index(each.limit)
                expected = recall[:, 0, place[0], place[1]].mean()
                assert each.value == (None if expected < 0 else pytest.approx(expected, abs=1e-9))
    difference = next(each for each in answer.differences if (each.kind, each.limit, each.area) == ("all", 10, "all"))
    assert difference.value is not None
    assert difference.value > 0.1
    assert difference.interval is not None
    assert difference.interval[0] > 0
    assert difference.p is not None
    assert difference.holm is not None
    assert difference.p <= 0.01
    assert difference.p <= difference.holm < 0.2
    assert answer.lines()[3].split()[-3:] == ["Corrected", "p", "Verdict"]
    tables = (tmp_path / "out/tables.md").read_text()
    assert tables.startswith(answer.lines()[0] + "\n\nother.json compared with one.json, ")
    assert "| Average recall | one.json | other.json | Difference | Corrected p | Verdict |\n| --- | --: |" in tables
    low, high = difference.interval
    change = f"{100 * difference.value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
    word = verdict(difference.value, difference.interval, difference.holm, answer.subject.images)
    assert f" | {change} | {p_value(difference.holm)} | {word} |\n" in tables
    assert "| AR@10, large (0) | - | - | - | p unknown | not tested |" in tables


@pytest.mark.usefixtures("processes")
def test_markdown_has_the_cells_of_a_table_and_escapes_names(files: TruthFiles, tmp_path: Path) -> None:
    subject = evaluate_proposals(options(files, detections(files, tmp_path / "one.json")), 64, Storage()).subject
    table = Table("a|b,\n3 images", "Weights", ["AP"], [("x|y", [("50.0", "40.0 to 60.0")]), ("z", [("-", "")])])
    lines = markdown(subject, [table]).splitlines()
    assert lines[2:] == [
        "a\\|b, 3 images",
        "",
        "| Weights | AP |",
        "| --- | --: |",
        "| x\\|y | 50.0 (40.0 to 60.0) |",
        "| z | - |",
    ]


@pytest.mark.usefixtures("processes")
def test_masks_after_clicks_have_their_ious(files: TruthFiles, tmp_path: Path) -> None:
    entries = []
    for each in truths(files)[:-1]:  # none for the last mask
        for clicks, pixels in ((1, 3), (1, 1), (3, 0)):
            result = results_of(each["image_id"], 1, grown(each, pixels), 0.5)
            entries.append({**result, "annotation_id": each["id"], "clicks": clicks})
    path = tmp_path / "clicks.json"
    path.write_text(json.dumps(entries))
    own = replace(options(files, str(path)), output=str(tmp_path / "out"))
    answer = evaluate_points(own, PointsSettings((1, 2, 3, 9)), Storage())
    rows = pq.read_table(tmp_path / "out/results.parquet").to_pylist()
    for row, each in zip(rows[:-1], truths(files)[:-1], strict=True):
        exact = {**each["segmentation"], "counts": each["segmentation"]["counts"].encode()}
        first, best = (coco.iou([grown(each, pixels)], [exact], [0])[0, 0] for pixels in (3, 1))
        assert [row[f"iou_{count}"] for count in (1, 2, 3, 9)] == pytest.approx([first, first, 1, 1])
        assert [row[f"oracle_{count}"] for count in (1, 2, 3)] == pytest.approx([best, best, 1])
        assert row["predicted_1"] == 0.5
    assert [rows[-1][f"iou_{count}"] for count in (1, 9)] == [0, 0]
    (skipped,) = answer.subject.skipped[:1]
    assert skipped.why.startswith("counted with scores of 0: 1 mask without a prediction in clicks.json")
    assert answer.means.mean("iou_1").interval is None  # all images but one have the same shapes


@pytest.mark.usefixtures("processes")
def test_two_predictions_of_boxes_are_paired_and_tested(files: TruthFiles, tmp_path: Path) -> None:
    paths = []
    for name, pixels in (("worse", 3), ("better", 1)):
        entries = [results_of(each["image_id"], 1, grown(each, pixels), 0.5) for each in truths(files)]
        paths.append(str(tmp_path / f"{name}.json"))
        Path(paths[-1]).write_text(json.dumps([{k: v for k, v in each.items() if k != "score"} for each in entries]))
    boxes = tmp_path / "boxes.json"
    entries = [{"image_id": each["image_id"], "bbox": each["bbox"]} for each in truths(files)]
    boxes.write_text(json.dumps(entries))
    answer = evaluate_instances(options(files, *paths), str(boxes), True, Storage())
    assert answer.differences["masks"][0] > 0.1
    assert max(answer.holm.values()) < 0.01
    boxes.write_text(json.dumps([{**each, "category_id": 3} for each in entries]))
    uncategorized = tmp_path / "uncategorized.json"
    result = results_of(1, 3, grown(truths(files)[0], 0), 1)
    uncategorized.write_text(json.dumps([{**result, "category_id": None}]))
    with pytest.raises(UsageError, match="it has no category_id"):  # it would count as a model that finds nothing
        evaluate_instances(options(files, str(uncategorized)), str(boxes), True, Storage())
    with pytest.raises(UsageError, match="it has no score"):
        evaluate_instances(options(files, *paths), None, True, Storage())


@pytest.mark.usefixtures("processes")
def test_edge_maps_are_matched_like_found_edges(files: TruthFiles, tmp_path: Path) -> None:
    for name, shift in (("exact", 0), ("shifted", 4)):
        (tmp_path / name).mkdir()
        for file in sorted(files.maps.iterdir()):
            labels = np.asarray(Image.open(file)).astype(np.int16)
            edges = (np.abs(np.diff(labels, axis=0, append=0)) + np.abs(np.diff(labels, axis=1, append=0)) > 0) * 200
            Image.fromarray(np.roll(edges, shift, axis=1).astype(np.uint8)).save(tmp_path / name / file.name)
    model = ModelOptions((), (str(tmp_path / "exact"), str(tmp_path / "shifted")), device="cpu")
    own = EvaluateOptions(TruthOptions((str(files.maps),), (str(files.images),)), model)
    answer = evaluate_edges(own, EdgesMeasure(cuts=9), (), Storage())
    exact, shifted = ({figure.name: figure.value for figure in figures} for figures in answer.figures)
    assert exact["ods"] > 0.95 > shifted["ods"] + 0.3
    assert answer.differences[0].p is not None
    assert answer.differences[0].p < 0.01
    (tmp_path / "shifted/1.png").unlink()
    Image.fromarray(np.full((100, 120), 999, np.uint16)).save(tmp_path / "shifted/2.png")
    written = EvaluateOptions(own.truth, own.model, str(tmp_path / "out"))
    answer = evaluate_edges(written, EdgesMeasure(cuts=9), (), Storage())
    assert answer.lines()[-1] == f"written: open {tmp_path}/out/index.html"
    assert [each.where for each in answer.subject.skipped] == ["1.png", "2.png"]
    assert "has no edge map for it" in answer.subject.skipped[0].why


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is an empty list: expected COCO results"),
        ("[7]", "entry 1: it is 7: expected COCO results"),
        ([{"segmentation": {}}], "entry 1: it has no image_id"),
        ([{"image_id": 1, "segmentation": {}}], "it has no score"),
        ([{"image_id": [1], "score": 1, "segmentation": {}}], r"its image_id is \[1\]: expected an image's id"),
        ([{"image_id": 1, "score": "high", "segmentation": {}}], "its score is high: expected a number"),
        (
            [{"image_id": 1, "score": 1, "category_id": "a", "segmentation": {}}],
            "its category_id is a: expected a whole",
        ),
        ([{"image_id": 1, "score": 1, "segmentation": {"size": [2, 2], "counts": [3]}}], "entry 1: "),
        (
            [{"image_id": 99, "score": 1, "segmentation": {"size": [2, 2], "counts": [4]}}],
            "no prediction in .* belongs",
        ),
    ],
)
def test_other_files_are_refused(files: TruthFiles, tmp_path: Path, entries: object, message: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(entries if isinstance(entries, str) else json.dumps(entries))
    with pytest.raises(UsageError, match=message):
        evaluate_proposals(options(files, str(path)), 64, Storage())


@pytest.mark.usefixtures("processes")
def test_predictions_for_other_images_are_refused_in_each_evaluation(files: TruthFiles, tmp_path: Path) -> None:
    """They would count as a model that finds nothing."""
    one, other = detections(files, tmp_path / "one.json"), tmp_path / "other.json"
    other.write_text(
        json.dumps([{**each, "image_id": f"x{each['image_id']}"} for each in json.loads(Path(one).read_text())])
    )
    with pytest.raises(UsageError, match=r"no prediction in .*other\.json belongs to an evaluated image"):
        evaluate_instances(options(files, one, str(other)), None, True, Storage())
    clicks = tmp_path / "clicks.json"
    entry = results_of(truths(files)[0]["image_id"], 1, grown(truths(files)[0], 0), 0.5)
    clicks.write_text(json.dumps([{**entry, "annotation_id": 10**6, "clicks": 1}]))
    own = options(files, str(clicks))
    with pytest.raises(UsageError, match="expected image_id and annotation_id to be the ids"):
        evaluate_points(own, PointsSettings((1,)), Storage())


def test_more_than_two_and_missing_files_are_refused(files: TruthFiles, tmp_path: Path) -> None:
    missing = str(tmp_path / "none.json")
    with pytest.raises(UsageError, match="no such file"):
        evaluate_proposals(options(files, missing), 64, Storage())
    path = detections(files, tmp_path / "one.json")
    with pytest.raises(UsageError, match="--weights and --predictions were given 3 times"):
        evaluate_proposals(options(files, path, path, path), 64, Storage())
    both = TruthOptions((str(files.coco),) * 2, (str(files.images),))
    with pytest.raises(UsageError, match="takes only one dataset or file, but 2 were given"):
        evaluate_proposals(EvaluateOptions(both, options(files, path).model), 64, Storage())
