"""`segmint evaluate instances`: COCO's AP of a detector's boxes, mIoU of boxes without scores."""

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

from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.model.sam.load import load_sam
from segmint.model.sam.predictor import Predictor
from segmint.operators.evaluate.instances import segment_boxes
from segmint.pipeline.engine.evaluate.boxes import read_boxes
from segmint.pipeline.engine.evaluate.instances import (
    InstancesSettings,
    MatchesByCategory,
    boxes_for,
    evaluate_instances,
    gather_overlaps,
)
from segmint.pipeline.engine.evaluate.run import EvaluateOptions, ModelOptions, TruthOptions, open_truths
from tests.support.truth_files import TruthFiles, results_of, write_truth_files

# x, y, width, height; the third is in a place without a mask, the last in the image without any.
BOXES = [
    (1, 3, [12, 12, 46, 37], 0.9),
    (1, 5, [65, 33, 50, 55], 0.8),
    (1, 5, [90, 2, 30, 20], 0.85),
    (1, 3, [13, 73, 14, 14], 0.3),
    (2, 5, [64, 34, 52, 52], 0.7),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, coffee: np.ndarray) -> TruthFiles:
    return write_truth_files(tmp_path_factory.mktemp("truth") / "scene", coffee, 2)


def options(files: TruthFiles, output: Path | None = None, weights: int = 1) -> EvaluateOptions:
    truth = TruthOptions((str(files.coco),), (str(files.images),))
    model = ModelOptions(("mobile_sam",) * weights, device="cpu")
    return EvaluateOptions(truth, model, None if output is None else str(output))


def write_boxes(path: Path, scored: bool = True) -> str:
    entries = [
        {"image_id": image, "category_id": category, "bbox": box, **({"score": score} if scored else {})}
        for image, category, box, score in BOXES
    ]
    path.write_text(json.dumps(entries))
    return str(path)


def test_ap_is_coco_evals_on_files_of_the_same_masks(
    files: TruthFiles, tmp_path: Path, mobile_sam_path: Path, one_thread: None, embedded_once: None
) -> None:
    boxes = write_boxes(tmp_path / "boxes.json")
    answer = evaluate_instances(options(files, tmp_path / "out"), boxes, True, Storage())
    assert (answer.subject.images, answer.subject.masks) == (2, 3)

    predictor = Predictor(load_sam(mobile_sam_path))
    results = []
    for number, pixels in files.pixels.items():
        own = [(category, box, score) for image, category, box, score in BOXES if image == number]
        corners = np.array([[x, y, x + width, y + height] for _, (x, y, width, height), _ in own], np.float64)
        masks = segment_boxes(predictor, predictor.embed(pixels), corners)
        results += [
            results_of(number, category, mask.rle, score) for (category, _, score), mask in zip(own, masks, strict=True)
        ]
    (tmp_path / "results.json").write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(files.coco)
        evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), iouType="segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    expected = [None if value < 0 else value for value in evaluation.stats]
    assert [value for value, _ in answer.scores[0].values()] == pytest.approx(expected, abs=1e-12)
    assert 0.1 < answer.scores[0]["ap"][0] < 0.95  # neither all nor nothing is right
    assert [(id, masks) for id, masks, _ in answer.categories] == [(3, 1), (5, 2)]
    rows = pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    assert [(row["image_id"], row["category"]) for row in rows] == [("1", 3), ("1", 5), ("2", 5)]
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == json.loads(json.dumps(answer.to_dict()))


@pytest.mark.usefixtures("weights")
def test_boxes_of_the_truth_give_miou_and_the_same_weights_no_difference(
    files: TruthFiles, tmp_path: Path, one_thread: None, embedded_once: None
) -> None:
    answer = evaluate_instances(options(files, tmp_path / "out", weights=2), None, False, Storage())
    rows = pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    assert [(row["mask"], row["weights"]) for row in rows] == [(1, 0), (2, 0), (3, 0), (1, 1), (2, 1), (3, 1)]
    mean = np.mean([row["iou"] for row in rows[:3]])
    assert mean > 0.7
    assert answer.scores[0]["masks"] == (pytest.approx(mean), None)  # of one image there is no interval
    assert answer.differences["masks"] == (0.0, None)
    (table,) = answer.page().tables
    few = [("+0.0", ""), ("p = 1.000", ""), ("too few images", "")]
    assert [cells[2:] for _, cells in table.rows] == [few, few]
    word = few[-1][0]
    assert [line.split()[0] for line in answer.lines() if line.endswith(f" {word}")] == ["mIoU", "mIoU"]
    assert [each["verdict"] for each in answer.to_dict()["differences"].values()] == [word, word]
    assert answer.subject.masks == 3


