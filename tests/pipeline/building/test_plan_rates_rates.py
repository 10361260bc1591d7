"""Plans from recorded rates: what they say of devices with and without a record, and whether builds bear them out."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from benchmarks.measuring import RESULTS
from benchmarks.page import read_results
from benchmarks.rates import RATES, gpu_rates, rates_text
from segmint.infra.errors import UsageError
from segmint.operators.prepare.deidentify import DeidentifyConfig
from segmint.pipeline.building import plan as planning
from segmint.pipeline.building import plan_rates
from segmint.pipeline.building.plan import PlanOptions, make_plan
from segmint.pipeline.building.plan_rates import GpuRate, PrepareRate, Rates, WritingRate, prepare_seconds, read_rates
from segmint.pipeline.building.plan_result import BuildPlan
from segmint.pipeline.config.config import load_config
from tests.support.builds import write_catalog, write_config

ROWS = 10
AT_MOST, AT_LEAST = 1.25, 0.8
"""Range of planned hours divided by measured ones."""


def planned(folder: Path, options: PlanOptions, **changes: Any) -> BuildPlan:
    catalog = folder / "c.jsonl"
    if not catalog.exists():
        write_catalog(catalog, [{"uri": f"{index}.jpg", "license": "CC0-1.0"} for index in range(ROWS)])
    config = write_config(folder / "build.yaml", catalog, folder / "dataset", **changes)
    return make_plan(load_config(str(config)), options)


def hours_per_million(plan: BuildPlan) -> tuple[float, float]:
    assert plan.device_hours is not None
    return plan.device_hours.low * 1e6 / ROWS, plan.device_hours.high * 1e6 / ROWS


def both_hosts() -> tuple[PrepareRate, WritingRate]:
    known = read_rates()
    return known.prepare, known.writing


def on_gpu(weights: str = "vit_h", **masks: Any) -> dict[str, Any]:
    return {"model": {"weights": weights}, "masks": masks, "rows_per_block": "auto"}


def test_the_rates_are_those_of_the_recorded_results() -> None:
    assert RATES.read_text() == rates_text(read_results(RESULTS)), "run `make tables`"


# The next tests compare plans with records that no rate comes from: of the actor with all host stages, and of builds.


@contextmanager
def changed(factor: float) -> Iterator[None]:
    """Multiply all recorded speeds of `segment` by a factor."""
    known = read_rates()
    gpus = [replace(each, find_s=each.find_s / factor, finish_s=each.finish_s / factor) for each in known.gpus]
    cpus = [
        replace(each, least_share=each.least_share * factor, most_share=each.most_share * factor) for each in known.cpus
    ]
    other = Rates(tuple(gpus), tuple(cpus), known.prepare, known.writing)
    with patch.object(plan_rates, "read_rates", lambda: other), patch.object(planning, "read_rates", lambda: other):
        yield


def actor_ratio(folder: Path) -> float:
    """Planned GPU-hours with the full recipe, divided by those of the segment actor with its host stages."""
    actor = json.loads((RESULTS / "gpu_day-5.json").read_text())["measurements"]["pipeline"]
    plan = planned(folder, PlanOptions(gpu="H200", cores=actor["cores"]), **on_gpu())
    return hours_per_million(plan)[1] / (1e6 / actor["images_s"] / 3600)


def build_ratio(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> float:
    """Planned hours of a recorded build on a CPU with the recorded peak, divided by its hours."""
    result = json.loads((RESULTS / name).read_text())
    settings, machine, run = result["settings"], result["machine"], result["rounds"][0]
    monkeypatch.setattr(planning, "measure_peak", lambda _: run["peak_flop_per_s"])
    monkeypatch.setattr(planning, "cores_here", lambda: machine["cores_usable"])
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: machine["capability"])
    model = {**settings["model"], "threads": run["build_threads"]}
    keys = {"model": model, "masks": settings["masks"], "resources": {}}
    plan = planned(folder, PlanOptions(megapixels=settings["megapixels"]), **keys)
    cores = plan.ceiling.devices * plan.ceiling.threads
    assert cores == machine["cores_usable"]
    return hours_per_million(plan)[1] / cores / (1e6 / run["build_images_per_s"] / 3600)


def test_a_plan_for_a_gpu_holds_against_the_actor(tmp_path: Path) -> None:
    assert AT_LEAST <= actor_ratio(tmp_path) <= AT_MOST
    for factor in (2 / 3, 4 / 3):
        with changed(factor):
            assert not AT_LEAST <= actor_ratio(tmp_path) <= AT_MOST


@pytest.mark.usefixtures("weights")
def test_a_plan_for_a_cpu_holds_against_a_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert AT_LEAST <= build_ratio(tmp_path, "pipeline_vs_loop.json", monkeypatch) <= AT_MOST
    for factor in (1 / 2, 2):  # two records of this build, on a busy and on an idle machine, differ by 22%
        with changed(factor):
            assert not AT_LEAST <= build_ratio(tmp_path, "pipeline_vs_loop.json", monkeypatch) <= AT_MOST


def test_a_measured_gpu_has_the_recorded_rate_and_names_its_cores(tmp_path: Path) -> None:
    plan = planned(tmp_path, PlanOptions(gpu="H200", price=4), **on_gpu())
    low, high = hours_per_million(plan)
    assert low == high == pytest.approx(138, rel=0.25)
    text = "\n".join(plan.lines())
    assert "recorded on NVIDIA H200 on 2026-11-26 (gpu_day-5.json)" in text
    assert "not measured on this device" not in text
    assert "no build with Ray has been timed with this recipe on" in text
    cores = plan.cpu_stages.cores_a_gpu
    assert cores is not None
    assert cores == math.ceil((prepare_seconds(DeidentifyConfig(), 16.3, with_original=True) + 0.0641 + 1.126) / 0.4954)
    assert f"{cores} CPU cores keep a GPU busy; with {cores // 2} cores, it reaches at most " in text
    assert plan.to_dict()["ceiling"]["flop_per_s"] == 8e14


def test_full_images_have_a_range_and_say_that_nothing_was_measured_end_to_end(tmp_path: Path) -> None:
    plan = planned(tmp_path, PlanOptions(gpu="nvidia h200"), **on_gpu(crop_n_layers=0))
    assert hours_per_million(plan) == pytest.approx((26, 74), rel=0.01)
    text = "\n".join(plan.lines())
    assert "no end-to-end measurement of full images on a GPU" in text
    assert "CPU cores keep a GPU busy" in text


def test_a_recorded_build_with_ray_replaces_the_rates_of_its_parts(tmp_path: Path) -> None:
    results = read_results(RESULTS)
    build = {"images_s": 1.5, "images_s_between_commits": 1.6, "masks": 100}
    steps = {"recipe": build, "full": {**build, "masks": 0}}
    results["gpu_builds"] = {"machine": {"gpu": "NVIDIA H200"}, "measurements": steps}
    recipe, full = gpu_rates(results)
    assert full["end_to_end"] is None
    with patch.object(plan_rates, "read_rates", lambda: Rates((GpuRate(**recipe),), (), *both_hosts())):
        plan = planned(tmp_path, PlanOptions(gpu="H200"), **on_gpu())
    assert hours_per_million(plan) == (pytest.approx(1e6 / 1.6 / 3600),) * 2
    assert not any("Ray" in note for note in plan.notes)
    results["gpu_builds"]["machine"]["gpu"] = "NVIDIA H100 80GB HBM3"
    assert next(iter(gpu_rates(results)))["end_to_end"]["file"] == "gpu_day-5.json"


@pytest.mark.parametrize(("gpu", "slower", "slowest"), [("H100", 1.0, 1.43), ("A100", 2.3, 3.2), ("L4", 8.0, 16.1)])
def test_another_gpu_has_a_range_by_its_limits(tmp_path: Path, gpu: str, slower: float, slowest: float) -> None:
    known = next(rate for rate in read_rates().gpus if rate.crop_n_layers)
    plan = planned(tmp_path, PlanOptions(gpu=gpu), **on_gpu())
    low, high = hours_per_million(plan)
    assert low == pytest.approx(slower * known.find_s / 3.6e-3, rel=0.05)
    assert high == pytest.approx((slowest * known.find_s + known.finish_s) / 3.6e-3, rel=0.05)
    text = "\n".join(plan.lines())
    assert f"{plan.ceiling.flop_per_s / 1e12:.4g} TFLOP/s); peak from its data sheet" in text
    assert "not measured on this device" in text
    assert "run `segmint plan --sample 20` on a machine with this GPU" in text
    assert "of the ceiling, scaled from a record on NVIDIA H200 on 2026-11-26 (gpu_day-5.json)" in text


def test_a_peak_alone_gives_a_range_too(tmp_path: Path) -> None:
    low, high = hours_per_million(planned(tmp_path, PlanOptions(flops=1e14), **on_gpu()))
    named = hours_per_million(planned(tmp_path, PlanOptions(gpu="V100", flops=1e14), **on_gpu()))
    assert (low, high) == named
    # The peak may be the data sheet's or a build's, of which the second is lower.
    assert low == pytest.approx(8 * 0.4954 / 3.6e-3, rel=0.01)
    assert high == pytest.approx((9.89 * 0.4954 + 0.1616) / 3.6e-3, rel=0.01)


def test_a_smaller_encoder_has_a_range_up_to_the_measured_one(tmp_path: Path) -> None:
    plan = planned(tmp_path, PlanOptions(gpu="H200"), **on_gpu("vit_b"))
    low, high = hours_per_million(plan)
    assert low == pytest.approx((0.4954 - 21 * 0.01378) / 3.6e-3, rel=0.01)
    assert high == pytest.approx(0.4954 / 3.6e-3, rel=0.01), "that of ViT-H"
    assert any(note.startswith("vit_b has not been measured on a GPU") for note in plan.notes)


@pytest.mark.parametrize(
    "masks", [{"points_per_side": 16}, {"pred_iou_thresh": 0.5}, {"crop_overlap_ratio": 0.2}, {"profile": "official"}]
)
def test_other_settings_have_no_time(tmp_path: Path, masks: dict[str, Any]) -> None:
    plan = planned(tmp_path, PlanOptions(gpu="H200", price=1), **on_gpu(**masks))
    assert (plan.device_hours, plan.days, plan.cost, plan.starts, plan.share_of_ceiling) == (None,) * 5
    text = "\n".join(plan.lines())
    assert "the time is unknown: vit_h with these settings has no recorded rate on a GPU" in text
    assert text.count("unknown without --share") == 3
    json.dumps(plan.to_dict(), allow_nan=False)
    assumed = planned(tmp_path, PlanOptions(gpu="H200", share=0.2), **on_gpu(**masks))
    assert assumed.device_hours is not None


@pytest.mark.parametrize(
    "options", [{"gpu": "NVIDIA H200 NVL"}, {"gpu": "H200", "flops": 8e14}, {"gpu": "NVIDIA A100-SXM4-80GB"}]
)
def test_only_the_measured_gpu_has_the_recorded_rate(tmp_path: Path, options: dict[str, Any]) -> None:
    plan = planned(tmp_path, PlanOptions(**options), **on_gpu())
    low, high = hours_per_million(plan)
    assert low < high
    assert any(note.startswith("not measured on this device") for note in plan.notes)
    assert plan.share_of_ceiling is not None
    assert plan.share_of_ceiling < 1


def test_peaks_in_another_precision_are_unknown(tmp_path: Path) -> None:
    model = {"weights": "vit_h", "precision": "fp32"}
    with pytest.raises(UsageError, match="known peaks of GPUs are in bf16"):
        planned(tmp_path, PlanOptions(gpu="H200"), model=model)
    plan = planned(tmp_path, PlanOptions(gpu="H200", flops=5.1e13, share=0.5), model=model)
    assert plan.device_hours is not None


def test_rates_hold_only_for_the_decoder_that_was_measured(tmp_path: Path) -> None:
    model = {"weights": "vit_h", "decoder_precision": "fp16"}
    plan = planned(tmp_path, PlanOptions(gpu="H200", price=1), model=model)
    assert (plan.record, plan.device_hours, plan.cost) == (None, None, None)
    text = "\n".join(plan.lines())
    assert "1 x cuda (NVIDIA H200, bf16 with the decoder in fp16, 800 TFLOP/s)" in text
    assert "the time is unknown: vit_h with the decoder in fp16 has no recorded rate on a GPU" in text
    assert plan.to_dict()["ceiling"]["decoder_precision"] == "fp16"
    assert planned(tmp_path, PlanOptions(gpu="H200", share=0.2), model=model).device_hours is not None
    known = read_rates()
    measured = replace(known.gpus[0], decoder_precision="fp16", find_s=2 * known.gpus[0].find_s, end_to_end=None)
    with patch.object(plan_rates, "read_rates", lambda: replace(known, gpus=(known.gpus[0], measured))):
        low, _ = hours_per_million(planned(tmp_path, PlanOptions(gpu="H200"), **on_gpu() | {"model": model}))
    assert low == pytest.approx(measured.find_s / 3.6e-3)


def test_the_decoders_precision_needs_bf16_as_in_a_build(tmp_path: Path) -> None:
    model = {"device": "cpu", "weights": "mobile_sam", "decoder_precision": "fp16"}
    with pytest.raises(UsageError, match=r"decoder_precision is fp16, .* but the precision is fp32"):
        planned(tmp_path, PlanOptions(), model=model)
    model = {"weights": "vit_h", "precision": "fp32", "decoder_precision": "fp16"}
    with pytest.raises(UsageError, match=r"decoder_precision is fp16, .* but the precision is fp32"):
        planned(tmp_path, PlanOptions(gpu="H200", flops=5.1e13), model=model)


def test_a_part_of_a_gpu_is_unknown() -> None:
    with pytest.raises(UsageError, match=r"--gpu NVIDIA H200 MIG 1g\.18gb: expected one of"):
        PlanOptions(gpu="NVIDIA H200 MIG 1g.18gb")


def test_few_cores_slow_a_gpu_down(tmp_path: Path) -> None:
    enough, few = (planned(tmp_path, PlanOptions(gpu="H200", cores=cores, price=1), **on_gpu()) for cores in (16, 4))
    assert (enough.cpu_stages.limits, few.cpu_stages.limits) == ("segment", "prepare")
    assert few.cost is not None
    assert few.device_hours is not None
    assert few.device_hours.value == few.cost.value == pytest.approx(few.cpu_core_hours.value / 4)
    assert "limits prepare is the slowest stage" in " ".join("\n".join(few.lines()).split())
    full = planned(tmp_path, PlanOptions(gpu="H200", cores=16), **on_gpu(crop_n_layers=0))
    assert full.cpu_stages.limits == "prepare or segment", "at the fast and the slow end"


def test_hundreds_of_gpus_are_slower_than_the_driver(tmp_path: Path) -> None:
    one, many = (planned(tmp_path, PlanOptions(gpu="H200", gpus=gpus), **on_gpu()) for gpus in (1, 1000))
    assert many.cpu_stages.limits == "writing"
    assert one.days is not None
    assert many.days is not None
    writing = read_rates().writing
    assert many.days.value * 86_400 == pytest.approx(ROWS * writing.driver_s_per_block[0] / 16)
    assert any("two cores that all processes shared" in note for note in many.notes)
    assert many.days.value > one.days.value / 1000
    few = planned(tmp_path, PlanOptions(gpu="H200", gpus=100), **on_gpu(), resources={"writers": 1})
    assert few.cpu_stages.limits == "writing"


@pytest.mark.parametrize("with_original", [True, False])
def test_recorded_seconds_of_prepare_are_those_of_the_benchmark(with_original: bool) -> None:
    result = json.loads((RESULTS / "prepare.json").read_text())
    upright = DeidentifyConfig(orientations=(0,))
    for row in result["stages"]:
        (run,) = (run for run in row["cpu_seconds"] if run["with_original"] == with_original)
        found = prepare_seconds(DeidentifyConfig(), row["megapixels"], with_original=with_original)
        assert found == pytest.approx(run["total"], rel=0.01)
        found = prepare_seconds(upright, row["megapixels"], with_original=with_original)
        assert found == pytest.approx(run["total"] - run["look turned"], rel=0.01)


@pytest.mark.parametrize(("megapixels", "seconds"), [(1, 0.88), (100, 9.45)])
def test_recorded_seconds_of_other_sizes_are_interpolated(megapixels: float, seconds: float) -> None:
    def of(**keys: Any) -> float:
        return prepare_seconds(DeidentifyConfig.model_validate(keys), megapixels, with_original=True)

    assert of() == pytest.approx(seconds, rel=0.02)
    assert of(device="cuda") < of(faces={"detector": "none"}) < of()
