"""The builds on a GPU machine at reduced sizes on a CPU, and the arithmetic of their figures."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.gpu import builds
from benchmarks.gpu.build_figures import CommittedShard, child_environment, failed, per_million, rates, run_command
from benchmarks.gpu.build_inputs import differences, fitted_neck, random_encoder, write_photographs
from benchmarks.gpu.run import FULL, PartRun
from benchmarks.gpu.samples import Sample, cpu_ticks, summarize
from segmint.model.sam.common import LayerNorm2d

ROOT = Path(__file__).resolve().parents[3]
CONFIG = {"name": "small", "catalog": "/c.jsonl", "output": "/o", "license": {"allow": ["CC0-1.0"]}}


@pytest.fixture(scope="module")
def bundle() -> None:
    if not (ROOT / "bundle" / "mobile_sam.pt").is_file():
        command = [sys.executable, "benchmarks/gpu/bundle.py", "--no-wheels"]
        subprocess.run(command, cwd=ROOT, check=True, timeout=120)


def quick(folder: Path, *steps: str) -> dict[str, Any]:
    """Run these steps at reduced sizes, however busy this machine is, and return the result that they write."""
    command = [sys.executable, "benchmarks/gpu/builds.py", "--quick", "--device", "cpu", "--output", str(folder)]
    done = subprocess.run(
        [*command, "--budget", "1200", "--price", "2", *(["--steps", *steps] if steps else [])],
        cwd=ROOT,
        check=False,
        timeout=1300,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    (written,) = folder.glob("*.json")
    result: dict[str, Any] = json.loads(written.read_text())
    assert result["verdict"] == "passed"
    return result


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(1400)
@pytest.mark.usefixtures("bundle")
def test_a_small_build_is_verified_and_recorded_with_its_settings(tmp_path: Path) -> None:
    result = quick(tmp_path, "small")
    small = result["measurements"]["small"]
    assert small["images"] == 2
    assert small["masks"] > 0
    assert small["verified"]
    assert small["rejected"] == {}
    assert len(small["digest"]) == 64
    assert small["images_s"] == pytest.approx(2 / small["seconds"])
    assert small["first_commit_s"] < small["seconds"]
    assert 0 < small["share_of_ceiling"] < 1
    assert small["load"]["samples"] > 1
    assert small["settings"]["masks.points_per_side"] == {"default": 32, "here": 4}
    assert not [key for key in small["settings"] if key.startswith("deidentify")]
    assert str(tmp_path) not in json.dumps(small["settings"])


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(1400)
@pytest.mark.usefixtures("bundle")
def test_all_steps_run_and_a_repeated_build_has_the_same_digest(tmp_path: Path) -> None:
    found = quick(tmp_path)["measurements"]
    assert found["ray"]["actor"]["right"]
    assert found["again"]["same"] is True
    assert found["recipe"]["drawn_per_image"] > found["full"]["drawn_per_image"] > 0
    assert found["recipe"]["settings"]["masks.pred_iou_thresh"] == {"default": 0.88, "here": 0.7}
    assert found["cuda-detectors"]["skipped"] == found["no-detectors"]["skipped"] == "not on a CPU"


def test_what_a_machine_lacks_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(builds, "NEEDED", {"not_there.module": "not-there", "torch": "torch"})
    monkeypatch.setattr(sys, "argv", ["builds.py", "--device", "cpu", "--quick"])
    with pytest.raises(SystemExit) as ended:
        builds.main()
    assert ended.value.code == 2
    assert "error: not-there not installed here" in capsys.readouterr().err


def test_without_ray_no_build_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = PartRun(torch.device("cpu"), FULL, tmp_path / "builds.json", 100.0)
    made = builds.Builds(tmp_path, {}, rows=[{}])
    monkeypatch.setattr(builds, "run_command", lambda *_: builds_ended(1, "no module named ray"))
    builds.ray_step(run, made)
    builds.small_step(run, made)
    builds.again_step(run, made)
    assert run.found["ray"]["failed"] == "exit code 1: no module named ray"
    assert run.found["small"]["skipped"] == "Ray did not start"
    assert run.found["again"]["skipped"] == "the first small build failed or was not requested"
    assert run.failures() == ["ray"]


def test_ray_is_told_of_a_gpu_that_it_does_not_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = PartRun(torch.device("cpu"), FULL, tmp_path / "builds.json", 100.0)
    made = builds.Builds(tmp_path, {})
    seen = json.dumps({"actor": {"right": True}})
    ends = [builds_ended(1, "Ray sees no GPU"), builds_ended(0, "", seen)]
    monkeypatch.setattr(builds, "run_command", lambda *_: ends.pop(0))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    builds.ray_step(run, made)
    assert run.found["ray"]["override"] == {"RAY_OVERRIDE_RESOURCES": '{"GPU": 1}'}
    assert made.environment == {"RAY_OVERRIDE_RESOURCES": '{"GPU": 1}'}
    assert made.ray_started


def test_a_different_digest_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = PartRun(torch.device("cpu"), FULL, tmp_path / "builds.json", 100.0)
    made = builds.Builds(tmp_path, {}, digest="a" * 64)
    monkeypatch.setattr(builds, "measure_build", lambda *_: {"digest": "b" * 64})
    builds.again_step(run, made)
    assert run.failures() == ["again"]


def builds_ended(code: int | None, errors: str, output: str = "") -> Any:
    from benchmarks.gpu.build_figures import Finished

    return Finished(code, output, errors, 100.0, 107.0)


def test_rates_of_a_finished_and_of_a_stopped_build() -> None:
    shards = [CommittedShard(at, 4) for at in (150.0, 130.0, 140.0, 170.0)]
    found = rates(shards, began=100.0, ended=180.0, rows=16)
    assert found["images_s"] == 16 / 80
    assert found["first_commit_s"] == 30
    assert found["images_s_between_commits"] == 12 / 40
    stopped = rates(shards, began=100.0, ended=180.0, rows=64)
    assert stopped["images_s"] is None
    assert stopped["images_s_between_commits"] == 12 / 40
    assert rates(shards[:3], 100.0, 180.0, 12)["images_s_between_commits"] is None
    assert rates([], 100.0, 180.0, 12)["first_commit_s"] is None


def test_the_cost_of_a_million_images() -> None:
    assert per_million(2.0, gpus=1, price=3.0) == {
        "seconds": 500_000,
        "gpu_hours": pytest.approx(138.889, rel=1e-4),
        "cost": pytest.approx(416.67, rel=1e-4),
    }
    assert "cost" not in (per_million(2.0, 1, None) or {})
    assert per_million(None, 1, 3.0) is None


def test_settings_that_differ_are_listed_with_the_defaults() -> None:
    assert differences(CONFIG) == {}
    found = differences({**CONFIG, "masks": {"pred_iou_thresh": 0.0}, "deidentify": {"faces": {"detector": "none"}}})
    assert found == {
        "deidentify.faces.detector": {"default": "mtcnn", "here": "none"},
        "masks.pred_iou_thresh": {"default": 0.88, "here": 0.0},
    }


def test_the_environment_of_builds_has_absolute_paths_and_no_cluster() -> None:
    made = child_environment({"PYTHONPATH": "build/ray-packages:.", "RAY_ADDRESS": "x", "RAY_AUTH_MODE": "token"})
    first, second = made["PYTHONPATH"].split(":")[:2]
    assert Path(first) == ROOT
    assert Path(second) == Path("build/ray-packages").resolve()
    assert "RAY_ADDRESS" not in made
    assert made["RAY_AUTH_MODE"] == "token"
    assert made["OMP_WAIT_POLICY"] == "PASSIVE"


def test_a_command_that_exceeds_its_time_is_stopped_with_its_children(tmp_path: Path) -> None:
    child = "import os, time; print(os.getpid(), flush=True); time.sleep(100)"
    parent = f"import subprocess, sys; print('began', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    done = run_command([sys.executable, "-c", parent], tmp_path, {}, 3)
    assert done.code is None
    assert done.ended - done.began < 30
    began, pid = done.output.split()
    assert began == "began"
    assert ends(int(pid))
    assert failed(done)["failed"].startswith("stopped after 3 s")


def ends(pid: int) -> bool:
    """Whether a killed process ends within some seconds."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().split()[2]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


