"""Opening a dataset: begun once and then the same, or refused with the name of what differs."""

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.digest import current_digest
from segmint.catalogs.dataset.inventory import unknown_files
from segmint.catalogs.dataset.manifest import (
    ModelWeights,
    load_latest_manifest,
    load_manifest,
    read_dataset_id,
    read_manifest,
)
from segmint.catalogs.dataset.reader import Dataset
from segmint.catalogs.dataset.sweep import sweep
from segmint.catalogs.dataset.tombstones import TakedownRequest
from segmint.catalogs.layout import DamagedDatasetError, ShardPart, json_sha256, part_path
from segmint.catalogs.source.files import catalog_sha256
from segmint.catalogs.source.normalize import NormalizedCatalog, normalize
from segmint.infra.assets import ASSETS
from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import StorageFaultError
from segmint.infra.storage.storage import Storage
from segmint.infra.version import VERSION
from segmint.operators.prepare.deidentify import RULE
from segmint.operators.segment.numerics import CPU_ONLY, Numerics
from segmint.pipeline.build import run_build
from segmint.pipeline.building.dataset import BuildDataset, begin, name_weights, open_or_create
from segmint.pipeline.building.first_numerics import first_device
from segmint.pipeline.building.plan import PlanOptions, make_plan
from segmint.pipeline.commands.cli import app
from segmint.pipeline.config.config import (
    Config,
    detector_hashes,
    identity,
    load_config,
    prepare_config,
    segment_settings,
)
from segmint.pipeline.corrections.amend import amend
from segmint.pipeline.corrections.takedown import takedown
from tests.support.builds import digests, write_catalog, write_config
from tests.support.committed_shard import change_manifest
from tests.support.lineages import training_json
from tests.support.locations import location_of
from tests.support.onnx_detectors import listed, yunet
from tests.support.planting import change_commit
from tests.support.stubbed import write_dataset as write_stubbed

PROMPTED = {"stage": "segmint.PromptedMasks", "after": "segment", "arguments": {"weights": "mobile_sam"}}


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    rows = [{"uri": f"photo_{i}.jpg", "license": "CC0-1.0" if i % 2 else "CC-BY-4.0"} for i in range(8)]
    return write_catalog(tmp_path / "catalog.jsonl", rows)


def config(folder: Path, catalog: Path, **changes: Any) -> Config:
    return load_config(str(write_config(folder / "build.yaml", catalog, folder / "dataset", **changes)))


