"""A whole turn of the engine: build, correct and annotate, train, evaluate, build again, and see both rounds."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from segmint.catalogs.dataset.manifest import dataset_keys, load_manifest
from segmint.catalogs.dataset.outputs import SCANS
from segmint.pipeline.engine.annotate.app import open_view
from segmint.pipeline.quality.statistics.masks import open_tables
from tests.support.annotating import Annotators, click, draft, options
from tests.support.builds import NO_DETECTORS, segmint_here, write_catalog, write_config
from tests.support.locations import location_of
from tests.support.parallel import made_once
from tests.support.small_dataset import build_dataset
from tests.support.trainable import SHORTEST, scene, train_yaml
from tests.support.two_masks import TwoMaskSegment

SCENES = (1, 2, 3)
"""The third is held out at a share of 0.3."""

ANNOTATED = 2
"""The image that is annotated in a browser; masks for the others come from a file."""

IMAGES = len(SCENES)
SECONDS = 4.0
"""Of work on each annotated mask."""

MASKS = {"points_per_side": 2, "crop_n_layers": 0, "pred_iou_thresh": 0.5, "stability_score_thresh": 0.5}


@dataclass(frozen=True)
class EngineRound:
    """Both rounds, the weights between them, and what the commands answered."""

    first: Path
    second: Path
    weights: Path
    answers: dict[str, Any]


@pytest.fixture(scope="module")
def turn(tmp_path_factory: pytest.TempPathFactory, embedded_once: None) -> EngineRound:
    folder = made_once(tmp_path_factory, "turn", make_turn)
    answers = json.loads((folder / "answers.json").read_text())
    return EngineRound(folder / "round-0", folder / "round-1", Path(answers["weights"]), answers)


def make_turn(folder: Path) -> None:
    """Make the turn with the commands. Both builds run the stages of a build in this process, without Ray.

    The masks of the first build are replaced, so a stub makes them.
    """
    photos = folder / "photos"
    photos.mkdir()
    rows = []
    for number, which in enumerate(SCENES):
        Image.fromarray(scene(which)[0]).save(photos / f"{number}.bmp")  # the same bytes from any library: the splits
        rows.append({"uri": f"{number}.bmp", "license": "CC0-1.0", "image_id": f"image-{number}"})
    catalog = write_catalog(photos / "catalog.jsonl", rows)
    begun = {"masks": MASKS, "deidentify": NO_DETECTORS}

    config = write_config(folder / "round-0.yaml", catalog, folder / "round-0", name="round-0", **begun)
    build_dataset(config, segment_class=TwoMaskSegment)
    corrected = write_corrections(folder / "corrected.json")
    answers: dict[str, Any] = {
        "import": answer("import", folder / "round-0", corrected, "--replace", "--annotator", "Ada")
    }
    annotate(folder / "round-0")
    answers["merge"] = answer("merge", folder / "round-0")
    answers["audit"] = answer("audit", folder / "round-0", "--privacy-sample", "0", yes=False)
    train = train_yaml(folder / "train.yaml", [folder / "round-0"], folder / "trained", masks="human", **SHORTEST)
    answers["train"] = answer("train", train, yes=False)
    weights = folder / "trained" / answers["train"]["file"]
    answers["weights"] = str(weights)
    compared = ("--weights", "mobile_sam", "--weights", weights, "--clicks", "1", "--device", "cpu", "--no-ray")
    answers["evaluate"] = answer("evaluate", "points", folder / "round-0", *compared, yes=False)

    model = {"weights": str(weights), "threads": 1, "device": "cpu"}
    build_dataset(
        write_config(folder / "round-1.yaml", catalog, folder / "round-1", name="round-1", model=model, **begun)
    )
    answers["carry"] = answer("import", folder / "round-1", folder / "round-0", "--replace")
    (folder / "answers.json").write_text(json.dumps(answers))


def annotate(dataset: Path) -> None:
    """Delete what the build found in one image, and click once on each object, as Bo's page would."""
    with open_view(location_of(dataset), options(select=f"id = {ANNOTATED}")) as opened:
        bo = Annotators(opened, "Bo").who("Bo")
        image = bo.post("/api/next", json={}).json()["image"]
        shown = bo.get(f"/api/images/{image}").json()
        made = []
        for mask in scene(SCENES[image - 1])[1][:2]:
            rows, columns = np.nonzero(mask)
            middle = len(rows) // 2
            point = {"x": columns[middle] + 0.5, "y": rows[middle] + 0.5, "label": 1}
            predicted = click(bo, image, (point["x"], point["y"], 1))
            counts = predicted["masks"][predicted["chosen"]]["counts"]
            prompts = [{"kind": "point", **point}]
            made.append({"counts": counts, "source": "assisted", "seconds": SECONDS, "prompts": prompts})
        former = [{"id": each["annotation_id"], "counts": each["segmentation"]["counts"]} for each in shown["masks"]]
        body = {**draft(shown, []), "masks": made, "deleted": former}
        assert bo.put(f"/api/images/{image}/submissions/1", json=body).status_code == 201


