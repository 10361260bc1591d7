"""What the annotator's page asks, answered on a small real dataset."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from segmint.catalogs.dataset.manifest import read_dataset_id
from segmint.catalogs.dataset.submissions import read_submissions
from segmint.infra.assets import resolve
from segmint.infra.device import resolve_compute
from segmint.model.automatic.rle import Rle, decode, encode
from segmint.model.sam.predictor import Embedding, Predictor
from segmint.operators.images import decode_jpeg
from segmint.operators.segment.models import load_model
from segmint.pipeline.engine.annotate.app import ServedView
from segmint.pipeline.engine.annotate.drawing import clean_mask
from tests.support.annotating import Annotators, click, draft, saved_files
from tests.support.locations import location_of
from tests.support.viewed import image_rows, mask_rows


@pytest.fixture
def ann(opened: ServedView) -> TestClient:
    """The browser of the only annotator."""
    return Annotators(opened).who("ann")


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    """The model by itself."""
    return Predictor(load_model(resolve("mobile_sam"), resolve_compute("cpu", "fp32")))


def counts_of(predictor: Predictor, embedding: Embedding, logits: Any) -> str:
    upscaled = predictor.upscale(logits[None, None], embedding)
    return encode((upscaled[0, 0] > 0).numpy()).counts


def test_a_session_says_who_and_what(ann: TestClient, dataset: Path) -> None:
    told = ann.get("/api/session").json()
    assert (told["annotator"], told["owner"], told["stage"]) == ("ann", True, "assisted")
    assert (told["dataset"]["name"], told["dataset"]["images"]) == ("small", 6)
    assert told["dataset"]["key"] == read_dataset_id(location_of(dataset))  # two datasets may have one name
    assert (told["weights"], told["idle_s"], told["hint_s"]) == ("mobile_sam", 30, 30)
    assert ann.get("/").headers["content-type"].startswith("text/html")
    assert ann.get("/assets/zoom.js").headers["content-type"].startswith("text/javascript")  # shared with the viewer


def test_an_image_is_as_the_dataset_has_it(ann: TestClient, dataset: Path) -> None:
    told = ann.get("/api/images/1").json()
    row = next(row for row in image_rows(dataset) if row["id"] == 1)
    masks = mask_rows(dataset, 1)
    assert told["size"] == [row["height"], row["width"]]
    assert [mask["annotation_id"] for mask in told["masks"]] == [mask["annotation_id"] for mask in masks]
    assert [mask["segmentation"] for mask in told["masks"]] == [mask["segmentation"] for mask in masks]
    assert (told["assignment"], told["n"], told["submission"], told["state"]) == (0, 0, None, "open")
    with Image.open(io.BytesIO(ann.get("/images/1.jpg").content)) as picture:
        assert picture.size == (row["width"], row["height"])
    for text in (row["image_id"], "1", "sa_1", " 1 "):
        assert ann.get("/api/find", params={"image": text}).json() == {"image": 1}
    for text in ("", "nobody's", "3", "9" * 30, "1" * 200):
        unknown = ann.get("/api/find", params={"image": text})
        assert (unknown.status_code, unknown.json()["error"][:26]) == (404, "this dataset has no image ")
    for path in ("/api/images/99", "/api/images/3", "/images/x.jpg", "/api/images/" + "9" * 39):
        assert ann.get(path).status_code == 404, path


def test_clicks_get_what_the_predictor_gives(ann: TestClient, predictor: Predictor) -> None:
    pixels = decode_jpeg(ann.get("/images/1.jpg").content)
    height, width = pixels.shape[:2]
    embedding = predictor.embed(pixels)
    x, y = width * 0.4 + 0.5, height * 0.5 + 0.5
    assert ann.post("/api/images/1/embed").status_code == 204

    first = click(ann, 1, (x, y, 1))
    masks = predictor.predict(embedding, np.array([[[x, y]]]), np.array([[1]]))
    logits, ious = masks.low_res_logits[0], masks.predicted_iou[0]
    wanted = {counts_of(predictor, embedding, each): float(iou) for each, iou in zip(logits, ious, strict=True)}
    assert {mask["counts"]: mask["iou"] for mask in first["masks"]} == wanted
    areas = [mask["area"] for mask in first["masks"]]
    assert areas == sorted(areas)
    assert first["masks"][first["chosen"]]["iou"] == max(ious.tolist())
    assert [click(ann, 1, (x, y, 1), part=part)["chosen"] for part in ("subpart", "part", "whole")] == [0, 1, 2]

    best = int(ious.argmax())
    points = [[x, y], [x + 40, y - 30]]
    then = click(ann, 1, (*points[0], 1), (*points[1], 0), after=first["handle"])
    once = predictor.predict(
        embedding, np.array([points]), np.array([[1, 0]]), masks=logits[best][None, None], multimask=False
    )
    assert [mask["counts"] for mask in then["masks"]] == [counts_of(predictor, embedding, once.low_res_logits[0, 0])]
    assert (then["chosen"], then["handle_lost"]) == (0, False)

    lost = click(ann, 1, (*points[0], 1), (*points[1], 0), after="unknown")
    both = predictor.predict(embedding, np.array([points]), np.array([[1, 0]]))
    of_three = both.low_res_logits[0, int(both.predicted_iou[0].argmax())]
    assert [mask["counts"] for mask in lost["masks"]] == [counts_of(predictor, embedding, of_three)]
    assert lost["handle_lost"]

    box = click(ann, 1, box=[x - 50, y - 50, 100, 100])
    framed = predictor.predict(embedding, boxes=np.array([[x - 50, y - 50, x + 50, y + 50]]))
    assert {mask["counts"] for mask in box["masks"]} == {
        counts_of(predictor, embedding, each) for each in framed.low_res_logits[0]
    }
    specks = decode(Rle((height, width), first["masks"][first["chosen"]]["counts"]))
    specks[:3, :3] = ~specks[:3, :3]
    cleaned = ann.post("/api/images/1/clean", json={"counts": encode(specks).counts})
    assert cleaned.json() == {"counts": clean_mask(encode(specks)).counts}
    assert ann.post("/api/images/1/clean", json={"counts": "0"}).status_code == 400
    corrected = click(ann, 1, (x, y, 1), mask=first["masks"][first["chosen"]]["counts"])
    assert len(corrected["masks"]) == 1


def test_an_answer_is_kept_and_the_page_goes_on(ann: TestClient, dataset: Path) -> None:
    given = ann.post("/api/next", json={}).json()
    assert (given["image"], given["assignment"], given["left"]) == (1, 0, 6)
    assert ann.post("/api/next", json={}).json()["image"] == 1  # a reload
    told = ann.get("/api/images/1").json()
    old = told["masks"][0]
    found = click(ann, 1, (100.5, 80.5, 1))["masks"][0]["counts"]
    former = [{"id": old["annotation_id"], "counts": old["segmentation"]["counts"]}]
    body = draft(told, [found])
    body["masks"].append({"counts": found, "source": "corrected", "seconds": 3, "parent": old["annotation_id"]})
    body["masks"][0]["prompts"] = [{"kind": "point", "x": 100.5, "y": 80.5, "label": 1}]
    answer = ann.put("/api/images/1/submissions/1", json={**body, "replaced": former})
    assert (answer.status_code, answer.json()) == (201, {"n": 1})
    (kept,) = read_submissions(location_of(dataset), 0)
    assert (kept.annotator, kept.stage, kept.assignment, kept.n, kept.base) == ("ann", "assisted", 0, 1, told["base"])
    assert [mask.counts for mask in kept.masks] == [found, found]
    assert kept.seconds == 5
    again = ann.put("/api/images/1/submissions/1", json={**body, "replaced": former})
    assert again.status_code == 201  # the answer to the first may have been lost
    assert list(saved_files(dataset)) == ["annotations/0/0.1.json"]
    reopened = ann.get("/api/images/1").json()
    assert (reopened["state"], reopened["n"], reopened["submission"]["n"]) == ("submitted", 1, 1)
    assert ann.put("/api/images/1/submissions/2", json=draft(told, [])).status_code == 201
    following = ann.post("/api/next", json={"after": 1}).json()
    assert (following["image"], following["left"]) == (2, 5)
    progress = ann.get("/api/progress").json()
    assert (progress["images"], progress["submitted"], progress["masks"]) == (6, 1, 0)
    assert progress["annotators"] == [{"name": "ann", "images": 1, "masks": 0, "seconds_a_mask": None}]
    assert json.loads((dataset / "annotations/0/0.2.json").read_bytes())["n"] == 2


def test_an_image_that_cannot_be_decoded_is_given_to_nobody_again(ann: TestClient, dataset: Path) -> None:
    tar = min((dataset / "shards").glob("*.tar"))
    with tarfile.open(tar) as archive:
        member = archive.getmember("sa_1.jpg")
    data = bytearray(tar.read_bytes())
    data[member.offset_data : member.offset_data + member.size] = bytes(member.size)
    tar.write_bytes(data)
    assert ann.post("/api/next", json={}).json()["image"] == 1
    assert ann.post("/api/images/1/embed").status_code == 404
    assert ann.post("/api/next", json={}).json()["image"] == 2  # a reload
    assert ann.post("/api/next", json={"after": 7}).json()["image"] == 2


def test_every_image_is_given_once(ann: TestClient) -> None:
    given = []
    after = None
    while (image := ann.post("/api/next", json={} if after is None else {"after": after}).json()["image"]) is not None:
        told = ann.get(f"/api/images/{image}").json()
        assert ann.put(f"/api/images/{image}/submissions/1", json=draft(told, [])).status_code == 201
        given.append(image)
        after = image
    assert given == [1, 2, 4, 5, 6, 7]
    assert ann.post("/api/next", json={}).json()["left"] == 0


def test_an_embedding_that_takes_long_is_no_silence(ann: TestClient, opened: ServedView) -> None:
    ann.get("/api/images/1")
    opened.annotator_view.embeddings.patience_s = 0.0
    asked = ann.post("/api/images/1/predict", json={"prompt": {"points": [[5, 5, 1]]}})
    assert asked.status_code == 503
    assert "still embedding this image" in asked.json()["error"]
    opened.annotator_view.embeddings.patience_s = 60.0
    assert click(ann, 1, (5, 5, 1))["masks"]