@pytest.mark.usefixtures("weights")
def test_auto_weights_are_those_of_the_device_or_of_the_dataset(
    tmp_path: Path, catalog: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = open_or_create(config(tmp_path, catalog), Storage())
    assert begun.manifest.weights == ModelWeights(name="mobile_sam", sha256=ASSETS["mobile_sam"].sha256)
    assert begun.manifest.config["model"] == {"weights": ASSETS["mobile_sam"].sha256}
    named = {"weights": "mobile_sam", "device": "cpu", "threads": 1}
    assert open_or_create(config(tmp_path, catalog, model=named), Storage()).manifest == begun.manifest
    settings = segment_settings(config(tmp_path, catalog), begun.numerics, begun.manifest)
    assert settings.weights == "mobile_sam"

    # A GPU node that is added later doesn't change the dataset's weights.
    monkeypatch.setattr("segmint.pipeline.building.dataset.first_device", lambda _: "cuda")
    assert open_or_create(config(tmp_path, catalog), Storage()).manifest == begun.manifest
    (tmp_path / "new").mkdir()
    monkeypatch.setenv("SEGMINT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("segmint.infra.assets.download", refuse_download)
    words = (
        r"^model\.weights is auto, which means vit_h on a GPU: no usable copy of vit_h(.|\n)*segmint assets fetch vit_h"
    )
    with pytest.raises(UsageError, match=words):
        open_or_create(config(tmp_path / "new", catalog), Storage())


def refuse_download(*_: object) -> Path:
    raise OSError("no network")


@pytest.mark.usefixtures("weights")
def test_a_dataset_is_begun_with_all_that_pins_it(tmp_path: Path, catalog: Path) -> None:
    dataset = open_or_create(config(tmp_path, catalog), Storage())
    manifest = read_manifest(location_of(tmp_path / "dataset"))
    assert dataset.manifest == manifest
    assert (dataset.rows, dataset.shards()) == (8, range(3))
    assert [(span.start, span.stop) for span in dataset.spans([0, 1, 2])] == [(0, 3), (3, 6), (6, 8)]
    assert manifest.licenses == {"CC-BY-4.0": 4, "CC0-1.0": 4}
    assert dataset.numerics.threads == 1
    assert manifest.numerics_fingerprint == dataset.numerics.fingerprint
    table = dataset.read_runs([(0, 3), (6, 8)])
    assert table.column("ordinal").to_pylist() == [0, 1, 2, 6, 7]
    assert table.column("uri").to_pylist()[0] == "photo_0.jpg"


@pytest.mark.usefixtures("weights")
def test_opening_again_changes_no_byte(tmp_path: Path, catalog: Path) -> None:
    open_or_create(config(tmp_path, catalog), Storage())
    location = location_of(tmp_path / "dataset")
    before, known, digest = digests(tmp_path / "dataset"), read_dataset_id(location), current_digest(location)
    open_or_create(config(tmp_path, catalog, rows_per_block=7, max_reject_ratio=0.9), Storage())
    assert digests(tmp_path / "dataset") == before
    assert known is not None
    assert (read_dataset_id(location), unknown_files(location)) == (known, [])
    (location / "id.json").delete()
    open_or_create(config(tmp_path, catalog), Storage())
    assert read_dataset_id(location) not in (None, known), "a build adds an id that is missing"
    assert current_digest(location) == digest


@pytest.mark.usefixtures("weights")
def test_two_builds_of_the_same_input_write_equal_commits_and_have_one_digest(tmp_path: Path, catalog: Path) -> None:
    """Their random ids are the only difference; another policy date makes other commits."""
    commits, known, found = [], set(), []
    for name, day in (("first", "2026-11-20"), ("second", "2026-11-20"), ("third", "2026-11-21")):
        terms = {"allow": ["CC0-1.0", "CC-BY-4.0"], "policy_date": day}
        write_stubbed(write_config(tmp_path / f"{name}.yaml", catalog, tmp_path / name, license=terms))
        location = location_of(tmp_path / name)
        commits.append({path.name: path.read_bytes() for path in (tmp_path / name / "commits").iterdir()})
        known.add(read_dataset_id(location))
        found.append(current_digest(location))
        builds = {commit.build_sha256 for commit in CommitLog(location).read_all()}
        assert builds == {load_manifest(location).build_sha256}
    assert len(known) == 3
    assert commits[0] == commits[1]
    assert found[0] == found[1]
    assert not set(commits[0].values()) & set(commits[2].values())


def test_weights_that_were_trained_give_their_lineage_at_the_first_start(
    tmp_path: Path, catalog: Path, mobile_sam_path: Path
) -> None:
    weights = tmp_path / "sam-retrained.pth"
    weights.symlink_to(mobile_sam_path)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    training = training_json()
    training["weights"] = training["lineage"][-1]["weights"] = digest
    (tmp_path / "training.json").write_text(json.dumps(training))
    given = config(tmp_path, catalog, model={"weights": str(weights), "threads": 1, "device": "cpu"})
    begun = open_or_create(given, Storage()).manifest
    assert begun.round == 1
    assert [link.name for link in begun.lineage] == ["mobile_sam", "sam-1.pth"]
    assert begun.lineage[-1].held_out is not None
    before = digests(tmp_path / "dataset")
    (tmp_path / "training.json").unlink()
    assert open_or_create(given, Storage()).manifest == begun
    other = begun.model_copy(update={"config": {**begun.config, "model": {"weights": "0" * 64}}})
    with pytest.raises(UsageError, match=r"with the weights 'sam-retrained\.pth', which aren't a published file: set"):
        name_weights(config(tmp_path, catalog), other, first_device)
    assert digests(tmp_path / "dataset") == before


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"images_per_shard": 4}, "images_per_shard: 3 before, 4 now"),
        ({"name": "other"}, "name: 'small' before, 'other' now"),
        ({"release": {"jpeg_quality": 90}}, "release.jpeg_quality: 95 before, 90 now"),
        ({"license": {"allow": ["CC0-1.0"]}}, "license.allow"),
        ({"model": {"threads": 2, "device": "cpu"}}, "model.threads: 1 before, 2 now"),
        ({"model": {"encoder": "compiled"}}, "model.encoder: 'eager' before, 'compiled' now"),
    ],
)
def test_what_differs_is_named(tmp_path: Path, catalog: Path, changes: dict[str, Any], key: str) -> None:
    open_or_create(config(tmp_path, catalog), Storage())
    before = digests(tmp_path / "dataset")
    with pytest.raises(UsageError, match=key):
        open_or_create(config(tmp_path, catalog, **changes), Storage())
    assert digests(tmp_path / "dataset") == before


@pytest.mark.usefixtures("weights")
def test_a_dataset_that_was_begun_in_bf16_on_a_cpu_is_read_but_not_built(small_dataset: Path, dataset: Path) -> None:
    begun = load_manifest(location_of(dataset))
    numerics = {**begun.numerics, "precision": "bf16", "kernels": "lanes16-1+dot"}
    change_manifest(dataset, numerics=numerics, code_version="0.3.0")
    assert load_manifest(location_of(dataset)).numerics == numerics
    assert len(list(Dataset.open(location_of(dataset)))) == 6
    before = digests(dataset)
    wanted = small_dataset.parent / "build.yaml"
    for changes in ([], ["--set", "model.precision=bf16"]):
        done = CliRunner().invoke(app, ["build", str(wanted), "--set", f"output={dataset}", *changes])
        assert done.exit_code == 2, done.output
        assert f"{dataset} was created in bf16 on a CPU, which segmint {VERSION} reads and corrects, but" in done.stderr
        assert "continue with segmint 0.3.0, or choose another output" in done.stderr
    assert digests(dataset) == before


