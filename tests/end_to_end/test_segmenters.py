"""Segmenters in real builds: the example of the page, a killed and resumed build, and segmenters that fail."""

import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from segmint.catalogs.dataset.reading.torch_dataset import open_dataset
from segmint.infra.errors import UsageError
from segmint.infra.ray_session import Cluster
from segmint.infra.storage.storage import Storage
from segmint.pipeline.building.dataset import open_or_create
from segmint.pipeline.config.config import load_config
from segmint.pipeline.quality.audit.integrity import audit_integrity
from tests.support.builds import (
    NO_DETECTORS,
    ONE_EACH,
    ROOT,
    SMALL,
    digests,
    segmint,
    segmint_here,
    small_catalog,
    write_config,
)
from tests.support.cells import examples_of
from tests.support.locations import location_of
from tests.support.runs import running, wait_for

pytestmark = pytest.mark.ray

HERE = "tests.support.segmenters"
PREPARE = {"prepare": {"actors": 1, "num_cpus": 0.5}}
TWO = {"actors": 2, "num_cpus": 1}
ONE = {"actors": 1, "num_cpus": 1}


def configured(path: Path, catalog: Path, output: Path, segmenter: dict[str, Any], **changes: Any) -> Path:
    """A configuration without any key of SAM."""
    kept = {key: value for key, value in SMALL.items() if key not in ("masks", "model", "resources")}
    ours = {"catalog": str(catalog), "output": str(output), "deidentify": NO_DETECTORS, "resources": PREPARE}
    path.write_text(json.dumps({**kept, **ours, "segmenter": segmenter, **changes}), encoding="utf-8")
    return path


