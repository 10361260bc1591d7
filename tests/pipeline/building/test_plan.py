"""A plan: what is counted, what is assumed and said to be, and what a sample of real photographs measures."""

import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from segmint.catalogs.dataset.manifest import read_manifest
from segmint.catalogs.dataset.outputs import OUTPUTS
from segmint.catalogs.dataset.versions import name_now
from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.peak import measure_peak
from segmint.infra.storage.storage import MeteredStorage, Storage
from segmint.infra.wording import number
from segmint.operators.prepare.deidentify import describe_recall
from segmint.pipeline.building.dataset import open_or_create
from segmint.pipeline.building.plan import DRAWN_PER_POINT, PlanOptions, RemainingShards, make_plan, row_notes
from segmint.pipeline.building.plan_rates import Estimate, prepare_seconds, read_rates
from segmint.pipeline.building.plan_result import BuildPlan
from segmint.pipeline.commands.cli import app
from segmint.pipeline.config.config import Config, load_config
from tests.support.builds import (
    NO_DETECTORS,
    digests,
    segmint_and_modules,
    small_catalog,
    write_catalog,
    write_config,
)
from tests.support.locations import location_of
from tests.support.small_dataset_fixtures import SMALL_MASKS
from tests.support.torchscript import FailingDetector, saved

GRID = {"points_per_side": 4, "crop_n_layers": 0, "pred_iou_thresh": 0.7, "stability_score_thresh": 0.8}
ANYWHERE = {"threads": 1, "weights": "vit_h", "precision": "bf16"}


def configured(folder: Path, catalog: Path, **changes: Any) -> Config:
    changes = {"masks": GRID, **changes}
    return load_config(str(write_config(folder / "build.yaml", catalog, folder / "dataset", **changes)))


