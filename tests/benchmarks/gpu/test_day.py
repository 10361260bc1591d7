"""The day on a GPU at reduced sizes on a CPU, so that it runs when a GPU is at hand."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import day, machine
from benchmarks.gpu.run import PartRun

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def bundle() -> None:
    if not (ROOT / "bundle" / "mobile_sam.pt").is_file():
        command = [sys.executable, "benchmarks/gpu/bundle.py", "--no-wheels"]
        subprocess.run(command, cwd=ROOT, check=True, timeout=120)


def measured(folder: Path, *parts: int) -> dict[int, dict[str, Any]]:
    """The measurements of the parts, by name."""
    found = {part: day.run_part(part, torch.device("cpu"), True, 500.0, folder) for part in parts}
    for part, run in found.items():
        assert not run.failures(), run.found
        written = json.loads((folder / f"gpu_day-{part}-cpu-quick.json").read_text())
        assert written["measurements"].keys() == run.found.keys()
    return {part: run.found for part, run in found.items()}


@pytest.mark.long
@pytest.mark.usefixtures("bundle", "one_thread")
def test_the_encoders_and_whole_images_run(tmp_path: Path) -> None:
    found = measured(tmp_path, 2, 3)
    assert found[2]["vit_h, batch 2, eager, triton"]["images_s"] > 0
    assert found[2]["vit_h, batch 2, compiled, triton"]["skipped"] == "not on a CPU"
    assert sum(found[3]["full image"]["masks"].values()) > 0
    stages = found[3]["full image, stages"]["ms"]
    assert min(stages[name] for name in ("upload, cut and resize", "encode", "plan", "decode", "draw", "measure")) > 0
    alone = found[3]["full image"]["masks"]
    assert not found[3]["full image"]["original"]
    for batch in (1, 2):
        stream = found[3][f"stream of full images, {batch} per batch"]
        assert (stream["images_per_batch"], stream["images"]) == (batch, 2 * batch)
        assert stream["masks"] == alone
        assert stream["find_images_s"] > 0
    assert found[3]["full image, launches"]["kernels"]
    assert (tmp_path / found[3]["full image, launches"]["trace"]).stat().st_size > 1000


@pytest.mark.long
@pytest.mark.usefixtures("bundle", "one_thread")
def test_the_other_parts_run(tmp_path: Path) -> None:
    found = measured(tmp_path, 1, 4, 5)
    assert "skipped" in found[1]["tests"]["summary"]
    assert found[1]["peak"]["sustained_tflops"] > 0
    assert found[5]["peak"]["peak_tflops"] > 0
    assert found[4]["vit_h against the reference, fp32"]["largest_difference"] < 1e-4
    assert found[4]["masks against the reference, fp32"]["share"]["0.99"] in (None, 1.0)
    assert found[4]["repeats, eager encoder"]["same"]
    assert found[4]["batch neighbors"]["images"] == 3
    assert found[4]["batch neighbors"]["same"]
    assert found[5]["pipeline"]["images"] == 1
    assert found[5]["prepare, one core, original kept"]["cpu_s"] > 0


def test_what_a_machine_lacks_is_named_with_what_helps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(day.NEEDED, "not_there", "not-there")
    monkeypatch.setattr(sys, "argv", ["day.py", "--device", "cpu", "--quick", "--part", "1"])
    with pytest.raises(SystemExit) as ended:
        day.main()
    assert ended.value.code == 2
    assert "not-there not installed here: `make gpu-day` installs what the bundle has" in capsys.readouterr().err


@pytest.mark.usefixtures("bundle")
def test_after_a_cuda_test_that_fails_the_part_continues_and_its_verdict_names_the_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(run: PartRun, folder: Path) -> dict[str, Any]:
        raise machine.TestsFailedError("pytest -m cuda ended with 1")

    monkeypatch.setattr(machine, "measure_tests", failing)
    command = ["day.py", "--device", "cpu", "--quick", "--part", "1", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        day.main()
    assert ended.value.code == 1
    written = json.loads((tmp_path / "gpu_day-1-cpu-quick.json").read_text())
    assert "pytest -m cuda ended with 1" in written["measurements"]["tests"]["failed"]
    assert "tflops" in json.dumps(written["measurements"]["peak"]), "the measurements after the tests"
    assert written["verdict"] == "failed: tests"
    assert "part 1: failed: tests" in capsys.readouterr().out