@pytest.mark.usefixtures("weights")
def test_of_two_that_begin_at_once_the_loser_leaves_the_winner_s_catalog_alone(tmp_path: Path, catalog: Path) -> None:
    """Both found nothing there, and each has normalized its own catalog before one of them puts the manifest."""
    winner = open_or_create(config(tmp_path, catalog), Storage())
    before = digests(tmp_path / "dataset")
    other = write_catalog(tmp_path / "other.jsonl", [{"uri": "another.jpg", "license": "CC0-1.0"}])
    given = config(tmp_path, other)
    standing = begin(given, winner.location, winner.weights)
    assert standing.manifest == winner.manifest
    assert before.items() <= digests(tmp_path / "dataset").items()


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize(
    "kept",
    [
        "commits/000000.g1.json",
        "shards/sa_000000-0123456789ab.tar",
        "versions/1.json",
        "catalog",
        "tombstones/0123456789ab.json",
        "dataset.g2.json",
    ],
)
def test_what_is_left_of_a_dataset_without_its_manifest_is_not_built_upon(
    tmp_path: Path, catalog: Path, kept: str
) -> None:
    begun = open_or_create(config(tmp_path, catalog), Storage())
    manifest = tmp_path / "dataset" / "dataset.json"
    manifest.unlink() if kept != "dataset.g2.json" else manifest.rename(manifest.with_name(kept))
    if kept.startswith(("commits", "shards", "versions", "tombstones")):
        (begun.location / kept).put(b"{}")
    other = write_catalog(tmp_path / "other.jsonl", [{"uri": "another.jpg", "license": "CC0-1.0"}])
    before = digests(tmp_path / "dataset")
    given = config(tmp_path, other, release={"jpeg_quality": 90})
    with pytest.raises(DamagedDatasetError, match=rf"{kept}.*no dataset\.json.*segmint repair|dataset.json is missing"):
        open_or_create(given, Storage())
    assert digests(tmp_path / "dataset") == before


@pytest.mark.parametrize("kind", ["shards", "empty", "catalog", "tombstones", "commits"])
def test_a_build_does_not_go_on_from_a_damaged_dataset(dataset: Path, small_dataset: Path, kind: str) -> None:
    given = load_config(str(small_dataset.parent / "build.yaml")).model_copy(update={"output": str(dataset)})
    if kind in {"shards", "catalog"}:
        min((dataset / kind).iterdir()).unlink()
    elif kind == "empty":
        os.truncate(min((dataset / "masks").iterdir()), 0)
    elif kind == "commits":
        change_commit(dataset, 0, build_sha256="ab" * 32)
    else:
        takedown(location_of(dataset), TakedownRequest(ids=("sa_1",)), "asked")
        (file,) = (dataset / kind).iterdir()
        file.write_bytes(file.read_bytes().replace(b'"sha256":"', b'"sha256":"0'))
    before = digests(dataset)
    with pytest.raises(
        DamagedDatasetError, match=r"(sa_000000-.*|part-0-.*|build_sha256 isn't the man.*|was changed).*repair"
    ):
        run_build(given)
    assert digests(dataset) == before


def test_a_build_of_all_shards_begins_with_a_sweep(dataset: Path, small_dataset: Path) -> None:
    given = load_config(str(small_dataset.parent / "build.yaml")).model_copy(update={"output": str(dataset)})
    old = dataset / "images" / ".tmp-dead"
    old.write_bytes(b"half of a table")
    os.utime(old, (1e9, 1e9))
    assert run_build(given, shards=(0, 3)).complete
    assert old.exists()
    assert run_build(given).complete
    assert not old.exists()


@pytest.mark.usefixtures("weights")
def test_a_start_that_was_killed_before_its_manifest_is_resumed(tmp_path: Path, catalog: Path) -> None:
    open_or_create(config(tmp_path, catalog), Storage())
    before = digests(tmp_path / "dataset")
    (tmp_path / "dataset" / "dataset.json").unlink()
    open_or_create(config(tmp_path, catalog), Storage())
    assert digests(tmp_path / "dataset") == before