@pytest.fixture(scope="module", autouse=True)
def measured_once() -> Iterator[None]:
    """The peak of this machine is measured once for all plans: each measurement takes a fraction of a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segmint.pipeline.building.plan.measure_peak", cache(measure_peak))
        yield


@pytest.fixture
def unread(tmp_path: Path) -> Path:
    """A catalog of 1,000 rows whose images do not exist."""
    return write_catalog(tmp_path / "c.jsonl", [{"uri": f"{i}.jpg", "license": "CC0-1.0"} for i in range(1000)])


def test_without_a_sample_time_is_a_range_from_recorded_shares(tmp_path: Path, unread: Path) -> None:
    config = configured(tmp_path, unread)
    plan = make_plan(config, PlanOptions(price=0.5))
    assert (plan.catalog_rows, plan.rows, plan.shards, plan.committed) == (1000, 1000, 334, 0)
    assert (plan.encodes_per_image, plan.prompts_per_image) == (1, 16)
    assert (plan.bytes_in, plan.bytes_out, plan.sample, plan.measured) == (None, None, None, False)
    assert plan.hours_of == "core"
    assert plan.record is not None
    assert plan.share_of_ceiling == pytest.approx(1 / (plan.record.high_s * plan.ceiling.images_per_s))
    prepare_s = plan.cpu_stages.seconds_an_image
    writing = read_rates().writing
    expected = prepare_seconds(config.deidentify, 16.3, with_original=False) + writing.core_s_per_row
    assert prepare_s == pytest.approx(expected)
    assert plan.cpu_core_hours.value == pytest.approx(1000 * prepare_s / 3600)
    assert plan.cpu_stages.cores_a_gpu is None
    assert plan.device_hours is not None
    assert plan.days is not None
    assert plan.device_hours.low == pytest.approx(1000 * (plan.record.low_s + prepare_s) / 3600)
    assert plan.device_hours.high == pytest.approx(1000 * (plan.record.high_s + prepare_s) / 3600)
    assert plan.device_hours.value == plan.device_hours.high
    assert plan.days.value == pytest.approx(plan.device_hours.value / 24)
    assert plan.cost is not None
    assert plan.cost.value == pytest.approx(plan.device_hours.value * 0.5)
    text = "\n".join(plan.lines())
    assert "1,000 rows, from its non-blank lines" in text
    assert plan.ceiling.drawn_per_image == pytest.approx(16 * DRAWN_PER_POINT)
    assert f"{number(plan.device_hours.low)} to {number(plan.device_hours.high)} core-hours" in text
    assert "not measured on this device" in text
    assert "2 masks of each point" in text
    assert text.count("unknown without --sample") == 3
    assert "recorded on other CPUs, not measured here" in text
    assert "have 16.3 megapixels (SA-1B's average; override it with --megapixels)" in text
    assert "takes most of the cores' time" in text
    assert make_plan(config, PlanOptions(megapixels=0.001)).cpu_stages.limits == "segment"
    assert make_plan(config, PlanOptions(megapixels=1000)).cpu_stages.limits == "prepare"
    half = make_plan(config, PlanOptions(share=0.5))
    assert half.device_hours is not None
    segment_s = 1 / (0.5 * half.ceiling.images_per_s)
    assert half.device_hours.value == pytest.approx(1000 * (segment_s + prepare_s) / 3600)
    assert "50% of the ceiling: assumed (--share), not measured" in "\n".join(half.lines())
    assert not (tmp_path / "dataset").exists()
    json.dumps(plan.to_dict(), allow_nan=False)


def test_a_plan_warns_of_what_is_refused_and_of_what_an_audit_will_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"uri": "a.jpg", "license": "CC0-1.0"}, {"uri": "b.jpg"}, {"uri": "c.jpg", "license": "CC-BY-4.0"}]
    config = configured(
        tmp_path, write_catalog(tmp_path / "c.jsonl", rows), license={"allow": ["CC0-1.0", "CC-BY-4.0"]}
    )
    text = "\n".join(make_plan(config, PlanOptions()).lines())
    assert "catalog entries of all rows" in text
    assert "license_missing: 1 (row 2), such as b.jpg" in text
    assert "an audit will find missing_attribution: 1 (row 3)" in text
    monkeypatch.setattr("segmint.pipeline.building.plan.CHECKED_ROWS", 2)
    plan = make_plan(config, PlanOptions())
    assert "catalog entries of the first 2 rows" in "\n".join(plan.lines())
    assert plan.to_dict()["checked"]["audit"] == {}


@pytest.mark.usefixtures("weights")
def test_a_plan_assumes_the_weights_that_a_build_would_use(
    tmp_path: Path, unread: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flop(options: PlanOptions, **model: str) -> int:
        return make_plan(configured(tmp_path, unread, model=model), options).ceiling.flop_per_image

    gpus = PlanOptions(flops=1e15)
    large, small = (flop(gpus, weights=name) for name in ("vit_h", "mobile_sam"))
    assert large > small
    assert flop(gpus) == large
    assert flop(PlanOptions(), device="cpu") == small
    weights = {"weights": "mobile_sam", "device": "cpu", "threads": 1}
    open_or_create(configured(tmp_path, unread, model=weights), Storage())
    monkeypatch.setattr("segmint.pipeline.building.plan.kind_of_device", lambda *_: "cuda")
    assert flop(PlanOptions()) == small, "those of the dataset"


def test_a_plan_of_any_size_states_the_recall_of_the_bundled_detectors(tmp_path: Path, unread: Path) -> None:
    (note,) = (note for note in make_plan(configured(tmp_path, unread), PlanOptions()).notes if "trials" in note)
    assert note.endswith(describe_recall(("mtcnn", "clp")))
    none = {"faces": {"detector": "none"}, "plates": {"detector": "none"}}
    notes = make_plan(configured(tmp_path, unread, deidentify=none), PlanOptions()).notes
    assert "trials" not in "\n".join(notes)


@pytest.mark.usefixtures("processes", "weights")
def test_a_plan_of_stages_that_add_masks(tmp_path: Path, unread: Path) -> None:
    prompted = {"stage": "segmint.PromptedMasks", "after": "segment", "arguments": {"weights": "mobile_sam"}}
    config = configured(tmp_path, unread, stages=[prompted])
    with pytest.raises(UsageError, match=r"the segmenter needs prompts, but no row of .* has any"):
        make_plan(config, PlanOptions())
    rows = [json.loads(line) for line in unread.read_text().splitlines()]
    rows[-1]["prompts"] = {"width": 1, "height": 1, "prompts": []}
    unread.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    notes = make_plan(config, PlanOptions()).notes
    assert "custom stages aren't part of the plan, nor are the time, masks, and bytes that stage_prompted" in str(notes)


def test_gpus_that_are_not_here_are_planned_by_their_peak(tmp_path: Path, unread: Path) -> None:
    """The paper's settings with ViT-H at 790 TFLOP/s: 6.5 images/s a GPU (docs/metric.md)."""
    config = configured(tmp_path, unread, masks={}, model=ANYWHERE, window_shards=200)
    plan = make_plan(config, PlanOptions(gpus=8, flops=7.9e14, share=1.0, price=2))
    assert (plan.encodes_per_image, plan.prompts_per_image) == (21, 3072)
    assert plan.ceiling.images_per_s == pytest.approx(8 * 6.53, rel=0.01)
    assert plan.device_hours is not None
    assert plan.days is not None
    assert plan.device_hours.value == pytest.approx(1000 * 0.1528 / 3600, rel=0.01)
    assert plan.days.value == pytest.approx(plan.device_hours.value / 8 / 24)
    assert plan.hours_of == "GPU"
    text = "\n".join(plan.lines())
    assert "theoretical peak of 8 x cuda (GPU, bf16, 790 TFLOP/s); peak given by --flops" in text
    assert "21,000 at most, 21 per image" in text
    assert "at 2 per GPU-hour" in text
    half = make_plan(config, PlanOptions(gpus=8, flops=7.9e14, share=0.5))
    assert half.device_hours is not None
    assert half.device_hours.value == pytest.approx(2 * plan.device_hours.value)
    cores = plan.cpu_stages.seconds_an_image * plan.ceiling.images_per_s / 8
    assert plan.cpu_stages.cores_a_gpu == math.ceil(cores)
    assert half.cpu_stages.cores_a_gpu == math.ceil(cores / 2)
    assert plan.starts is None, "no start was measured on a GPU"
    assert f"{math.ceil(cores)} CPU cores keep a GPU busy" in text
    assert half.cost is None