def test_photographs_are_distinct_and_repeatable(tmp_path: Path) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    picture = np.random.default_rng(1).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    cv2.imwrite(str(sources / "one.png"), picture)
    catalogs = [write_photographs(sources, 3, tmp_path / name, (90, 60)) for name in ("a", "b")]
    assert catalogs[0].read_text() == catalogs[1].read_text()
    rows = [json.loads(line) for line in catalogs[0].read_text().splitlines()]
    files = [(tmp_path / "a" / row["uri"]).read_bytes() for row in rows]
    assert len(set(files)) == 3
    assert files == [(tmp_path / "b" / row["uri"]).read_bytes() for row in rows]
    assert cv2.imdecode(np.frombuffer(files[0], np.uint8), cv2.IMREAD_COLOR).shape == (60, 90, 3)


def test_a_random_checkpoint_is_a_vit_with_mobile_sams_decoder(mobile_sam_path: Path) -> None:
    from segmint.model.sam.load import detect_architecture, load_sam, sam_from_state_dict

    trained = load_sam(mobile_sam_path)
    state = random_encoder(torch.load(mobile_sam_path, weights_only=True), "vit_b", torch.device("cpu"))
    assert detect_architecture(state) == ("vit_b", 2)
    made = sam_from_state_dict(state)
    assert torch.equal(made.mask_decoder.iou_token.weight, trained.mask_decoder.iou_token.weight)
    assert 0.019 < float(made.image_encoder.state_dict()["blocks.0.attn.qkv.weight"].std()) < 0.021


