"""Builds whose masks come from tiny models of `transformers`: the models' masks and labels, and no findings."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image

from segmint.catalogs.dataset.reading.torch_dataset import open_dataset
from segmint.infra.errors import UsageError
from segmint.infra.ray_session import Cluster
from segmint.infra.storage.storage import Storage
from segmint.pipeline.building.dataset import open_or_create
from segmint.pipeline.config.config import load_config
from tests.end_to_end.test_segmenters import ONE, TWO, configured, findings, table
from tests.support.builds import digests, segmint_here, small_catalog
from tests.support.runs import running, wait_for
from tests.support.tiny_transformers import PHRASES, write_sam2, write_sam3

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_thread")]

FEW: dict[str, Any] = {"points_per_crop": 2, "pred_iou_thresh": -9.0, "stability_score_thresh": 0.0}
GENERATION, CONCEPTS = "segmint.transformers.MaskGeneration", "segmint.transformers.Concepts"


@pytest.mark.long
def test_a_build_stores_the_masks_of_the_pipeline(tmp_path: Path, local_ray: Cluster) -> None:
    catalog, dataset = small_catalog(tmp_path / "photos", count=5), tmp_path / "dataset"
    folder, arguments = str(write_sam2(tmp_path / "sam2")), {**FEW, "crops_nms_thresh": 1.0}
    generation = {"stage": GENERATION, "arguments": {"folder": folder, **arguments}, "resources": TWO}
    segmint_here("build", configured(tmp_path / "build.yaml", catalog, dataset, generation))
    assert findings(dataset) == []
    pipeline = transformers.pipeline("mask-generation", model=folder)
    scores = iter([mask["predicted_iou"] for mask in table(dataset, "masks")])
    samples = list(open_dataset(str(dataset)))
    assert len(samples) == 3
    for sample in samples:
        expected = pipeline(Image.fromarray(np.asarray(sample.image)), **arguments)
        filled = [place for place, pixels in enumerate(expected["masks"]) if pixels.any()]
        assert len(sample.masks) == len(filled) > 5
        for mask, place in zip(sample.masks, filled, strict=True):
            assert np.array_equal(mask.mask, expected["masks"][place])
            assert next(scores) == float(expected["scores"][place])


@pytest.mark.long
def test_a_build_stores_and_exports_the_phrases_of_masks(tmp_path: Path, local_ray: Cluster) -> None:
    catalog, dataset = small_catalog(tmp_path / "photos", count=4), tmp_path / "dataset"
    arguments = {"folder": str(write_sam3(tmp_path / "sam3")), "phrases": PHRASES, "threshold": 0.0}
    concepts = {"stage": CONCEPTS, "arguments": arguments, "resources": TWO}
    segmint_here("build", configured(tmp_path / "build.yaml", catalog, dataset, concepts))
    assert findings(dataset) == []
    manifest = json.loads((dataset / "dataset.json").read_bytes())
    assert json.loads(manifest["config"]["segmenter"]["version"])["phrases"] == PHRASES
    masks = table(dataset, "masks")
    assert {mask["label"] for mask in masks} == set(PHRASES)
    for mask in masks:
        assert mask["label_source"] == f"model:{manifest['weights']['sha256']}"
        assert mask["label_score"] == mask["predicted_iou"]
        assert [(prompt["kind"], prompt["text"]) for prompt in mask["prompts"]] == [("text", mask["label"])]
    segmint_here("export", dataset, "--format", "coco", "-o", tmp_path / "coco")
    exported = json.loads((tmp_path / "coco" / "instances.json").read_bytes())
    names = {category["id"]: category["name"] for category in exported["categories"]}
    found = [names[annotation["category_id"]] for annotation in exported["annotations"]]
    assert sorted(found) == sorted(mask["label"] for mask in masks)


@pytest.mark.long
def test_a_build_takes_the_phrases_of_each_row_from_the_catalog(tmp_path: Path, local_ray: Cluster) -> None:
    catalog, dataset = small_catalog(tmp_path / "photos", count=6), tmp_path / "dataset"
    rows = [json.loads(line) for line in catalog.read_text(encoding="utf-8").splitlines()]
    cup, saucer = ({"label": phrase} for phrase in PHRASES)
    given: list[list[dict[str, Any]]] = [[cup], [saucer, cup], [cup], [], [{**cup, "box": [0.1, 0.1, 0.5, 0.5]}]]
    for row, prompts in zip(rows, given, strict=False):
        row["prompts"] = {"width": 1, "height": 1, "prompts": prompts}
    catalog.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    arguments = {"folder": str(write_sam3(tmp_path / "sam3")), "threshold": 0.0}
    concepts = {"stage": CONCEPTS, "arguments": arguments, "resources": TWO}
    segmint_here("build", configured(tmp_path / "build.yaml", catalog, dataset, concepts))
    assert findings(dataset) == []
    labels: dict[str, set[str]] = {row["image_id"]: set() for row in table(dataset, "images")}
    names = {row["id"]: row["image_id"] for row in table(dataset, "images")}
    for mask in table(dataset, "masks"):
        labels[names[mask["id"]]].add(mask["label"])
    assert labels == {"image-0": {PHRASES[0]}, "image-1": set(PHRASES), "image-3": set()}
    (verdict,) = [row for row in table(dataset, "rejects") if row["reason"] == "prompts_misfit"]
    assert (verdict["image_id"], verdict["stage"]) == ("image-4", "stage_concepts")


@pytest.mark.long
def test_a_killed_and_resumed_build_gives_the_bytes_of_an_undisturbed_one(tmp_path: Path, local_ray: Cluster) -> None:
    catalog, folder = small_catalog(tmp_path / "photos", count=8), str(write_sam2(tmp_path / "sam2"))
    generation = {"stage": GENERATION, "arguments": {"folder": folder, **FEW}, "resources": TWO}
    shards = {"images_per_shard": 1, "rows_per_block": 1}
    undisturbed = configured(tmp_path / "one.yaml", catalog, tmp_path / "one", generation, **shards)
    segmint_here("build", undisturbed)
    killed = configured(tmp_path / "two.yaml", catalog, tmp_path / "two", generation, **shards)
    with running(killed) as run:
        wait_for("a commit", lambda: list((tmp_path / "two" / "commits").glob("*")), run)
        run.kill()
    assert len(list((tmp_path / "two" / "commits").glob("*"))) < 8
    segmint_here("build", killed)
    assert digests(tmp_path / "two") == digests(tmp_path / "one")
    assert findings(tmp_path / "two") == []


def test_a_wrong_folder_or_model_shows_before_anything_is_created(tmp_path: Path, local_ray: Cluster) -> None:
    catalog = small_catalog(tmp_path / "photos", count=4)
    concepts = str(write_sam3(tmp_path / "sam3"))
    for folder, told in (
        ("facebook/sam2.1-hiera-tiny", "isn't a folder with a config.json"),
        (concepts, "Unrecognized configuration class"),
    ):
        generation = {"stage": GENERATION, "arguments": {"folder": folder}, "resources": ONE}
        config = configured(tmp_path / "build.yaml", catalog, tmp_path / "dataset", generation)
        with pytest.raises(UsageError, match=told):
            open_or_create(load_config(str(config)), Storage())
    assert not (tmp_path / "dataset").exists()