def test_shards_choose_what_is_planned(tmp_path: Path, unread: Path) -> None:
    config = configured(tmp_path, unread)
    assert make_plan(config, PlanOptions(shards=(2, 4))).rows == 6
    last = make_plan(config, PlanOptions(shards=(333, 900)))
    assert (last.rows, last.shards, last.catalog_rows) == (1, 1, 1000)
    with pytest.raises(UsageError, match="has shards 0 to 333"):
        make_plan(config, PlanOptions(shards=(334, 400)))


@pytest.mark.usefixtures("weights", "embedded_once")
def test_a_dataset_that_grew_is_planned_part_by_part(tmp_path: Path) -> None:
    """Four rows in shards 0 and 1, then five in shards 2 and 3; the first of each part is committed."""
    rows = [{"uri": f"{i}.jpg", "license": "MIT", "image_id": f"i{i}"} for i in range(9)]
    for known in (4, 9):
        config = configured(tmp_path, write_catalog(tmp_path / "c.jsonl", rows[-known:]), deidentify=NO_DETECTORS)
        open_or_create(config, Storage(), grow=True)
    for shard in (0, 2):
        Storage().put(f"{config.output}/commits/00000{shard}.g1.json", b"")
    plan = make_plan(config, PlanOptions())
    assert (plan.catalog_rows, plan.rows, plan.shards, plan.committed) == (9, 3, 2, 2)
    assert not any("--grow" in note for note in plan.notes)
    sampled = make_plan(config, PlanOptions(sample=10)).sample
    assert sampled is not None
    assert [(row.ordinal, row.image_id) for row in sampled.rows] == [(3, "i8"), (9, "i3"), (10, "i4")]
    assert make_plan(config, PlanOptions(shards=(1, 3))).rows == 1
    write_catalog(tmp_path / "c.jsonl", [*rows, {**rows[0], "image_id": "new"}])
    assert any("`segmint build --grow` adds" in note for note in make_plan(config, PlanOptions()).notes)
    assert "`segmint build --grow` adds" in make_plan(config, PlanOptions(shards=(0, 1))).lines()[3]


