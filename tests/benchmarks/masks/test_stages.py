"""The benchmark of the stages: its clock adds up and times what the generator calls; all of it on a small grid."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.masks.stages import NETWORK, STAGES, WITH_KERNELS, StageClock, resized, timed_stages
from segmint.model.automatic.generator import MaskGenerator
from segmint.model.automatic.settings import MaskSettings
from segmint.model.sam.load import load_sam
from segmint.model.sam.predictor import Predictor

ROOT = Path(__file__).resolve().parents[3]


def test_a_stage_within_another_counts_for_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 4.0, 4.5, 10.0, 12.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    clock = StageClock()
    inner = clock.timing("suppression", lambda: "inner")
    outer = clock.timing("clean-up", lambda: inner())
    assert outer() == "inner"
    assert clock.timing("RLE", len)("four") == 4
    assert {stage: seconds for stage, seconds in clock.seconds.items() if seconds} == {
        "suppression": 3.0,
        "clean-up": 1.5,
        "RLE": 2.0,
    }


@pytest.mark.long
@pytest.mark.usefixtures("one_thread")
def test_every_stage_of_the_generator_is_timed_and_nothing_of_it_changes(
    mobile_sam_path: Path, coffee: np.ndarray
) -> None:
    settings = MaskSettings.sa1b(points_per_side=3, crop_n_layers=0)
    generator = MaskGenerator(Predictor(load_sam(mobile_sam_path)), settings)
    embed, plain = Predictor.embed_many, generator.generate(coffee)
    started = time.perf_counter()
    with timed_stages() as clock:
        timed = generator.generate(coffee)
    total = time.perf_counter() - started
    assert timed == plain
    assert plain.records
    assert list(clock.seconds) == list(STAGES)
    assert min(clock.seconds.values()) > 0
    assert sum(clock.seconds.values()) <= total
    assert Predictor.embed_many is embed


def test_a_photograph_keeps_its_shape_at_every_size() -> None:
    image = np.zeros((200, 300, 3), dtype=np.uint8)
    assert [resized(image, side).shape for side in (30, 600)] == [(20, 30, 3), (400, 600, 3)]


@pytest.mark.long
def test_stages_and_scaling_are_recorded(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    options = ["--points-per-side=4", "--rounds=1", "--threads=1", f"--output={output}"]
    scaling = ["--grids", "2", "4", "--layers", "0", "1", "--sides", "200"]
    subprocess.run([sys.executable, ROOT / "benchmarks" / "masks" / "stages.py", *options, *scaling], check=True)
    result = json.loads(output.read_text())
    assert set(result["kernels"]) <= {"fp32", "avx2"}
    for pair in result["kernels"].values():
        assert pair["equal"] == pair["masks"] > 0
        assert list(pair["stages"]) == list(WITH_KERNELS)
        assert all(row["seconds"] > 0 and row["torch_seconds"] > 0 for row in pair["stages"].values())
    assert list(result["precisions"]) == ["fp32"]
    for found in result["precisions"].values():
        assert [row["name"] for row in found["stages"]] == [*STAGES, "other"]
        assert sum(row["share"] for row in found["stages"]) == pytest.approx(1, abs=0.001)
        assert list(found["network"]) == list(NETWORK)
        assert all(0 < stage["of_peak"] <= 1 for stage in found["network"].values())
        assert found["network"]["draw"]["computes_in"] == "fp32"
        assert 0 < found["drawn"] <= 3 * 16
        assert (found["encodes"], found["prompts"]) == (1, 16)
        assert [row["prompts"] for row in found["scaling"]["points_per_side"]] == [4, 16]
        assert [(row["encodes"], row["prompts"]) for row in found["scaling"]["crop_n_layers"]] == [(1, 16), (5, 32)]
        (small,) = found["scaling"]["long_side"]
        assert (small["height"], small["width"], small["long_side"]) == (200, 200, 200)
        assert found["whole"]["seconds"] == found["scaling"]["crop_n_layers"][0]["seconds"]
