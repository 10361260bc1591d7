"""Builds with one mask for each box of a detector, alone or beside the grid: from its COCO file to the dataset."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from segment_anything import SamPredictor

from benchmarks.masks.reference import reference_sam
from segmint.catalogs.dataset.reading.torch_dataset import open_dataset
from segmint.infra.errors import UsageError
from segmint.infra.ray_session import Cluster
from segmint.infra.storage.storage import Storage
from segmint.model.sam.load import load_sam
from segmint.pipeline.building.dataset import open_or_create
from segmint.pipeline.config.config import load_config
from segmint.pipeline.quality.audit.integrity import audit_integrity
from segmint.pipeline.quality.report.croissant import croissant_json
from segmint.pipeline.quality.report.facts import SAM, gather_facts
from segmint.pipeline.quality.statistics.masks import open_tables
from tests.support.builds import NO_DETECTORS, SMALL, segmint_here, write_catalog, write_photographs
from tests.support.built_fixtures import BuiltDataset
from tests.support.locations import location_of

pytestmark = pytest.mark.ray

SIZE = {"width": 240, "height": 180}
BOXES = {
    "photo_000.jpg": [[80, 10, 90, 120], [20.5, 100, 150, 79.5]],
    "photo_001.jpg": [[60, 30, 130, 110]],
    "photo_002.jpg": [],
    "photo_003.jpg": [[100, 0, 40, 150]],
}


def boxes_file(folder: Path, **sizes: dict[str, int]) -> Path:
    images, annotations = [], []
    for number, (name, boxes) in enumerate(BOXES.items()):
        images.append({"id": number, "file_name": name, **sizes.get(Path(name).stem, SIZE)})
        for box in boxes:
            annotations.append({"image_id": number, "bbox": box, "category_id": 1 + len(annotations) % 2, "score": 0.5})
    categories = [{"id": 1, "name": "tea cup"}, {"id": 2, "name": "rocket"}]
    path = folder / "boxes.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def configured(path: Path, catalog: Path, weights: Path, **arguments: Any) -> Path:
    arguments = {"weights": str(weights), "device": "cpu", "threads": 1, **arguments}
    resources = {"prepare": {"actors": 1, "num_cpus": 0.5}}
    segmenter = {"stage": "segmint.PromptedMasks", "arguments": arguments, "resources": {"actors": 1, "num_cpus": 1}}
    kept = {key: value for key, value in SMALL.items() if key not in ("masks", "model", "resources")}
    ours = {"catalog": str(catalog), "output": str(path.parent / "dataset"), "deidentify": NO_DETECTORS}
    release = {"release": {"short_side": 120}}
    path.write_text(json.dumps({**kept, **ours, **release, "resources": resources, "segmenter": segmenter}))
    return path


def table(dataset: Path, kind: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.ParquetDataset(sorted((dataset / kind).iterdir())).read().to_pylist()
    return rows


@pytest.mark.timeout(600)
def test_boxes_of_a_detector_become_masks(tmp_path: Path, local_ray: Cluster, mobile_sam_path: Path) -> None:
    folder, dataset = tmp_path / "photos", tmp_path / "dataset"
    rows = [{"uri": name, "license": "CC0-1.0"} for name in write_photographs(folder, 5)]
    catalog, prompted = write_catalog(folder / "catalog.jsonl", rows), folder / "prompted.parquet"
    bare = configured(tmp_path / "bare.yaml", catalog, mobile_sam_path)
    with pytest.raises(UsageError, match=r"the segmenter needs prompts, but no row of .*catalog\.jsonl has any"):
        open_or_create(load_config(str(bare)), Storage())
    assert not dataset.exists()

    boxes = boxes_file(tmp_path, photo_003={"width": 180, "height": 240})
    segmint_here("catalog", "prompts", catalog, "--coco", boxes, "-o", prompted)
    config = configured(tmp_path / "build.yaml", prompted, mobile_sam_path)
    segmint_here("build", config)
    assert [finding.line() for finding in audit_integrity(location_of(dataset)).findings] == []
    (rejected,) = table(dataset, "rejects")
    assert (rejected["stage"], rejected["reason"], rejected["id"]) == ("catalog", "prompts_misfit", 4)
    assert [(row["id"], row["masks"]) for row in table(dataset, "images")] == [(1, 2), (2, 1), (3, 0), (5, 0)]

    masks = {mask["annotation_id"]: mask for mask in table(dataset, "masks")}
    reference = SamPredictor(reference_sam(load_sam(mobile_sam_path)))
    for sample in open_dataset(str(dataset)):
        assert sample.image.shape == (120, 160, 3)
        if not sample.masks:
            continue
        reference.set_image(np.asarray(sample.image))
        for mask, box in zip(sample.masks, BOXES[f"photo_{sample.id - 1:03}.jpg"], strict=True):
            row = masks[mask.id]
            (stored,) = row["prompts"]
            x, y, width, height = (stored[name] for name in "xywh")
            assert (stored["kind"], [x, y, width, height]) == ("box", pytest.approx(np.divide(box, 1.5)))
            corners = np.array([x, y, x + width, y + height])
            logits, scores, _ = reference.predict(box=corners, multimask_output=False, return_logits=True)
            different = mask.mask != (logits[0] > 0)
            assert np.abs(logits[0][different]).max(initial=0) < 1e-4
            assert different.sum() <= 2
            assert row["predicted_iou"] == pytest.approx(scores[0], abs=1e-5)
            assert (row["label_source"], row["label_score"], row["source"]) == ("import", None, "automatic")
    assert [masks[id]["label"] for id in sorted(masks)] == ["tea cup", "rocket", "tea cup"]

    coco = tmp_path / "coco"
    segmint_here("export", dataset, "--format", "coco", "-o", coco)
    exported = json.loads((coco / "instances.json").read_bytes())
    names = {category["id"]: category["name"] for category in exported["categories"]}
    labels = [names[each["category_id"]] for each in exported["annotations"]]
    assert labels == ["tea cup", "rocket", "tea cup"]

    prompted.unlink()
    boxes.write_text(boxes.read_text().replace("[80, 10, 90, 120]", "[81, 10, 90, 120]"))
    segmint_here("catalog", "prompts", catalog, "--coco", boxes, "-o", prompted)
    with pytest.raises(UsageError, match=r"1 of 5 rows have another prompts; .* image_id 'photo_000\.jpg'"):
        open_or_create(load_config(str(config)), Storage())
    labeled = configured(tmp_path / "labeled.yaml", prompted, mobile_sam_path, labeler="ab" * 32)
    with pytest.raises(UsageError, match=r"segmenter\.version: '[0-9a-f]{64}' before"):
        open_or_create(load_config(str(labeled)), Storage())

    (tmp_path / "ids.txt").write_text("photo_000.jpg\n")
    segmint_here("takedown", dataset, "--ids", tmp_path / "ids.txt", "--reason", "on request", "--yes")
    (part,) = (dataset / "catalog").iterdir()
    left = pq.read_table(part).column("prompts").to_pylist()
    assert [prompts is None for prompts in left] == [True, False, False, False, True]
    assert b"rocket" in part.read_bytes()  # of the fourth row
    assert [finding.line() for finding in audit_integrity(location_of(dataset)).findings] == []


@pytest.mark.timeout(600)
def test_boxes_are_added_to_the_grid(
    tmp_path: Path, built: BuiltDataset, local_ray: Cluster, mobile_sam_path: Path
) -> None:
    """The dataset `built` with two stages that add masks: one for each prompt, and the whole image."""
    before = {row["id"]: row for row in table(built.dataset, "images")}
    (face,) = before[1]["regions"]
    boxes = {
        1: [{"box": [face[side] for side in "xywh"], "label": "face"}, {"box": [80, 90, 90, 80], "label": "suit"}],
        2: [{"box": [60, 30, 130, 110], "label": "tea cup", "score": 0.5}, {"points": [[120, 90]], "label": "<i>\n"}],
        4: [{"box": [100, 0, 40, 150], "label": "rocket"}],
    }
    folder, dataset = tmp_path / "photos", tmp_path / "dataset"
    shutil.copytree(built.catalog.parent, folder)
    rows = [json.loads(line) for line in built.catalog.read_text().splitlines()]
    for number, prompts in boxes.items():
        rows[number - 1]["prompts"] = {**SIZE, "prompts": prompts}
    resources = {"actors": 1, "num_cpus": 0.75}
    arguments = {"weights": str(mobile_sam_path), "device": "cpu", "threads": 1, "labeler": "ab" * 32}
    prompted = {"stage": "segmint.PromptedMasks", "arguments": arguments, "after": "segment", "resources": resources}
    faulty = {"stage": "tests.support.segmenters.Faulty", "after": "segment", "resources": resources}
    faulty |= {"arguments": {"how": {"5": "raise"}}, "on_error": "reject"}
    tree = yaml.safe_load(built.config.read_text())
    tree |= {"catalog": str(write_catalog(folder / "catalog.jsonl", rows)), "output": str(dataset)}
    config = tmp_path / "build.yaml"
    config.write_text(json.dumps({**tree, "stages": [prompted, faulty]}))
    printed = segmint_here("build", config)
    assert "stage_prompted" in printed
    assert [finding.line() for finding in audit_integrity(location_of(dataset)).findings] == []

    specs = {spec.name: spec.sha256 for spec in load_config(str(config)).load_stages()}
    images = {row["id"]: row for row in table(dataset, "images")}
    rejected = {row["id"]: (row["stage"], row["reason"]) for row in table(dataset, "rejects")}
    assert images.keys() == {1, 2, 4}
    assert (rejected[5], rejected[3]) == (("stage_faulty", "stage_failed"), ("catalog", "license_not_allowed"))
    of_grid, masks = table(built.dataset, "masks"), table(dataset, "masks")
    reference = SamPredictor(reference_sam(load_sam(mobile_sam_path)))
    for sample in open_dataset(str(dataset)):
        image = images[sample.id]
        assert image["release_sha256"] == before[sample.id]["release_sha256"]
        own = [mask for mask in masks if mask["id"] == sample.id]
        sam = [mask for mask in of_grid if mask["id"] == sample.id]
        named = boxes[sample.id][1:] if sample.id == 1 else boxes[sample.id]  # the first is the face
        assert [mask["annotation_id"] for mask in own] == [sample.id * 10_000 + place for place in range(len(own))]
        assert len(own) == len(sam) + len(named) + 1 == image["masks"] == image["next_mask"] == len(sample.masks)
        whole = own[-1]
        for mask, other in zip(own, sam, strict=False):
            assert {**mask, "container": None} == {**other, "container": None}
            assert mask["container"] is not None
            assert (mask["model"], mask["label"], mask["prompts"]) == (None, None, None)
        assert (whole["model"], whole["area"]) == (specs["faulty"], image["width"] * image["height"])
        assert (whole["container"], whole["predicted_iou"]) == (None, None)
        steps = {step: image["funnel"][step] - before[sample.id]["funnel"][step] for step in image["funnel"]}
        prompts = len(boxes[sample.id])
        assert (steps["predicted"], steps["written"]) == (prompts + 1, len(named) + 1)
        assert steps["redaction_artifacts"] == prompts - len(named)

        reference.set_image(np.asarray(sample.image))
        added = list(zip(own, sample.masks, strict=True))[len(sam) : -1]
        for (row, mask), prompt in zip(added, named, strict=True):
            assert (row["model"], row["label"]) == (specs["prompted"], prompt["label"].strip())
            assert (row["label_source"], row["label_score"]) == (f"model:{'ab' * 32}", prompt.get("score"))
            assert (row["source"], row["point_coords"]) == ("automatic", [])
            given: dict[str, Any] = {"multimask_output": "points" in prompt, "return_logits": True}
            if "box" in prompt:
                x, y, width, height = prompt["box"]
                given["box"] = np.array([x, y, x + width, y + height])
            else:
                given |= {"point_coords": np.array(prompt["points"]), "point_labels": np.array([1])}
            logits, scores, _ = reference.predict(**given)
            different = mask.mask != (logits[scores.argmax()] > 0)
            assert different.sum() <= 2
            assert row["predicted_iou"] == pytest.approx(scores.max(), abs=1e-5)

    manifest = json.loads((dataset / "dataset.json").read_bytes())
    assert manifest["weights"] == json.loads((built.dataset / "dataset.json").read_bytes())["weights"]
    assert list(manifest["config"]["stages"]) == ["faulty", "prompted"]
    with open_tables(location_of(dataset)) as tables:
        facts = gather_facts(tables)
    assert facts.build is not None
    assert facts.build.maker == SAM
    described = json.loads(croissant_json(facts, "x"))["description"]
    for stage in ("tests.support.segmenters.Faulty, version 1, ", "segmint.PromptedMasks, version "):
        assert f" The segmenter {stage}" in described
    coco = tmp_path / "coco"
    segmint_here("export", dataset, "--format", "coco", "-o", coco)
    exported = json.loads((coco / "instances.json").read_bytes())
    names = {category["id"]: category["name"] for category in exported["categories"]}
    labels = [names[each["category_id"]] for each in exported["annotations"]]
    assert {"suit", "tea cup", "<i>", "rocket"} <= set(labels)
    assert "face" not in labels

    for change, told in (
        ({"filters": {"min_area": 9}}, r"stages\.prompted\.filters\.min_area: absent before, 9 now"),
        ({"arguments": {**arguments, "labeler": "cd" * 32}}, r"stages\.prompted\.version: '[0-9a-f]{64}' before"),
    ):
        config.write_text(json.dumps({**tree, "stages": [{**prompted, **change}, faulty]}))
        with pytest.raises(UsageError, match=told):
            open_or_create(load_config(str(config)), Storage())

    (tmp_path / "ids.txt").write_text("image-1\n")
    printed = segmint_here("takedown", dataset, "--ids", tmp_path / "ids.txt", "--reason", "on request", "--yes")
    assert str(coco) in printed
    (part,) = (dataset / "catalog").iterdir()
    left = pq.read_table(part).column("prompts").to_pylist()
    assert [place for place, prompts in enumerate(left) if prompts is not None] == [0, 3]
    assert b"rocket" in part.read_bytes()
    kept = [path for path in dataset.rglob("*") if path.is_file()]
    assert [path.name for path in kept if b"tea cup" in path.read_bytes()] == []
    assert {mask["label"] for mask in table(dataset, "masks")} == {None, "suit", "rocket"}
    assert [finding.line() for finding in audit_integrity(location_of(dataset)).findings] == []