def table(dataset: Path, kind: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.ParquetDataset(sorted((dataset / kind).iterdir())).read().to_pylist()
    return rows


def findings(dataset: Path) -> list[str]:
    return [finding.line() for finding in audit_integrity(location_of(dataset)).findings]


def test_the_example_of_the_page_makes_a_dataset(
    tmp_path: Path, local_ray: Cluster, worker_modules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example, of_version = examples_of(ROOT / "docs" / "own-model.md")
    assert len(example.splitlines()) <= 25
    assert "def version(cls" in of_version
    (worker_modules / "lamps.py").write_text(example, encoding="utf-8")
    monkeypatch.syspath_prepend(str(worker_modules))
    catalog, dataset = small_catalog(tmp_path / "photos", count=6), tmp_path / "dataset"
    lamps = {"stage": "lamps.Lamps", "arguments": {"least": 200}, "filters": {"min_area": 20}, "resources": ONE}
    lamps |= {"license": "mit", "terms": "https://example.org/terms"}
    mean = {"stage": "tests.support.custom_stages.Mean", "after": "prepare"}
    ranks = {"stage": "tests.support.custom_stages.Ranks"}
    config = configured(tmp_path / "build.yaml", catalog, dataset, lamps, stages=[mean, ranks])
    printed = segmint_here("build", config)
    assert "ceiling" not in printed
    (busy,) = [line for line in printed.splitlines() if line.startswith("busy")]
    assert "stage_lamps" in busy
    assert "segment" not in busy
    assert findings(dataset) == []

    images = table(dataset, "images")
    assert len(images) == 4
    for sample, row in zip(open_dataset(str(dataset)), images, strict=True):
        bright = cv2.inRange(np.asarray(sample.image).max(axis=2), 200, 255)
        count, labels = cv2.connectedComponents(bright)
        expected = [labels == number for number in range(1, count) if (labels == number).sum() >= 20]
        assert len(sample.masks) == len(expected) == row["masks"] == row["funnel"]["written"]
        assert row["funnel"]["predicted"] == count - 1
        for mask, pixels in zip(sample.masks, expected, strict=True):
            assert np.array_equal(mask.mask, pixels)
            assert mask.label in ("lamp", "größte")
    manifest = json.loads((dataset / "dataset.json").read_bytes())
    assert manifest["weights"]["name"] == "lamps.Lamps"
    terms = {"license": "MIT", "terms": "https://example.org/terms", "weights_sha256": None}
    assert manifest["segmenter"] == terms
    assert not {"masks", "model"} & manifest["config"].keys()
    assert manifest["numerics"]["device"] == "segmenter"
    masks = table(dataset, "masks")
    assert {mask["label_source"] for mask in masks if mask["label"] == "lamp"} == {
        f"model:{manifest['weights']['sha256']}"
    }
    assert {(mask["predicted_iou"], mask["stability_score"], tuple(mask["point_coords"])) for mask in masks} == {
        (None, None, ())
    }
    segmint_here("report", dataset, "-o", tmp_path / "report")
    card = (tmp_path / "report" / "README.md").read_text(encoding="utf-8")
    assert 'segmenter lamps.Lamps, version 1, arguments {"least": 200}, filters {"min\\_area": 20}, SHA-256' in card
    assert "License of the model: MIT; terms: https://example.org/terms." in card
    assert "Segment Anything" not in card
    made_by = json.loads((tmp_path / "report" / "croissant.json").read_bytes())["isBasedOn"]
    assert (made_by["license"], made_by["usageInfo"]) == ("https://spdx.org/licenses/MIT.html", terms["terms"])
    assert made_by["identifier"] == f"sha256:{manifest['weights']['sha256']}"
    coco = tmp_path / "coco"
    segmint_here("export", dataset, "--format", "coco", "-o", coco)
    exported = json.loads((coco / "instances.json").read_bytes())
    names = {category["id"]: category["name"] for category in exported["categories"]}
    assert sorted(names[each["category_id"]] for each in exported["annotations"]) == sorted(
        mask["label"] for mask in masks
    )

    monkeypatch.setattr("lamps.Lamps.version", "2")
    with pytest.raises(UsageError, match=r"segmenter\.version: '1' before, '2' now"):
        open_or_create(load_config(str(config)), Storage())
    monkeypatch.undo()
    monkeypatch.syspath_prepend(str(worker_modules))
    for change, told in (
        ({"arguments": {"least": 201}}, r"segmenter\.arguments\.least: 200 before, 201 now"),
        ({"filters": {"nms_iou": 0.5}}, r"segmenter\.filters\.nms_iou: absent before, 0\.5 now"),
    ):
        configured(config, catalog, dataset, {**lamps, **change}, stages=[mean, ranks])
        with pytest.raises(UsageError, match=told):
            open_or_create(load_config(str(config)), Storage())


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_killed_and_resumed_build_gives_the_bytes_of_an_undisturbed_one(tmp_path: Path, local_ray: Cluster) -> None:
    catalog, kills = small_catalog(tmp_path / "photos", count=8), tmp_path / "kills"
    kills.mkdir()
    arguments = {"kills": str(kills)}
    bright = {"stage": f"{HERE}.Bright", "arguments": arguments, "filters": {"nms_iou": 0.6}, "resources": TWO}
    shards = {"images_per_shard": 1, "rows_per_block": 1}
    undisturbed = configured(tmp_path / "one.yaml", catalog, tmp_path / "one", bright, **shards)
    segmint_here("build", undisturbed)
    assert findings(tmp_path / "one") == []

    killed = configured(tmp_path / "two.yaml", catalog, tmp_path / "two", {**bright, "batch_size": 2}, **shards)
    with running(killed) as run:
        wait_for("a commit", lambda: list((tmp_path / "two" / "commits").glob("*")), run)
        run.kill()
    assert len(list((tmp_path / "two" / "commits").glob("*"))) < 8
    (kills / "8").touch()
    (kills / "7").touch()
    segmint_here("build", killed)
    assert list(kills.iterdir()) == [kills / "8"], "the last row has no image"
    assert digests(tmp_path / "two") == digests(tmp_path / "one")
    assert findings(tmp_path / "two") == []


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (
            "raise",
            'line \\d+, in found\n    raise ValueError\\(f"no masks for image .*\nValueError: no masks for image 1',
        ),
        ("size", "MaskError: mask 0 is an array of bool with the shape .192, 257.: expected bool pixels"),
        ("forget", "the segmenter faulty returned image 1 without masks: it must call with_masks"),
        ("die", "it ended its worker, or it took longer than"),
    ],
)
def test_a_bug_shows_before_anything_is_created(tmp_path: Path, local_ray: Cluster, how: str, told: str) -> None:
    catalog = small_catalog(tmp_path / "photos", count=4)
    faulty = {"stage": f"{HERE}.Faulty", "arguments": {"how": {"control": how}}, "resources": ONE}
    config = configured(tmp_path / "build.yaml", catalog, tmp_path / "dataset", faulty)
    with pytest.raises(UsageError, match=told) as caught:
        open_or_create(load_config(str(config)), Storage())
    assert f"the segmenter {HERE}.Faulty failed on a control image of 256 x 192 pixels" in str(caught.value)
    assert not (tmp_path / "dataset").exists()