def answer(*words: str | Path, yes: bool = True) -> dict[str, Any]:
    """Run a command in this process; return its answer as JSON."""
    printed = segmint_here(*words, "--json", *(["--yes"] if yes else []))
    value: dict[str, Any] = json.JSONDecoder().raw_decode(printed[printed.index("{\n") :])[0]  # after log lines
    return value


def write_corrections(path: Path) -> Path:
    """Write the exact masks of each scene as COCO, as a person would have drawn them over what the build found."""
    images, annotations = [], []
    for number, which in enumerate(SCENES):
        if number + 1 == ANNOTATED:
            continue
        picture, masks = scene(which)
        height, width = picture.shape[:2]
        images.append({"id": number + 1, "file_name": f"sa_{number + 1}.jpg", "height": height, "width": width})
        for mask in masks[:2]:
            code = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
            segmentation = {"size": code["size"], "counts": code["counts"].decode("ascii")}
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number + 1, "category_id": 1, "segmentation": segmentation}
            )
    categories = [{"id": 1, "name": "object"}]
    path.write_text(json.dumps({"images": images, "categories": categories, "annotations": annotations}))
    return path


def shapes(dataset: Path, condition: str) -> set[tuple[str, str]]:
    """The masks of a dataset for which a condition in SQL is true: the image and the run lengths of each."""
    with open_tables(location_of(dataset)) as tables:
        rows = tables.query(f"SELECT image_id, segmentation.counts AS counts FROM masks WHERE {condition}").to_pylist()
    found = {(row["image_id"], row["counts"]) for row in rows}
    assert len(found) == len(rows)
    return found


def test_the_corrections_are_masks_of_the_first_round(turn: EngineRound) -> None:
    counts = turn.answers["import"]["masks"]
    imported = IMAGES - 1
    assert turn.answers["import"]["images"] == imported
    assert counts["same"] + counts["corrected"] + counts["added"] == 2 * imported
    people = f"source <> 'automatic' AND id <> {ANNOTATED}"
    assert len(shapes(turn.first, people)) == counts["corrected"] + counts["added"]
    assert len(shapes(turn.first, "true")) == 2 * IMAGES


def test_the_answers_are_masks_of_the_first_round(turn: EngineRound) -> None:
    assert turn.answers["merge"]["images"] == 1
    annotated = f"id = {ANNOTATED} AND source = 'assisted' AND annotator = 'Bo' AND seconds = {SECONDS}"
    assert len(shapes(turn.first, annotated)) == len(shapes(turn.first, f"id = {ANNOTATED}")) == 2
    assert turn.answers["audit"]["findings"] == []


def test_an_evaluation_compares_the_weights_of_both_rounds(turn: EngineRound) -> None:
    trained, measured = turn.answers["train"], turn.answers["evaluate"]
    assert [link["name"] for link in trained["lineage"]] == ["mobile_sam", turn.weights.name]
    assert measured["weights"][1]["sha256"] == trained["weights"] != measured["weights"][0]["sha256"]
    held_out = len(shapes(turn.first, "source <> 'automatic' AND id = 3"))
    people = len(shapes(turn.first, "source <> 'automatic'"))
    assert (trained["held_out"]["images"], trained["trained"]["masks"]) == (1, people - held_out)
    assert (measured["images"], measured["masks"]) == (IMAGES, people)
    (difference,) = [each for each in measured["differences"] if each["measure"] == "iou_1" and each["over"] == "masks"]
    assert difference["mean"] != 0