class ToyEncoder(nn.Module):
    """Encoder of random tokens with a neck like SAM's."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.tokens = nn.Conv2d(3, 12, 1)
        self.neck = nn.Sequential(
            nn.Conv2d(12, 8, 1, bias=False), LayerNorm2d(8), nn.Conv2d(8, 8, 3, padding=1, bias=False), LayerNorm2d(8)
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.neck(torch.tanh(self.tokens(image)))


def test_a_fitted_neck_has_features_like_the_teachers() -> None:
    encoder, teacher = ToyEncoder(1), ToyEncoder(2)
    torch.manual_seed(3)
    *images, other = [torch.randn(1, 3, 32, 32) for _ in range(5)]
    with torch.inference_mode():
        wanted = teacher(other)
        before = float((encoder(other) - wanted).square().mean())
    found = fitted_neck(encoder, teacher, images)
    encoder.load_state_dict(
        {name.removeprefix("image_encoder."): tensor for name, tensor in found.items()}, strict=False
    )
    with torch.inference_mode():
        after = float((encoder(other) - wanted).square().mean())
    assert after < before / 3


def test_load_is_summarized_and_a_reading_may_be_missing() -> None:
    samples = [Sample(0.0, 100, 1000, 0.5, 400.0, 1900.0, 10.0), Sample(1.0, 160, 1100, 1.0, None, 1800.0, 12.0)]
    assert summarize(samples) == {
        "samples": 2,
        "cpu_busy": 0.6,
        "gpu_busy": 0.75,
        "watts": 400.0,
        "sm_mhz": 1850.0,
        "gpu_memory_gib": 12.0,
    }
    assert summarize([]) == {"samples": 0, "cpu_busy": None, "gpu_busy": None}
    assert cpu_ticks("cpu  10 1 5 80 4 0 0 0 7 7\ncpu0 1 1\n") == (16.0, 100.0)