@pytest.mark.long
def test_boxes_without_scores_are_paired_within_their_category(
    files: TruthFiles, tmp_path: Path, one_thread: None
) -> None:
    boxes = write_boxes(tmp_path / "boxes.json", scored=False)
    answer = evaluate_instances(options(files, tmp_path / "out"), boxes, False, Storage())
    overlaps = [row["iou"] for row in pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()]
    assert overlaps[0] > 0.7
    assert overlaps[1] > 0.7
    assert overlaps[2] < 0.1  # its box is of the other category
    assert "AP needs scores" in answer.lines()[1]


@pytest.mark.usefixtures("weights")
def test_boxes_of_other_images_or_categories_are_an_error(files: TruthFiles, tmp_path: Path) -> None:
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps([{"image_id": 77, "category_id": 3, "bbox": [1, 2, 30, 40], "score": 0.5}]))
    with pytest.raises(UsageError, match="belongs to an evaluated image"):
        evaluate_instances(options(files), str(path), False, Storage())
    boxes = read_boxes(Location(Storage(), str(path)), False)
    row = {"weights": 0, "image_id": "1", "bits": bytes(20), "category": 3, "scores": [], "true_masks": [1, 0, 1, 0]}
    other = {**row, "category": 4, "scores": [0.5], "true_masks": [0, 0, 0, 0]}
    with pytest.raises(UsageError, match="no category of the boxes"):
        MatchesByCategory([[row, other]], 1).check(boxes)
    MatchesByCategory([[row, {**other, "category": 3}]], 1).check(boxes)


@pytest.mark.parametrize("scored", [True, False])
def test_boxes_of_categories_without_a_mask_are_an_error_before_any_weights(
    files: TruthFiles, tmp_path: Path, scored: bool
) -> None:
    path = Path(write_boxes(tmp_path / "boxes.json", scored))
    path.write_text(path.read_text().replace('"category_id": 3', '"category_id": 1').replace('_id": 5', '_id": 2'))
    nowhere = replace(options(files), model=ModelOptions((str(tmp_path / "none.pth"),)))
    with pytest.raises(UsageError, match=r"no category of the boxes in .* has a ground truth mask"):
        evaluate_instances(nowhere, str(path), False, Storage())


def test_categories_of_boxes_count_if_the_truth_has_some_and_unknown_ones_are_told(
    files: TruthFiles, tmp_path: Path
) -> None:
    (truth,) = open_truths(options(files).truth, Storage())
    file = Location(Storage(), write_boxes(tmp_path / "boxes.json"))
    assert boxes_for([truth], file).of_categories == {3, 5}
    assert InstancesSettings(False, boxes_for([truth], file)).line().startswith("prompts: 5 boxes, the mask")
    known = boxes_for([replace(truth, categories=frozenset({3, 8}))], file)
    assert known.facts["categories_without_a_mask"] == [5]
    assert "5 boxes (1 category id of them without a ground truth mask)" in InstancesSettings(False, known).line()
    assert boxes_for([replace(truth, categories=frozenset())], file).of_categories == frozenset()


def test_boxes_without_scores_of_other_images_are_an_error(files: TruthFiles, tmp_path: Path) -> None:
    boxes = read_boxes(Location(Storage(), write_boxes(tmp_path / "boxes.json", scored=False)), False)
    row = {"truth": 0, "image_id": "none of these", "image": "x.png", "weights": 0, "iou": 0.0}
    with pytest.raises(UsageError, match="belongs to an evaluated image"):
        gather_overlaps([[row]], 1, boxes)
    assert gather_overlaps([[{**row, "image_id": next(iter(boxes.by_image))}]], 1, boxes).tolist() == [[1.0, 0.0]]


def test_boxes_are_of_one_truth(files: TruthFiles, tmp_path: Path) -> None:
    twice = EvaluateOptions(TruthOptions((str(files.coco),) * 2, (str(files.images),)))
    with pytest.raises(UsageError, match="but 2 were given"):
        evaluate_instances(twice, write_boxes(tmp_path / "boxes.json"), True, Storage())