def test_a_segmenter_that_hangs_or_lacks_resources_is_refused(tmp_path: Path, local_ray: Cluster) -> None:
    catalog = small_catalog(tmp_path / "photos", count=4)
    for how, resources, told in (
        ("hang", {"timeout_s": 1}, r"or it took longer than its resources\.timeout_s = 1 seconds"),
        ("raise", {"num_gpus": 1}, r"an actor of the segmenter \S+ needs 1 GPUs, but the cluster has 0"),
        ("raise", {"num_cpus": 10_000}, r"an actor of the segmenter \S+ needs 10000 CPUs, but the cluster has"),
    ):
        faulty = {"stage": f"{HERE}.Faulty", "arguments": {"how": {"control": how}}, "resources": {**ONE, **resources}}
        config = configured(tmp_path / "build.yaml", catalog, tmp_path / "dataset", faulty)
        with pytest.raises(UsageError, match=told):
            open_or_create(load_config(str(config)), Storage())
    adding = {"stage": f"{HERE}.Faulty", "arguments": {"how": {"control": "sum"}}, "after": "segment"}
    config = write_config(tmp_path / "adding.yaml", catalog, tmp_path / "dataset", stages=[adding])
    with pytest.raises(UsageError, match=r"Faulty failed on a control image(.|\n)*MaskError: mask 0: the RLE counts"):
        open_or_create(load_config(str(config)), Storage())
    assert not (tmp_path / "dataset").exists()


def test_images_for_which_a_segmenter_fails_are_rejected_if_it_says_so(tmp_path: Path, local_ray: Cluster) -> None:
    catalog, dataset = small_catalog(tmp_path / "photos", count=8), tmp_path / "dataset"
    how = {"1": "raise", "2": "size", "4": "nan", "5": "sum", "6": "many"}
    faulty = {"stage": f"{HERE}.Faulty", "arguments": {"how": how}, "on_error": "reject", "resources": ONE}
    segmint_here("build", configured(tmp_path / "build.yaml", catalog, dataset, faulty))
    rejects = {row["id"]: row for row in table(dataset, "rejects")}
    assert {id: (row["stage"], row["reason"]) for id, row in rejects.items()} == {
        1: ("stage_faulty", "stage_failed"),
        2: ("stage_faulty", "stage_failed"),
        3: ("catalog", "license_not_allowed"),
        4: ("stage_faulty", "stage_failed"),
        5: ("stage_faulty", "stage_failed"),
        6: ("stage_faulty", "too_many_masks"),
        8: ("read", "not_found"),
    }
    assert re.fullmatch(r"ValueError: no masks for image 1 \(segmenters\.py, line \d+\)", rejects[1]["detail"])
    assert rejects[4]["detail"].startswith("MaskError: mask 0: score: Input should be a finite number")
    assert [row["id"] for row in table(dataset, "images")] == [7]
    assert findings(dataset) == []
    printed = segmint_here("build", tmp_path / "build.yaml", "--retry-rejected", "stage_failed")
    assert "stage_failed                    4" in printed