@pytest.mark.usefixtures("weights")
def test_rows_that_the_source_gains_while_it_is_read_are_not_forgotten(
    tmp_path: Path, catalog: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the manifest had the hash of the new source, builds would take its new rows for known ones."""

    def normalize_and_append(*arguments: Any, **options: Any) -> NormalizedCatalog:
        result = normalize(*arguments, **options)
        with catalog.open("a") as file:
            file.write(json.dumps({"uri": "photo_8.jpg", "license": "CC0-1.0"}) + "\n")
        return result

    with monkeypatch.context() as patch:
        patch.setattr("segmint.pipeline.building.dataset.normalize", normalize_and_append)
        with pytest.raises(UsageError, match="has 1 new rows"):
            open_or_create(config(tmp_path, catalog), Storage())
    assert open_or_create(config(tmp_path, catalog), Storage(), grow=True).rows == 9


@pytest.mark.usefixtures("weights")
def test_the_same_rows_in_another_file_are_the_same_catalog(tmp_path: Path, catalog: Path) -> None:
    open_or_create(config(tmp_path, catalog), Storage())
    rewritten = tmp_path / "rewritten.csv"
    lines = [f"photo_{i}.jpg,{'CC0-1.0' if i % 2 else 'CC-BY-4.0'}" for i in range(8)]
    rewritten.write_text("uri,license\n" + "\n".join(lines) + "\n")
    open_or_create(config(tmp_path, rewritten), Storage())
    rewritten.write_text("uri,license\n" + "\n".join(lines[:-1]) + "\n")
    with pytest.raises(UsageError, match=r"(?s)1 of 8 rows are gone.*run `segmint takedown .*/dataset`"):
        open_or_create(config(tmp_path, rewritten), Storage())


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize(
    ("changes", "shards", "said"),
    [
        ({}, (3, 9), "--shards 3:9 names no shard: the dataset has shards 0 to 2"),
        ({"model": {"device": "cuda", "weights": "mobile_sam"}}, None, "torch sees no CUDA device here"),
        ({"catalog": "bad.csv"}, None, "row 1, column sha256"),
        ({"stages": [PROMPTED]}, None, r"the segmenter needs prompts, but no row of .*catalog\.jsonl has any"),
    ],
)
def test_a_refused_build_creates_nothing(
    tmp_path: Path,
    catalog: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    shards: tuple[int, int] | None,
    said: str,
) -> None:
    monkeypatch.setattr("segmint.pipeline.building.dataset.try_segmenters", lambda config: None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (tmp_path / "bad.csv").write_text("uri,license,sha256\na.jpg,MIT,1\n")
    if "catalog" in changes:
        catalog, changes = tmp_path / changes["catalog"], {}
    asked = config(tmp_path, catalog, **changes)
    with pytest.raises(UsageError, match=said):
        open_or_create(asked, Storage(), shards=shards)
    assert not (tmp_path / "dataset").exists()


@pytest.mark.usefixtures("weights")
def test_pools_that_never_fit_create_nothing(tmp_path: Path, catalog: Path) -> None:
    resources = {"address": "local", "segment": {"num_cpus": 10_000}}
    with pytest.raises(UsageError, match=r"the smallest pools do not fit: segment [12] x 10000 CPUs, prepare 1 x"):
        run_build(config(tmp_path, catalog, resources=resources))
    assert not (tmp_path / "dataset").exists()
    stage = {"stage": "tests.support.custom_stages.Mean", "resources": {"num_gpus": 1000}}
    with pytest.raises(UsageError, match="stages take 1000 GPUs, but the cluster has "):
        run_build(config(tmp_path, catalog, stages=[stage], resources={"address": "local"}))
    assert not (tmp_path / "dataset").exists()


@pytest.mark.usefixtures("weights")
def test_the_terms_of_a_stage_that_adds_masks_are_recorded(
    tmp_path: Path, catalog: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segmint.pipeline.building.dataset.try_segmenters", lambda config: None)
    bright = {"stage": "tests.support.segmenters.Bright", "after": "segment", "terms": "none"}
    stages = [{"stage": "tests.support.custom_stages.Mean"}, {**bright, "license": "apache-2.0"}]
    open_or_create(config(tmp_path, catalog, stages=stages), Storage())
    recorded = json.loads((tmp_path / "dataset" / "dataset.json").read_bytes())
    terms = {"license": "Apache-2.0", "terms": "none", "weights_sha256": None}
    assert (recorded["adding"], "segmenter" in recorded) == ({"bright": terms}, False)
    assert open_or_create(config(tmp_path, catalog, stages=[stages[0], bright]), Storage()).manifest.adding


@pytest.mark.usefixtures("weights")
def test_an_empty_catalog_begins_nothing(tmp_path: Path) -> None:
    empty = write_catalog(tmp_path / "empty.jsonl", [])
    with pytest.raises(UsageError, match="has no rows"):
        open_or_create(config(tmp_path, empty), Storage())
    assert not (tmp_path / "dataset" / "dataset.json").exists()


@pytest.mark.usefixtures("weights")
def test_ranges_of_shards_are_cut_to_the_dataset(tmp_path: Path, catalog: Path) -> None:
    dataset = open_or_create(config(tmp_path, catalog), Storage())
    assert dataset.shards((1, 99)) == range(1, 3)
    with pytest.raises(UsageError, match="names no shard"):
        dataset.shards((3, 5))
    assert [dataset.shards(ShardPart(index, 4)) for index in range(4)] == [
        range(0),
        range(1),
        range(1, 2),
        range(2, 3),
    ]


@pytest.mark.usefixtures("weights")
def test_a_detectors_file_is_pinned_by_its_hash(tmp_path: Path, catalog: Path) -> None:
    path = listed(tmp_path / "faces.onnx")
    first = path.read_bytes()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    detectors = {"faces": {"detector": str(path)}, "plates": {"detector": "none"}}
    given = config(tmp_path, catalog, deidentify=detectors)
    dataset = open_or_create(given, Storage())
    assert dataset.manifest.config["deidentify"]["faces"]["detector"] == digest
    assert str(tmp_path) not in (tmp_path / "dataset" / "dataset.json").read_text()
    assert detector_hashes(given, dataset.manifest) == {str(path): digest}
    assert prepare_config(given, dataset.manifest).detector_sha256 == {str(path): digest}

    path.write_bytes(b"somebody else's")
    with pytest.raises(UsageError, match=r"deidentify\.faces\.detector"):
        open_or_create(given, Storage())
    moved = path.rename(tmp_path / "other.onnx")
    moved.write_bytes(first)
    detectors["faces"]["detector"] = str(moved)
    open_or_create(config(tmp_path, catalog, deidentify=detectors), Storage())


@pytest.mark.usefixtures("weights")
def test_a_file_that_is_no_detector_begins_no_dataset(tmp_path: Path, catalog: Path) -> None:
    path = yunet(tmp_path / "faces.onnx", outputs=("cls_8", "obj_8"))
    given = config(tmp_path, catalog, deidentify={"faces": {"detector": str(path)}})
    with pytest.raises(UsageError, match=r"^deidentify\.faces\.detector: .* got cls_8, obj_8$"):
        open_or_create(given, Storage())
    assert not (tmp_path / "dataset").exists()


@pytest.mark.usefixtures("weights")
def test_a_dataset_of_another_rule_of_deidentification_is_refused(tmp_path: Path, catalog: Path) -> None:
    given = config(tmp_path, catalog)
    tree = open_or_create(given, Storage()).manifest.config
    assert tree["deidentify"]["rule"] == RULE
    tree = {**tree, "deidentify": {**tree["deidentify"], "rule": RULE + 1}}
    change_manifest(tmp_path / "dataset", config=tree, config_sha256=json_sha256(tree))
    with pytest.raises(UsageError, match=rf"deidentify\.rule: {RULE + 1} before, {RULE} now"):
        open_or_create(given, Storage())


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize("recorded", [0.8, 0.5, "off"])
def test_a_dataset_goes_on_dropping_artifacts_as_it_began(tmp_path: Path, catalog: Path, recorded: object) -> None:
    given = config(tmp_path, catalog)
    assert open_or_create(given, Storage()).manifest.config["masks"]["drop_redaction_artifacts"] == 0.8
    tree = load_manifest(location_of(tmp_path / "dataset")).config
    tree["masks"]["drop_redaction_artifacts"] = recorded
    change_manifest(tmp_path / "dataset", config=tree, config_sha256=json_sha256(tree))

    dataset = open_or_create(given, Storage())
    artifact_iou = segment_settings(given, dataset.numerics, dataset.manifest).artifact_iou
    assert artifact_iou == (recorded if isinstance(recorded, float) else None)


@pytest.mark.usefixtures("weights")
def test_a_dataset_begun_without_opt_outs_goes_on_without_them(tmp_path: Path, catalog: Path) -> None:
    given = config(tmp_path, catalog)
    allowed = [*given.license.allow]
    open_or_create(config(tmp_path, catalog, license={"allow": allowed, "respect_opt_out": False}), Storage())

    # The column has no meaning there, and must not change rows that the dataset has pinned.
    rows = [json.loads(line) for line in catalog.read_text().splitlines()]
    write_catalog(catalog, [{**row, "opt_out": "by post"} for row in rows])
    manifest = open_or_create(given, Storage()).manifest
    typed = tmp_path / "catalog.parquet"
    pq.write_table(pa.Table.from_pylist([{**row, "opt_out": 7} for row in rows]), typed)
    with_types = config(tmp_path, typed)
    assert open_or_create(with_types, Storage()).manifest == manifest
    checked = make_plan(with_types, PlanOptions()).checked
    assert checked is not None
    assert (checked.problems, checked.refused) == ([], {})
    pq.write_table(
        pa.Table.from_pylist([{**row, "opt_out": 7} for row in [*rows, {**rows[0], "uri": "new.jpg"}]]), typed
    )
    assert len(open_or_create(with_types, Storage(), grow=True).manifest.catalog) == 2
    assert not prepare_config(given, manifest).respect_opt_out
    with pytest.raises(UsageError, match=r"license\.respect_opt_out: False before, True now"):
        open_or_create(config(tmp_path, catalog, license={"allow": ["CC0-1.0"], "respect_opt_out": True}), Storage())


@pytest.mark.usefixtures("weights")
def test_a_dataset_keeps_the_device_of_its_detectors(tmp_path: Path, catalog: Path) -> None:
    on_cpu, on_gpu = (config(tmp_path, catalog, deidentify={"device": device}) for device in ("cpu", "cuda"))
    begun = open_or_create(on_cpu, Storage()).manifest
    assert "detectors" not in begun.numerics
    assert identity(on_cpu) == identity(on_gpu)
    with pytest.raises(UsageError, match=r"different numerics.*\n  deidentify\.device: 'cpu' before, 'cuda' now"):
        open_or_create(on_gpu, Storage())

    numerics = Numerics.recorded(begun.numerics).with_detectors("H200, CUDA 13").to_dict()
    assert numerics == {**begun.numerics, "detectors": "H200, CUDA 13"}
    change_manifest(tmp_path / "dataset", numerics=numerics)
    settings = prepare_config(on_gpu, open_or_create(on_gpu, Storage()).manifest)
    assert (settings.deidentify.device, settings.detector_numerics) == ("cuda", "H200, CUDA 13")
    with pytest.raises(UsageError, match=r"deidentify\.device: 'cuda' before, 'cpu' now"):
        open_or_create(on_cpu, Storage())


@pytest.mark.usefixtures("weights")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_detectors_on_a_gpu_that_is_not_there_begin_no_dataset(tmp_path: Path, catalog: Path) -> None:
    with pytest.raises(UsageError, match=r"^deidentify\.device: device 'cuda' was requested, but torch sees no CUDA"):
        open_or_create(config(tmp_path, catalog, deidentify={"device": "cuda"}), Storage())
    assert not (tmp_path / "dataset" / "dataset.json").exists()


@pytest.mark.parametrize("name", ["../evil", "a/b", ".hidden", "a\nb", ""])
def test_a_name_is_no_path(tmp_path: Path, catalog: Path, name: str) -> None:
    with pytest.raises(UsageError, match="name"):
        config(tmp_path, catalog, name=name)


def row(index: int, **changes: Any) -> dict[str, Any]:
    return {"uri": f"photo_{index}.jpg", "license": "CC0-1.0" if index % 2 else "CC-BY-4.0", **changes}


FIRST = [row(index) for index in range(8)]
LATER = [*(row(index) for index in (8, 9)), *reversed(FIRST), row(10), row(3), row(11)]
"""Four new rows; the known ones are in another order, one of them twice."""


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """The folder of a dataset of eight rows, three a shard."""
    open_or_create(configured(tmp_path, FIRST), Storage())
    return tmp_path / "dataset"


def read_shards(dataset: BuildDataset, *shards: int) -> pa.Table:
    return dataset.read_runs([(span.start, span.stop) for span in dataset.spans(shards)])


def configured(folder: Path, rows: list[dict[str, Any]], name: str = "catalog") -> Config:
    catalog = write_catalog(folder / f"{name}.jsonl", rows)
    return load_config(str(write_config(folder / f"{name}.yaml", catalog, folder / "dataset")))


def grown(folder: Path, rows: list[dict[str, Any]], storage: Storage | None = None, **options: str) -> BuildDataset:
    return open_or_create(configured(folder, rows, **options), storage or Storage(), grow=True)


@pytest.mark.usefixtures("weights")
def test_new_rows_are_refused_until_they_are_asked_for(tmp_path: Path, begun: Path) -> None:
    before = digests(begun)
    with pytest.raises(UsageError, match=r"has 4 new rows that are not in .*: pass --grow"):
        open_or_create(configured(tmp_path, LATER), Storage())
    assert digests(begun) == before


@pytest.mark.usefixtures("weights")
def test_new_rows_become_a_separate_part_with_its_shards(tmp_path: Path, begun: Path) -> None:
    before = digests(begun)
    dataset = grown(tmp_path, LATER)
    after = digests(begun)
    assert {path: digest for path, digest in after.items() if path in before} == before
    part = dataset.manifest.catalog[1]
    assert sorted(set(after) - set(before)) == [f"catalog/part-1-{part.sha256[:12]}.parquet", "dataset.g2.json"]
    assert (part.path, part.rows, part.first_shard) == (f"catalog/part-1-{part.sha256[:12]}.parquet", 4, 3)
    assert (dataset.rows, dataset.shards()) == (12, range(5))
    assert [(span.start, span.stop) for span in dataset.spans(range(5))] == [(0, 3), (3, 6), (6, 8), (9, 12), (12, 13)]
    rows = read_shards(dataset, 2, 3, 4).to_pylist()
    assert [(r["ordinal"], r["id"], r["uri"]) for r in rows] == [
        (6, 7, "photo_6.jpg"),
        (7, 8, "photo_7.jpg"),
        (9, 10, "photo_8.jpg"),
        (10, 11, "photo_9.jpg"),
        (11, 12, "photo_10.jpg"),
        (12, 13, "photo_11.jpg"),
    ]
    assert dataset.manifest.licenses == {"CC-BY-4.0": 6, "CC0-1.0": 6}
    assert load_latest_manifest(location_of(begun)) == (dataset.manifest, 2)


@pytest.mark.usefixtures("weights")
def test_a_grown_dataset_stays_the_same_and_grows_again(tmp_path: Path, begun: Path) -> None:
    grown(tmp_path, LATER)
    before = digests(begun)
    for grow in (False, True):
        open_or_create(configured(tmp_path, LATER), Storage(), grow=grow)
        open_or_create(configured(tmp_path, LATER[::-1]), Storage(), grow=grow)
    assert digests(begun) == before
    dataset = grown(tmp_path, [row(12), *LATER])
    assert [part.first_shard for part in dataset.manifest.catalog] == [0, 3, 5]
    assert read_shards(dataset, 5).column("uri").to_pylist() == ["photo_12.jpg"]
    assert load_latest_manifest(location_of(begun)).generation == 3


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (LATER[:5], "5 of 8 rows are gone; the first has the image_id 'photo_0.jpg'"),
        (
            [row(0, license="CC0-1.0"), *FIRST[1:], row(8)],
            "1 of 8 rows have another license; the first has the image_id 'photo_0.jpg': 'CC-BY-4.0' before",
        ),
        (
            [*FIRST[:5], *(row(index, attribution="Zoë") for index in (5, 6, 7))],
            "3 of 8 rows have another attribution; the first has the image_id 'photo_5.jpg': '' before, 'Zoë' now",
        ),
    ],
)
def test_pinned_rows_must_stay_as_they_were(tmp_path: Path, begun: Path, rows: list[dict[str, Any]], says: str) -> None:
    before = digests(begun)
    for grow in (False, True):
        with pytest.raises(UsageError) as caught:
            open_or_create(configured(tmp_path, rows), Storage(), grow=grow)
        assert says in str(caught.value)
        assert ("`segmint amend" in str(caught.value)) == ("attribution" in says)
    assert digests(begun) == before


class InterruptedBuild(Storage):
    """Real storage that does something once, before a put whose name has this ending."""

    def __init__(self, ending: str, act: Callable[[], object]) -> None:
        super().__init__()
        self._ending, self._act = ending, act

    def put_if_absent(self, uri: str, data: bytes) -> bool:
        self._interrupt(uri)
        return super().put_if_absent(uri, data)

    def put_file(self, uri: str, path: Path) -> None:
        self._interrupt(uri)
        super().put_file(uri, path)

    def _interrupt(self, uri: str) -> None:
        if uri.endswith(self._ending):
            act, self._act = self._act, lambda: None
            act()


@pytest.mark.usefixtures("weights")
def test_a_crash_before_the_manifest_leaves_nothing_visible(tmp_path: Path, begun: Path) -> None:
    def crash() -> None:
        raise StorageFaultError("the power is gone")

    with pytest.raises(StorageFaultError):
        grown(tmp_path, LATER, InterruptedBuild("dataset.g2.json", crash))
    assert len(list((begun / "catalog").iterdir())) == 2
    assert len(open_or_create(configured(tmp_path, FIRST), Storage()).manifest.catalog) == 1
    left = digests(begun)
    (reservation,) = [path for path in left if path.startswith("reservations/")]
    del left[reservation]
    grown(tmp_path, LATER)
    after = digests(begun)
    assert set(after) - set(left) == {"dataset.g2.json"}
    assert {path: digest for path, digest in after.items() if path in left} == left


@pytest.mark.usefixtures("weights")
def test_a_sweep_spares_the_part_that_a_growing_build_has_reserved(tmp_path: Path, begun: Path) -> None:
    def sweep_now() -> list[str]:
        return sweep(location_of(begun), timedelta(0), datetime.now(UTC) + timedelta(hours=1))

    def crash() -> None:
        assert sweep_now() == []
        raise StorageFaultError("the power is gone")

    with pytest.raises(StorageFaultError):
        grown(tmp_path, LATER, InterruptedBuild("dataset.g2.json", crash))
    (reserved,) = {path for path in digests(begun) if path.startswith("catalog/part-1-")}
    assert sweep_now() == []
    grown(tmp_path, LATER[::-1], name="reversed")  # its manifest is the generation that was reserved
    assert not list((begun / "reservations").iterdir())
    assert sweep_now() == [reserved]


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize("ending", [".parquet", "dataset.g2.json"])
def test_a_build_that_loses_goes_on_with_the_same_catalog(tmp_path: Path, begun: Path, ending: str) -> None:
    """Also where the winner's file has other bytes: the same rows in another order."""
    dataset = grown(tmp_path, LATER, InterruptedBuild(ending, lambda: grown(tmp_path, LATER[::-1], name="reversed")))
    assert load_latest_manifest(location_of(begun)) == (dataset.manifest, 2)
    uris = read_shards(dataset, 3, 4).column("uri").to_pylist()
    assert uris == ["photo_11.jpg", "photo_10.jpg", "photo_9.jpg", "photo_8.jpg"]


@pytest.mark.usefixtures("weights")
def test_a_build_that_loses_to_another_catalog_is_refused(tmp_path: Path, begun: Path) -> None:
    other = [*FIRST, row(20)]
    storage = InterruptedBuild("dataset.g2.json", lambda: grown(tmp_path, other, name="other"))
    with pytest.raises(UsageError, match=r"another build has grown (?s:.*)1 of 9 rows are gone"):
        grown(tmp_path, LATER, storage)
    dataset = open_or_create(configured(tmp_path, other), Storage())
    assert read_shards(dataset, 3).column("uri").to_pylist() == ["photo_20.jpg"]


@pytest.mark.usefixtures("weights")
def test_many_that_grow_at_once_agree(tmp_path: Path, begun: Path) -> None:
    config = configured(tmp_path, LATER)
    with ThreadPoolExecutor(4) as pool:
        datasets = list(pool.map(lambda _: open_or_create(config, Storage(), grow=True), range(4)))
    assert len({dataset.manifest.to_json() for dataset in datasets}) == 1
    assert load_latest_manifest(location_of(begun)) == (datasets[0].manifest, 2)


@pytest.mark.usefixtures("weights")
def test_a_first_build_may_be_asked_to_grow(tmp_path: Path) -> None:
    dataset = grown(tmp_path, FIRST)
    assert [part.path for part in dataset.manifest.catalog] == [
        part_path(0, part.sha256) for part in dataset.manifest.catalog
    ]


@pytest.mark.usefixtures("weights")
def test_a_correction_of_the_catalog_meanwhile_does_not_keep_it_from_growing(tmp_path: Path, begun: Path) -> None:
    """A takedown also puts a generation of the manifest, with as many parts as before."""
    asked = TakedownRequest(ids=("photo_2.jpg",))
    correct = partial(takedown, location_of(begun), asked, "a request")
    dataset = grown(tmp_path, LATER, InterruptedBuild("dataset.g2.json", correct))
    assert load_latest_manifest(location_of(begun)) == (dataset.manifest, 3)
    assert [part.rows for part in dataset.manifest.catalog] == [8, 4]
    assert read_shards(dataset, 3).column("uri").to_pylist() == ["photo_8.jpg", "photo_9.jpg", "photo_10.jpg"]
    assert dataset.manifest.licenses == {"CC-BY-4.0": 5, "CC0-1.0": 6, "taken_down": 1}


@pytest.mark.usefixtures("weights")
def test_after_an_amendment_the_advice_is_to_write_its_values_or_to_take_the_catalog_s(
    tmp_path: Path, begun: Path
) -> None:
    """Either ends: the next build goes on."""
    corrected = [row(0, attribution="Ann"), *FIRST[1:]]

    def amended(rows: list[dict[str, Any]], **options: bool) -> None:
        amend(location_of(begun), location_of(write_catalog(tmp_path / "corrected.jsonl", rows)), **options)

    amended(corrected)
    with pytest.raises(UsageError) as caught:
        grown(tmp_path, [row(0, attribution=" "), *FIRST[1:], row(8)])
    assert "If the dataset's values are right, for example after an amendment, copy them to the catalog" in str(
        caught.value
    )
    assert "(pass --clear to also remove values" in str(caught.value)
    assert len(grown(tmp_path, [*corrected, row(8)]).manifest.catalog) == 2
    amended([row(0, attribution=" ")], clear=True)
    assert len(grown(tmp_path, [row(0, attribution=" "), *FIRST[1:], row(8), row(9)]).manifest.catalog) == 3


def parts(folder: Path, **files: list[dict[str, Any]]) -> Config:
    """Write a catalog in several files, remove its other files, and return the configuration of a build from it."""
    for path in (folder / "rows").glob("*"):
        path.unlink()
    (folder / "rows").mkdir(exist_ok=True)
    for name, rows in files.items():
        pq.write_table(pa.Table.from_pylist(rows), folder / "rows" / f"{name}.parquet")
    return load_config(str(write_config(folder / "rows.yaml", f"{folder}/rows/", folder / "dataset")))


@pytest.mark.usefixtures("weights")
def test_a_catalog_in_several_files_is_pinned_file_by_file_and_grows_by_a_file(tmp_path: Path, begun: Path) -> None:
    before = digests(begun)
    same = {"a": FIRST[:3], "b": FIRST[3:]}
    assert open_or_create(parts(tmp_path, **same), Storage()).rows == 8  # the same rows as in the single file
    with pytest.raises(UsageError, match=r"has 2 new rows that are not in .*: pass --grow"):
        open_or_create(parts(tmp_path, **same, c=[row(8), row(9)]), Storage())
    with pytest.raises(UsageError, match=r"5 of 8 rows are gone; the first has the image_id 'photo_3\.jpg'"):
        open_or_create(parts(tmp_path, a=FIRST[:3]), Storage())
    with pytest.raises(UsageError, match="1 of 8 rows have another license"):
        open_or_create(parts(tmp_path, **same | {"a": [*FIRST[:2], row(2, license="MIT")]}), Storage())
    assert digests(begun) == before
    grown = open_or_create(parts(tmp_path, **same, c=[row(8), row(9), row(0)]), Storage(), grow=True)
    assert [part.rows for part in grown.manifest.catalog] == [8, 2]
    assert grown.manifest.catalog[1].source_sha256 == catalog_sha256(location_of(f"{tmp_path}/rows/"))
    (tmp_path / "rows" / "more.csv").touch()
    with pytest.raises(UsageError, match=r"'more\.csv' can't be read"):
        open_or_create(load_config(str(tmp_path / "rows.yaml")), Storage())


@pytest.mark.usefixtures("weights")
def test_an_image_id_may_be_in_several_files(tmp_path: Path) -> None:
    dataset = open_or_create(parts(tmp_path, a=FIRST[:2], b=[row(1), row(5)]), Storage())
    rows = dataset.read_runs([(0, 4)], ["ordinal", "duplicate_of"]).to_pylist()
    assert [each["duplicate_of"] for each in rows] == [None, None, 1, None]


@pytest.mark.usefixtures("weights")
def test_a_dataset_keeps_the_precision_of_its_decoder(tmp_path: Path, catalog: Path) -> None:
    plain, half = (config(tmp_path, catalog, model={"decoder_precision": each}) for each in ("auto", "fp16"))
    begun = open_or_create(plain, Storage()).manifest
    assert identity(plain) == identity(half)
    numerics = {key: value for key, value in begun.numerics.items() if key not in CPU_ONLY}
    numerics |= {"device": "cuda", "precision": "bf16", "cuda": "13", "cudnn": "9", "triton": "3.6"}
    numerics |= {"attention": "triton", "chunks": "64 256"}
    change_manifest(tmp_path / "dataset", numerics=numerics)
    with pytest.raises(
        UsageError, match=r"different numerics.*\n  model\.decoder_precision: 'auto' before, 'fp16' now\nRestore"
    ):
        open_or_create(half, Storage())

    own = Numerics.recorded(numerics).with_decoder("fp16")
    assert own.fingerprint != Numerics.recorded(numerics).fingerprint
    change_manifest(tmp_path / "dataset", numerics=own.to_dict())
    for given in (half, plain):
        assert open_or_create(given, Storage()).numerics.decoder_precision == "fp16"