@pytest.fixture(scope="module")
def sampled(
    tmp_path_factory: pytest.TempPathFactory, small_dataset: Path, embedded_once: None
) -> tuple[Path, BuildPlan]:
    """A plan from all eight rows of the small dataset's catalog, with one forbidden license and one absent image."""
    folder = tmp_path_factory.mktemp("plan")
    shutil.copytree(small_dataset.parent / "photos", folder / "photos")
    config = configured(folder, folder / "photos" / "catalog.jsonl", masks=SMALL_MASKS)
    heard: list[str] = []
    plan = make_plan(config, PlanOptions(sample=50, price=1), heard.append)
    assert len(heard) == 1 + 8
    return folder, plan


def test_reads_of_files_in_tars_are_measured(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(bytes(2000))
    storage = MeteredStorage({})
    storage.read_part(str(tmp_path / "a.tar"), 512, 1512)
    assert storage.bytes_read == 1000
    assert storage.read_s > 0
    storage.read(str(tmp_path / "a.tar"))
    assert storage.bytes_read == 3000


def test_a_sample_of_all_rows_accounts_for_each(sampled: tuple[Path, BuildPlan]) -> None:
    folder, plan = sampled
    sample = plan.sample
    assert sample is not None
    assert [row.ordinal for row in sample.rows] == list(range(8))
    assert {reason: [row.ordinal for row in rows] for reason, rows in sample.rejected.items()} == {
        "license_not_allowed": [2],
        "not_found": [7],
    }
    assert plan.images == Estimate(6, 6, 6)
    sizes = [path.stat().st_size for path in sorted((folder / "photos").glob("*.jpg"))]
    assert [row.bytes_in for row in sample.rows] == [*sizes[:2], 0, *sizes[3:], 0]
    for row in sample.rows:
        assert (row.reason is None) == (row.segment_s > 0) == (row.released_bytes > 0) == (row.annotation_bytes > 0)
        assert row.prepare_s >= row.read_s
        assert row.write_s > 0
    assert plan.measured
    assert plan.starts is not None
    assert (plan.starts.windows, plan.starts.seconds) == (1, sample.start_s)
    assert plan.record is None
    assert plan.device_hours is not None
    assert plan.device_hours.value == pytest.approx(sum(row.seconds for row in sample.rows) / 3600)
    assert plan.masks is not None
    assert plan.masks.value == sum(row.masks for row in sample.rows) > 6
    assert plan.share_of_ceiling is not None
    assert plan.share_of_ceiling > 0  # without the encoder's time, also over 1
    assert plan.ceiling.drawn_per_image == sum(row.drawn for row in sample.rows) / sample.accepted > 0
    text = "\n".join(plan.lines())
    assert "2 of the sample's 8 rows" in text
    assert "not_found                       1  row 8: the store answers, and there is no such object" in text
    assert "assumed" not in text
    assert "unknown" not in text
    told = json.loads(json.dumps(plan.to_dict(), allow_nan=False))
    assert told["rejected"] == {"license_not_allowed": 1, "not_found": 1}
    assert told["sample"]["rows"][7]["detail"]
    assert sorted(path.name for path in folder.iterdir()) == ["build.yaml", "photos"]


@pytest.mark.usefixtures("embedded_once")
def test_a_build_writes_what_the_plan_said(sampled: tuple[Path, BuildPlan], small_dataset: Path) -> None:
    folder, plan = sampled
    shutil.copytree(small_dataset, folder / "dataset", ignore=shutil.ignore_patterns(OUTPUTS))
    masks = pq.ParquetDataset(sorted((folder / "dataset" / "masks").iterdir())).read()
    rejects = pq.ParquetDataset(sorted((folder / "dataset" / "rejects").iterdir())).read()
    assert plan.masks is not None
    assert masks.num_rows == plan.masks.value
    assert Counter(rejects["reason"].to_pylist()) == plan.to_dict()["rejected"]
    kinds = ("shards", "images", "masks", "rejects")
    written = sum(path.stat().st_size for kind in kinds for path in (folder / "dataset" / kind).iterdir())
    assert plan.bytes_out is not None
    assert plan.bytes_out.value == pytest.approx(written, rel=0.05)

    # What is committed is not planned again, and the plan changes no byte of the dataset.
    (folder / "dataset" / "commits" / "000001.g1.json").unlink()
    before = digests(folder / "dataset")
    config = load_config(str(folder / "build.yaml"))
    left = make_plan(config, PlanOptions(sample=2))
    assert (left.rows, left.shards, left.committed) == (3, 1, 2)
    assert left.sample is not None
    assert [row.ordinal for row in left.sample.rows] == [3, 5]
    assert "; already committed: 2 shards" in left.lines()[1]
    assert digests(folder / "dataset") == before
    nothing = make_plan(config, PlanOptions(shards=(0, 1), sample=2))
    assert nothing.version == name_now(location_of(folder / "dataset"))
    assert nothing.lines()[-2:] == ["nothing to do: all requested shards are committed", nothing.version.line()]
    with pytest.raises(UsageError, match=r"masks\.points_per_side: 2 before, 5 now"):
        make_plan(load_config(str(folder / "build.yaml"), ["masks.points_per_side=5"]), PlanOptions())


@pytest.mark.usefixtures("weights", "embedded_once")
def test_a_sample_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    keys = {"release": {"format": "annotations"}, "deidentify": NO_DETECTORS}
    config = configured(tmp_path, small_catalog(tmp_path / "photos", 6), **keys)
    plan = make_plan(config, PlanOptions(sample=1))
    assert plan.sample is not None
    assert plan.sample.rows[0].ordinal == 3
    assert plan.sample.rows[0].released_bytes == 0
    assert plan.sample.rows[0].annotation_bytes > 0
    assert list(temporary.iterdir()) == []


@pytest.mark.usefixtures("weights", "embedded_once")
def test_a_sample_for_gpus_that_are_not_here_gives_all_but_their_time(tmp_path: Path) -> None:
    keys = {"model": {"threads": 1, "weights": "mobile_sam"}, "deidentify": NO_DETECTORS}
    config = configured(tmp_path, small_catalog(tmp_path / "photos", 4), **keys)
    plan = make_plan(config, PlanOptions(sample=2, flops=1e15, share=0.25))
    assert plan.sample is not None
    assert (plan.measured, plan.share_of_ceiling, plan.hours_of) == (False, 0.25, "GPU")
    # The second row is a photograph, and the fourth is missing.
    assert [row.reason for row in plan.sample.rows] == [None, "not_found"]
    assert plan.images.value == 2
    assert plan.images.low < 2 < plan.images.high <= 4
    assert plan.device_hours is not None
    assert plan.cpu_stages.limits == "writing"  # with so few points, a GPU is faster than two shard writers
    rows_per_s = read_rates().writing.rows_per_s(2, config.most_rows_per_block(on_gpu=True))
    assert plan.device_hours.value == pytest.approx(2 / rows_per_s / 3600)
    assert plan.cpu_core_hours.value > 0
    assert plan.cpu_stages.measured
    assert "s per image, measured in the sample" in "\n".join(plan.lines())
    assert any("it doesn't measure the GPUs' time" in note for note in plan.notes)


@pytest.mark.usefixtures("weights", "embedded_once")
def test_a_sample_that_was_refused_whole_says_so(tmp_path: Path, unread: Path) -> None:
    plan = make_plan(configured(tmp_path, unread, deidentify=NO_DETECTORS), PlanOptions(sample=2))
    assert plan.images.value == 0
    assert plan.images.high > 500
    assert any("the sample has no accepted rows" in note for note in plan.notes)
    json.dumps(plan.to_dict(), allow_nan=False)


@pytest.mark.usefixtures("processes")
def test_a_row_that_cannot_be_judged_ends_the_plan(tmp_path: Path) -> None:
    saved(FailingDetector(), tmp_path / "broken.pt")  # fails on control images, but not on the blank one
    detectors = {**NO_DETECTORS, "faces": {"detector": str(tmp_path / "broken.pt")}}
    config = configured(tmp_path, small_catalog(tmp_path / "photos", 6), deidentify=detectors)
    with pytest.raises(SegmintError, match=r"row 4 of the sample \(image-3\) can be neither accepted nor rejected"):
        make_plan(config, PlanOptions(sample=1))
    (tmp_path / "broken.pt").write_bytes(b"no detector")
    with pytest.raises(UsageError, match=r"deidentify\.faces\.detector: .*broken\.pt can't be loaded as TorchScript"):
        make_plan(config, PlanOptions())
    (tmp_path / "broken.pt").unlink()
    with pytest.raises(UsageError, match=r"broken\.pt"):
        make_plan(config, PlanOptions())


@pytest.mark.usefixtures("weights")
def test_what_a_build_refuses_a_plan_refuses(tmp_path: Path, unread: Path) -> None:
    config = configured(tmp_path, unread)
    absent = config.model_copy(update={"catalog": str(tmp_path / "absent.csv")})
    (tmp_path / "empty.csv").write_text("uri,license\n")
    (tmp_path / "folder.parquet").mkdir()
    empty = config.model_copy(update={"catalog": str(tmp_path / "empty.csv")})
    folder = config.model_copy(update={"catalog": str(tmp_path / "folder.parquet")})
    for wrong in (absent, empty, folder):
        with pytest.raises(SegmintError) as building:
            open_or_create(wrong, Storage())
        with pytest.raises(SegmintError) as planning:
            make_plan(wrong, PlanOptions())
        assert str(planning.value) == str(building.value)
        assert planning.value.exit_code == building.value.exit_code
    for options in (PlanOptions(gpus=2), PlanOptions(flops=1e15)):
        with pytest.raises(UsageError, match=r"model\.device is cpu"):
            make_plan(config, options)
    assert read_manifest(location_of(config.output)) is None


def test_the_command_answers_in_lines_and_in_json(tmp_path: Path, unread: Path) -> None:
    path = write_config(tmp_path / "build.yaml", unread, tmp_path / "dataset", masks=GRID)
    run = CliRunner().invoke
    lines = run(app, ["plan", str(path), "--shards", "0:2", "--set", "masks.points_per_side=8"])
    assert lines.exit_code == 0, lines.stderr
    assert "384 at most, 64 per image" in lines.stdout
    answer = json.loads(run(app, ["plan", str(path), "--json", "--share", "0.5"]).stdout)
    assert (answer["rows"], answer["share_of_ceiling"], answer["measured"]) == (1000, 0.5, False)
    assert answer["prompts"] == {"value": 16000, "low": 16000, "high": 16000}
    wrong = run(app, ["plan", str(path), "--set", "masks.points=3"])
    assert wrong.exit_code == 2
    assert wrong.stderr == run(app, ["build", str(path), "--set", "masks.points=3"]).stderr


@pytest.mark.usefixtures("processes")
def test_a_plan_needs_no_ray_and_measures_a_share_of_the_ceiling(tmp_path: Path) -> None:
    keys = {"masks": GRID, "deidentify": NO_DETECTORS}
    config = write_config(tmp_path / "build.yaml", small_catalog(tmp_path / "p", 6), tmp_path / "dataset", **keys)
    done, loaded = segmint_and_modules("plan", config, "--sample", "1", "--json")
    assert (done.returncode, "ray" in loaded) == (0, False), done.stderr
    answer = json.loads(done.stdout)
    assert answer["measured"]
    assert 0 < answer["share_of_ceiling"] < 1


@pytest.mark.usefixtures("weights")
def test_a_sample_on_a_cpu_has_no_decoder_in_fp16_but_the_plan_does(tmp_path: Path) -> None:
    model = {"weights": "mobile_sam", "decoder_precision": "fp16"}
    keys = {"masks": GRID, "deidentify": NO_DETECTORS, "model": model}
    config = write_config(tmp_path / "build.yaml", small_catalog(tmp_path / "p", 6), tmp_path / "dataset", **keys)
    plan = make_plan(load_config(str(config)), PlanOptions(sample=1, gpu="H200"))
    assert plan.sample is not None
    assert plan.ceiling is not None
    assert (plan.sample.device, plan.sample.accepted) == ("cpu", 1)
    assert plan.ceiling.decoder_precision == "fp16"
    assert plan.device_hours is None
    assert re.findall(r"unknown (without .*)", "\n".join(plan.lines())) == 3 * ["without --share"]


@pytest.mark.usefixtures("processes")
def test_a_segmenter_is_planned_from_a_sample_only(tmp_path: Path) -> None:
    written = write_config(tmp_path / "b.yaml", small_catalog(tmp_path / "p", 5), tmp_path / "out")
    tree = yaml.safe_load(written.read_text())
    for key in ("masks", "model", "resources"):
        del tree[key]
    bright = {"stage": "tests.support.segmenters.Bright", "filters": {"min_area": 5}}
    config = Config.model_validate({**tree, "deidentify": NO_DETECTORS, "segmenter": bright, "curate": {}})
    for options in (PlanOptions(), PlanOptions(share=0.5), PlanOptions(sample=5, gpu="H200")):
        with pytest.raises(UsageError, match="only known from a sample on this machine: pass --sample N"):
            make_plan(config, options)
    plan = make_plan(config, PlanOptions(sample=5, price=2))
    assert plan.sample is not None
    assert plan.masks is not None
    assert plan.device_hours is not None
    assert plan.cost is not None
    assert (plan.images.value, plan.masks.value) == (3, sum(row.masks for row in plan.sample.rows))
    assert plan.device_hours.value == pytest.approx(sum(row.segment_s for row in plan.sample.rows) / 3600)
    assert plan.cost.value == 2 * plan.device_hours.value
    text = "\n".join(plan.lines())
    assert "hours of one actor of the segmenter" in text
    assert not re.search("ceiling|encodes|prompts|GPU", text)
    assert plan.to_dict()["ceiling_images_per_s"] is None
    assert plan.curation is not None
    assert plan.curation.rows == plan.catalog_rows
    assert "a sample doesn't look for duplicates: `segmint catalog curate` finds copies of images" in plan.notes


def test_a_plan_says_which_rows_it_leaves_out() -> None:
    remaining = RemainingShards(10, (), 0, pinned_rows=5)
    assert row_notes(5, remaining, None) == []
    (left_out,) = row_notes(7, remaining, None)
    assert left_out.startswith("the plan covers only the 5 rows of the dataset")