@pytest.mark.long
def test_an_error_holds_its_shard_by_default(tmp_path: Path, local_ray: Cluster) -> None:
    catalog, dataset = small_catalog(tmp_path / "photos", count=6), tmp_path / "dataset"
    faulty = {"stage": f"{HERE}.Faulty", "arguments": {"how": {"1": "nan"}}, "resources": ONE}
    config = configured(tmp_path / "build.yaml", catalog, dataset, faulty, images_per_shard=2)
    printed = segmint_here("build", config, check=3)
    assert "stage_faulty: " in printed
    assert "mask 0: score: Input should be a finite number" in printed
    assert [row["id"] for row in table(dataset, "images")] == [4, 5]


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_an_image_that_kills_or_hangs_a_segmenter_is_rejected_alone(tmp_path: Path) -> None:
    catalog = small_catalog(tmp_path / "photos", count=6)
    for how, reason in (("die", "killed_worker"), ("hang", "timed_out")):
        dataset = tmp_path / how
        faulty = {
            "stage": f"{HERE}.Faulty",
            "arguments": {"how": {"2": how}},
            "resources": {**TWO, "timeout_s": 5},
            "on_error": "reject",
        }
        segmint("build", configured(tmp_path / f"{how}.yaml", catalog, dataset, faulty), timeout=900)
        rejects = {row["id"]: row for row in table(dataset, "rejects")}
        assert (rejects[2]["stage"], rejects[2]["reason"]) == ("stage_faulty", reason)
        assert [row["id"] for row in table(dataset, "images")] == [1, 4, 5]
        assert findings(dataset) == []

    dataset = tmp_path / "added"
    arguments = {"how": {"1": "die", "4": "raise", "5": "many"}}
    stage = {"stage": f"{HERE}.Faulty", "arguments": arguments, "after": "segment", "on_error": "reject"}
    config = write_config(
        tmp_path / "added.yaml", catalog, dataset, stages=[stage], deidentify=NO_DETECTORS, resources=ONE_EACH
    )
    segmint("build", config, timeout=900)
    rejects = {row["id"]: (row["stage"], row["reason"]) for row in table(dataset, "rejects")}
    assert [rejects[id] for id in (1, 4, 5)] == [
        ("stage_faulty", "killed_worker"),
        ("stage_faulty", "stage_failed"),
        ("stage_faulty", "too_many_masks"),
    ]
    assert [row["id"] for row in table(dataset, "images")] == [2]
    masks = table(dataset, "masks")
    assert [mask["model"] is None for mask in masks] == [*[True] * (len(masks) - 1), False]
    assert findings(dataset) == []


def test_the_redacted_original_is_the_size_of_the_photograph(tmp_path: Path, local_ray: Cluster) -> None:
    catalog, dataset = small_catalog(tmp_path / "photos", count=4), tmp_path / "dataset"
    Image.open(tmp_path / "photos" / "photo_001.jpg").resize((160, 80)).save(tmp_path / "photos" / "photo_001.jpg")
    original = {"stage": f"{HERE}.Original", "resources": ONE}
    release = {"short_side": 90}
    segmint_here("build", configured(tmp_path / "build.yaml", catalog, dataset, original, release=release))
    assert [(row["width"], row["height"]) for row in table(dataset, "images")] == [(120, 90), (160, 80)]
    prompts = [mask["prompts"][0] for mask in table(dataset, "masks")]
    assert [(prompt["kind"], prompt["text"]) for prompt in prompts] == [("text", "240 x 180"), ("text", "160 x 80")]
    assert findings(dataset) == []
