"""Builds with a segmenter, a model of `transformers`, and SAM on two actors. One actor and then the driver are killed:
the resumed build is whole, and its masks survive COCO and the import into another build of the same photographs."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from segmint.catalogs.dataset.reading.torch_dataset import open_dataset
from segmint.pipeline.corrections.apply.columns import label
from tests.end_to_end.test_segmenters import HERE, configured, findings
from tests.support.builds import AS_SHIPPED, digests, segmint, segmint_here, small_catalog, write_config
from tests.support.labeled import shades
from tests.support.locations import location_of
from tests.support.runs import BuildProcess, assert_gone, finish, running, title, wait_for
from tests.support.tiny_transformers import write_sam2

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(2400), pytest.mark.usefixtures("one_thread")]

ROWS = 10
SHARDS: dict[str, Any] = {"images_per_shard": 1, "rows_per_block": 1}
TWO = {"actors": 2, "num_cpus": 0.5}
FEW: dict[str, Any] = {
    "points_per_crop": 2,
    "pred_iou_thresh": -9.0,
    "stability_score_thresh": 0.0,
    "crops_nms_thresh": 1.0,
}
MAKERS = {"toy": "stage_bright", "transformers": "stage_mask_generation", "sam": "Segment"}
"""Makers of masks, and the names of their actors."""


def config_of(folder: Path, maker: str, catalog: Path, model: Path) -> Path:
    """Write the configuration of a build whose masks `maker` makes. `model` is a folder of `transformers`."""
    folder.mkdir()
    path, output = folder / "build.yaml", folder / "dataset"
    if maker == "sam":
        actors = {"prepare": {"actors": 1, "num_cpus": 0.5}, "segment": TWO}
        return write_config(path, catalog, output, **SHARDS, model=AS_SHIPPED, resources=actors)
    if maker == "toy":
        segmenter = {"stage": f"{HERE}.Bright", "filters": {"nms_iou": 0.6}, "resources": TWO}
    else:
        arguments = {"folder": str(model), **FEW}
        segmenter = {"stage": "segmint.transformers.MaskGeneration", "arguments": arguments, "resources": TWO}
    return configured(path, catalog, output, segmenter, **SHARDS)


def actors_of(run: BuildProcess, maker: str) -> list[psutil.Process]:
    return [process for process in run.below() if f"MapWorker(MapBatches({MAKERS[maker]}))" in title(process)]


def commits_of(config: Path) -> int:
    return len(list((config.parent / "dataset" / "commits").glob("*.json")))


@pytest.mark.parametrize("maker", MAKERS)
def test_a_build_that_lost_an_actor_and_its_driver_is_resumed_and_its_masks_survive_coco(
    tmp_path: Path, maker: str
) -> None:
    catalog, model = small_catalog(tmp_path / "photos", count=ROWS), write_sam2(tmp_path / "sam2")
    undisturbed, killed = (config_of(tmp_path / name, maker, catalog, model) for name in ("undisturbed", "killed"))
    segmint("build", undisturbed, timeout=900)
    with running(killed) as run:
        wait_for("two actors", lambda: len(actors_of(run, maker)) == 2, run)
        wait_for("a commit", lambda: commits_of(killed), run)
        actors_of(run, maker)[0].kill()
        before = commits_of(killed)
        wait_for("another commit", lambda: commits_of(killed) > before, run)
        run.kill()
        run.wait()
        committed = commits_of(killed)
        assert committed < ROWS
        assert_gone(run)
    finish(killed)
    print(f"{maker}: the driver was killed after {committed} commits")
    one, two = undisturbed.parent / "dataset", killed.parent / "dataset"
    whole = {path: digest for path, digest in digests(two).items() if not Path(path).name.startswith(".tmp-")}
    assert whole.keys() == digests(one).keys()
    if maker != "transformers":  # whose masks aren't promised bit for bit
        assert whole == digests(one)
    assert findings(two) == []

    if maker != "toy":  # whose masks have no labels yet
        label(location_of(two), shades())
        assert findings(two) == []
    coco, other = tmp_path / "coco", tmp_path / "other" / "dataset"
    segmint_here("export", two, "--format", "coco", "-o", coco)
    exported = json.loads((coco / "instances.json").read_bytes())
    assert all(annotation["label_source"].startswith("model:") for annotation in exported["annotations"])
    other_masks = {"stage": f"{HERE}.Bright", "arguments": {"threshold": 150, "largest": 3}, "resources": TWO}
    other.parent.mkdir()
    segmint("build", configured(other.parent / "build.yaml", catalog, other, other_masks), timeout=900)
    segmint_here("import", other, coco / "instances.json", "--replace", "--yes")
    assert findings(other) == []
    samples = list(open_dataset(str(two)))
    assert len(samples) == ROWS - 2
    assert sum(len(sample.masks) for sample in samples) >= len(samples)
    for mine, theirs in zip(samples, open_dataset(str(other)), strict=True):
        assert mine.id == theirs.id
        # A random model makes some masks twice, which an import leaves out.
        exported_masks, imported_masks = ({mask.counts: mask for mask in sample.masks} for sample in (mine, theirs))
        assert exported_masks.keys() == imported_masks.keys()
        assert len(theirs.masks) == len(imported_masks)
        if maker != "transformers":
            assert len(mine.masks) == len(theirs.masks)
        for counts, imported in imported_masks.items():
            mask = exported_masks[counts]
            assert np.array_equal(mask.mask, imported.mask)
            assert (mask.label, mask.bbox, mask.area) == (imported.label, imported.bbox, imported.area)
            assert (imported.label_source, imported.label_score) == ("import", None)
    for folder in (undisturbed.parent, killed.parent, other.parent, coco):
        shutil.rmtree(folder)
