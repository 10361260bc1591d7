"""LVIS's federated AP and class-agnostic AR, equal to those that `lvis` 0.5.3 found on the same drawn set.

tests/interop/oracles/check_lvis.py stores its figures.
"""

import json
from pathlib import Path

import pytest

from segmint.infra.storage.storage import Storage
from segmint.operators.evaluate.instances import AREAS
from segmint.pipeline.engine.evaluate.instances import evaluate_instances
from segmint.pipeline.engine.evaluate.proposals import evaluate_proposals
from segmint.pipeline.engine.evaluate.run import EvaluateOptions, ModelOptions, TruthOptions
from tests.support.lvis_set import draw_lvis_set, write_lvis_set

pytestmark = pytest.mark.usefixtures("processes")

STORED = json.loads((Path(__file__).parent / "lvis_figures.json").read_text())
NAMES = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "APs",
    "ap_medium": "APm",
    "ap_large": "APl",
    "ap_r": "APr",
    "ap_c": "APc",
    "ap_f": "APf",
    "ar_300": "AR@300",
    "ar_small": "ARs@300",
    "ar_medium": "ARm@300",
    "ar_large": "ARl@300",
}


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> EvaluateOptions:
    folder = tmp_path_factory.mktemp("lvis")
    truth, results = write_lvis_set(folder)
    model = ModelOptions((), (str(results),), device="cpu")
    return EvaluateOptions(TruthOptions((str(truth),), (str(folder / "images"),)), model)


def test_federated_scores_are_those_of_lvis(options: EvaluateOptions) -> None:
    answer = evaluate_instances(options, None, True, Storage())
    found = {NAMES[name]: value for name, (value, _) in answer.scores[0].items()}
    assert found == pytest.approx(STORED["federated"], abs=1e-9)
    assert 0.05 < found["AP"] < 0.95
    assert answer.subject.images == 12
    document, _ = draw_lvis_set()
    masks = [masks for _, masks, _ in answer.categories or ()]
    assert sum(masks) == len(document["annotations"]) == answer.subject.masks
    assert "LVIS's federated AP over 9 categories" in answer.lines()[1]
    rows = [line.split("(")[0].strip() for line in answer.lines()[4:]]
    assert rows[6:10] == ["AP rare", "AP common", "AP frequent", "AR@300"]
    assert f"AP rare ({sum(masks[:3])})" in answer.lines()[10]
    assert answer.scores[0]["ap"][1] is not None  # of 12 images


def test_an_image_without_a_list_of_negatives_has_none(tmp_path: Path) -> None:
    """Predictions of the categories with masks still count in it; and categories without masks have no AP."""
    truth, results = write_lvis_set(tmp_path)
    document = json.loads(truth.read_text())
    document["annotations"] = [each for each in document["annotations"] if each["category_id"] != 9]
    found = []
    for negative in ({"neg_category_ids": []}, {}):
        first = {key: value for key, value in document["images"][0].items() if key != "neg_category_ids"}
        document["images"][0] = {**first, **negative}
        truth.write_text(json.dumps(document))
        model = ModelOptions((), (str(results),), device="cpu")
        own = EvaluateOptions(TruthOptions((str(truth),), (str(tmp_path / "images"),)), model)
        answer = evaluate_instances(own, None, True, Storage())
        assert "LVIS's federated AP over 8 categories" in answer.lines()[1]
        found.append(answer.scores)
    assert found[0] == found[1]


def test_class_agnostic_recall_is_that_of_lvis(options: EvaluateOptions) -> None:
    answer = evaluate_proposals(options, 32, Storage())
    found = {each.area: each.value for each in answer.recalls[0] if (each.kind, each.limit) == ("all", 1000)}
    assert found == pytest.approx(STORED["class-agnostic AR@1000"], abs=1e-9)
    assert list(found) == list(AREAS)
