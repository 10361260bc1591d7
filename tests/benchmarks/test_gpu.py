"""The GPU benchmark at reduced sizes on a CPU, so that it runs when a GPU is at hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bundle() -> Path:
    folder = ROOT / "bundle"
    if not (folder / "mobile_sam.pt").is_file():
        subprocess.run([sys.executable, ROOT / "benchmarks/bundle.py", folder], check=True, timeout=120)
    return folder


def run(output: Path, *arguments: str, hidden: tuple[str, ...] = ()) -> dict:
    """What the benchmark writes; packages `hidden` are not found, as on a machine without them."""
    lines = [
        "import importlib.util, runpy, sys",
        f"hidden, find = {hidden!r}, importlib.util.find_spec",
        "importlib.util.find_spec = lambda name, *rest: None if name in hidden else find(name, *rest)",
        f"sys.argv = ['gpu.py', '--device', 'cpu', '--quick', '--output', {str(output)!r}, *{arguments!r}]",
        f"runpy.run_path({str(ROOT / 'benchmarks/gpu.py')!r}, run_name='__main__')",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, timeout=580, env=environment)
    return json.loads(output.read_text())


@pytest.mark.long
@pytest.mark.usefixtures("bundle")
def test_every_part_runs(tmp_path: Path) -> None:
    result = run(tmp_path / "out.json")
    assert not [part for part in result if "failed" in result[part]]
    assert result["peak"]["bf16_tflops"] > 0
    assert max(way["largest_difference"] for way in result["attention"].values()) < 0.1
    assert {"eager_batch_1", "compiled_batch_2", "reference", "times_the_reference"} <= result["encoder"].keys()
    assert result["encoder"]["reference"]["mean_difference"] < 0.05 * result["encoder"]["reference"]["std"]
    assert result["upscaling"]["torch_tiles"]["stable"] > 0
    assert result["upscaling"]["torch_tiles"]["same_bits"]
    assert result["masks"]["ours_fp32"]["masks"] == result["masks"]["reference"]["masks"]
    assert sum(result["sa1b"]["crops_per_batch_5"]["masks"].values()) > 0


@pytest.mark.long
@pytest.mark.usefixtures("bundle")
def test_without_opencv_the_official_profile_runs_and_the_other_says_why_not(tmp_path: Path) -> None:
    result = run(tmp_path / "out.json", "--parts", "masks", "sa1b", hidden=("cv2", "pycocotools"))
    assert result["machine"]["missing"][:2] == ["cv2", "pycocotools"]
    assert "never calls it" in result["masks"]["opencv"]
    assert "failed" not in result["masks"]["ours_fp32"]
    assert "OpenCV (cv2) is not installed here" in result["sa1b"]["failed"]
