"""A dataset built with SAM 2.1: it contains the regions that the weights know, audits clean, reads, and exports."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO

from segmint import open_dataset
from tests.support.builds import segmint, write_catalog, write_config
from tests.support.overfitted_sam2 import PHOTOGRAPHS, POINTS_PER_SIDE, overfitted_sam, regions
from tests.support.photographs import photograph
from tests.support.sam2_files import save_official

pytestmark = [pytest.mark.long, pytest.mark.ray, pytest.mark.timeout(1800)]

FEWEST = 10
"""Masks that each image must have at least."""


@dataclass(frozen=True)
class Sam2Dataset:
    """The weights' file, the folder of photographs, and the dataset that was built of them."""

    weights: Path
    photos: Path
    dataset: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Sam2Dataset:
    folder = tmp_path_factory.mktemp("sam2")
    weights = save_official(overfitted_sam(), folder / "sam2.1_overfitted.pt")
    photos = folder / "photos"
    photos.mkdir()
    for name in PHOTOGRAPHS:
        Image.fromarray(photograph(name)).save(photos / f"{name}.png")
    rows = [{"uri": f"{name}.png", "license": "CC0-1.0", "image_id": name} for name in PHOTOGRAPHS]
    config = write_config(
        folder / "build.yaml",
        write_catalog(photos / "catalog.jsonl", rows),
        folder / "dataset",
        masks={"profile": "sam2", "points_per_side": POINTS_PER_SIDE},
        model={"weights": str(weights), "device": "cpu", "threads": 1},
    )
    segmint("build", config, timeout=900)
    return Sam2Dataset(weights, photos, folder / "dataset")


def best_ious(counts: list[str], size: tuple[int, int], wanted: np.ndarray) -> np.ndarray:
    """The best IoU of each mask (height, width) among `wanted` (N, height, width)."""
    known = [coco.encode(np.asfortranarray(each.astype(np.uint8))) for each in wanted]
    found = [{"size": list(size), "counts": each.encode()} for each in counts]
    return np.max(coco.iou(found, known, [0] * len(known)), axis=1)


def test_every_image_has_masks_of_the_regions_that_the_weights_know(made: Sam2Dataset) -> None:
    samples = list(open_dataset(str(made.dataset)))
    assert [sample.row["image_id"] for sample in samples] == list(PHOTOGRAPHS)
    for sample in samples:
        assert len(sample.masks) >= FEWEST
        height, width = sample.image.shape[:2]
        known = regions(photograph(sample.row["image_id"]), (height, width))
        ious = best_ious([mask.counts for mask in sample.masks], (height, width), known)
        assert np.count_nonzero(ious > 0.8) >= FEWEST, np.sort(ious)
        assert all(mask.predicted_iou > 0.8 and mask.stability_score >= 0.95 for mask in sample.masks)


def test_the_audit_finds_nothing(made: Sam2Dataset, tmp_path: Path) -> None:
    segmint("audit", made.dataset, "--complete", "--privacy-sample", "all", "--json", "-o", tmp_path / "audit.json")
    report = json.loads((tmp_path / "audit.json").read_bytes())
    assert (report["findings_total"], report["findings"]) == (0, [])


def test_the_export_for_coco_has_every_mask(made: Sam2Dataset, tmp_path: Path) -> None:
    segmint("export", made.dataset, "--format", "coco", "-o", tmp_path / "coco")
    exported = COCO(tmp_path / "coco" / "instances.json")
    for sample in open_dataset(str(made.dataset)):
        annotations = exported.loadAnns(exported.getAnnIds(imgIds=[sample.id]))
        assert [each["segmentation"]["counts"] for each in annotations] == [mask.counts for mask in sample.masks]


def test_single_photographs_get_masks_by_the_command(made: Sam2Dataset, tmp_path: Path) -> None:
    words = ["--profile", "sam2", "--set", f"points_per_side={POINTS_PER_SIDE}", "--device", "cpu"]
    photo = made.photos / f"{PHOTOGRAPHS[0]}.png"
    segmint("masks", photo, "-o", tmp_path / "masks.json", "--weights", made.weights, *words)
    annotations = json.loads((tmp_path / "masks.json").read_bytes())["annotations"]
    assert len(annotations) >= FEWEST
    (sample,) = (each for each in open_dataset(str(made.dataset)) if each.row["image_id"] == PHOTOGRAPHS[0])
    size = sample.image.shape[:2]
    decoded = coco.decode([{"size": list(size), "counts": mask.counts.encode()} for mask in sample.masks])
    ious = best_ious([each["segmentation"]["counts"] for each in annotations], size, decoded.transpose(2, 0, 1))
    assert np.count_nonzero(ious > 0.8) >= FEWEST, np.sort(ious)
