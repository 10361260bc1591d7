"""What a server keeps in memory of images that are taken down or redacted while it runs."""

import json
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from segmint.catalogs.dataset.tombstones import RemovedImage, TakedownRequest, Tombstone, put_tombstone
from segmint.model.automatic.rle import encode
from segmint.operators.images import decode_jpeg
from segmint.pipeline.corrections.redact import redact
from segmint.pipeline.engine.annotate.app import ServedView
from tests.support.annotating import Annotators, click
from tests.support.locations import location_of

POINT = (60.5, 60.5, 1)


@pytest.fixture
def ann(opened: ServedView) -> TestClient:
    """The browser of the only annotator."""
    return Annotators(opened).who("ann")


def take_down(dataset: Path, image: int) -> None:
    """What a takedown of an image does first."""
    taken = RemovedImage(ordinal=image - 1, id=image, image_id="x", uri="x", sha256=None)
    asked = TakedownRequest(ids=(str(image),))
    put_tombstone(
        location_of(dataset), Tombstone(request=asked, reason="x", when="2026-11-22T00:00:00Z", images=(taken,))
    )


def test_nothing_stays_in_memory_of_images_taken_down(opened: ServedView, ann: TestClient, dataset: Path) -> None:
    kept = opened.annotator_view.kept
    for image in (1, 2):
        click(ann, image, POINT)
    view = opened.annotator_view
    for keeper in (view.embeddings.recent, view.decoder, view.source.recent):
        assert {1, 2} <= set(keeper.images())
    kept.look()
    assert {1, 2} <= kept.images()
    take_down(dataset, 1)
    kept.look()  # as its thread does, while nobody asks for the image
    assert 1 not in kept.images()
    assert 2 in kept.images()
    assert ann.post("/api/next", json={}).json()["image"] == 2
    take_down(dataset, 2)
    refused = ann.post("/api/images/2/predict", json={"prompt": {"points": [list(POINT)]}})
    assert refused.status_code == 410  # at once: each click looks
    assert 2 not in kept.images()


def test_clicks_are_of_the_pixels_that_are_there_now(
    opened: ServedView, ann: TestClient, dataset: Path, tmp_path: Path
) -> None:
    annotator_view = opened.annotator_view
    before = {image: click(ann, image, POINT)["handle"] for image in (1, 2)}
    old = annotator_view.source.read(1).jpeg_sha256
    annotator_view.kept.look()
    assert {1, 2} <= set(annotator_view.embeddings.recent.images())
    regions = tmp_path / "regions.jsonl"
    where = {"kind": "face", "x": 20, "y": 20, "w": 90, "h": 90}
    regions.write_text("".join(json.dumps({"id": image, **where}) + "\n" for image in (1, 2)))
    redact(location_of(dataset), location_of(regions))

    again = click(ann, 1, POINT, after=before[1])
    assert again["handle_lost"]
    found = annotator_view.source.read(1)
    assert found.jpeg_sha256 != old
    embedding = annotator_view.embeddings.predictor.embed(decode_jpeg(found.jpeg))
    masks = annotator_view.embeddings.predictor.predict(embedding, np.array([[POINT[:2]]]), np.array([[1]]))
    upscaled = annotator_view.embeddings.predictor.upscale(masks.low_res_logits, embedding)[0]
    assert {mask["counts"] for mask in again["masks"]} == {encode((each > 0).numpy()).counts for each in upscaled}
    assert not click(ann, 1, POINT, after=again["handle"])["handle_lost"]

    annotator_view.kept.look()  # nobody asks for image 2
    assert 2 not in {*annotator_view.embeddings.recent.images(), *annotator_view.decoder.images()}
    assert 1 in annotator_view.embeddings.recent.images()
    assert click(ann, 2, POINT, after=before[2])["handle_lost"]