def test_a_takedown_and_a_redaction_delete_embeddings_and_name_the_weights(turn: EngineRound, tmp_path: Path) -> None:
    dataset, cache = tmp_path / "round-0", tmp_path / "trained" / "cache"
    shutil.copytree(turn.first, dataset)
    shutil.copytree(turn.weights.parent / "cache", cache)
    assert len(list(cache.rglob("*.np[yz]"))) == IMAGES + 1
    (tmp_path / "ids.txt").write_text("image-0\n")
    printed = segmint_here("takedown", dataset, "--ids", tmp_path / "ids.txt", "--reason", "asked for", "--yes")
    trained = f"{tmp_path}/trained (segmint train: {turn.weights.name})"
    assert f"created from this dataset, delete it or create it again: {trained}" in printed
    assert f"cache: ../trained/cache: {IMAGES + 1} files of embeddings and thumbnails deleted" in printed
    assert not list(cache.rglob("*.np[yz]"))
    (cache / SCANS / dataset_keys(location_of(dataset))[0] / f"{'5' * 64}.npz").write_bytes(b"thumbnails")
    (tmp_path / "regions.jsonl").write_text(json.dumps({"id": 2, "kind": "face", "x": 9, "y": 9, "w": 20, "h": 20}))
    printed = segmint_here("redact", dataset, "--regions", tmp_path / "regions.jsonl", "--yes")
    assert "cache: ../trained/cache: 1 file of embeddings and thumbnails deleted" in printed
    assert not list(cache.rglob("*.np[yz]"))


def test_the_masks_of_people_are_in_the_second_round_pixel_for_pixel(turn: EngineRound) -> None:
    """Also one that the new weights make just so."""
    first = shapes(turn.first, "source <> 'automatic'")
    assert shapes(turn.second, "source <> 'automatic'") == first
    counts = turn.answers["carry"]["masks"]
    assert counts["same"] == 0
    assert counts["corrected"] + counts["added"] == len(first) > 0


def test_the_second_round_says_where_its_weights_come_from(turn: EngineRound) -> None:
    first, second = (load_manifest(location_of(dataset)) for dataset in (turn.first, turn.second))
    assert (first.round, second.round) == (0, 1)
    assert second.weights.sha256 == second.lineage[-1].weights == turn.answers["train"]["weights"]
    assert [each.name for each in second.lineage[-1].datasets] == ["round-0"]
    assert second.lineage[0].weights == first.weights.sha256


def test_both_rounds_are_shown(turn: EngineRound) -> None:
    answer = json.loads(segmint_here("status", turn.first, turn.second, "--json"))
    rows = answer["datasets"]
    assert [(row["name"], row["round"], row["complete"], row["written"]) for row in rows] == [
        ("round-0", 0, True, IMAGES),
        ("round-1", 1, True, IMAGES),
    ]
    for row, dataset in zip(rows, (turn.first, turn.second), strict=True):
        assert row["seconds_per_mask"] == SECONDS
        for source, masks in row["masks_by_source"].items():
            assert masks == len(shapes(dataset, f"source = '{source}'"))
    evaluations = turn.answers["train"]["evaluations"]
    assert [rows[1]["held_out"]["before"], rows[1]["held_out"]["after"]] == [each["one_click"] for each in evaluations]
    assert rows[1]["held_out"]["images"] == turn.answers["train"]["held_out"]["images"]
    lines = segmint_here("status", turn.second, turn.first).splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [["round-1", "1"], ["round-0", "0"]]


def test_the_report_and_the_card_name_the_round(turn: EngineRound, tmp_path: Path) -> None:
    segmint_here("report", turn.second, "-o", tmp_path)
    link = turn.answers["train"]["lineage"][-1]
    digest = link["datasets"][0]["digest"][:12]
    sentence = f"round 1: weights {link['name']} (SHA-256 {link['weights'][:12]}), trained on round-0 (digest {digest})"
    assert sentence in (tmp_path / "index.html").read_text()
    card = (tmp_path / "README.md").read_text().replace("\\_", "_")
    assert f"- {sentence} from mobile_sam; mean IoU at one click" in card
    assert f"({link['name']}, round 1)" in json.loads((tmp_path / "croissant.json").read_text())["description"]
