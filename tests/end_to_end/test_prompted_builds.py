"""A build with one mask for each box of a detector: from its COCO file to the dataset, and after it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from segment_anything import SamPredictor

from benchmarks.masks.reference import reference_sam
from segmint.catalogs.dataset.reading.torch_dataset import open_dataset
from segmint.infra.errors import UsageError
from segmint.infra.ray_session import Cluster
from segmint.infra.storage.storage import Storage
from segmint.model.sam.load import load_sam
from segmint.pipeline.building.dataset.dataset import open_or_create
from segmint.pipeline.config.config import load_config
from segmint.pipeline.quality.audit.integrity import audit_integrity
from tests.support.builds import NO_DETECTORS, SMALL, segmint_here, write_catalog, write_photographs
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
    assert not any(path.is_file() for path in dataset.rglob("*"))

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
