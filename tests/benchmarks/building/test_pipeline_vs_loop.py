"""The benchmark of the pipeline beside a plain loop, on two images: it runs, and both sides agree."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.long
@pytest.mark.ray
def test_both_sides_give_the_same_bytes(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    options = ["--images=2", "--rounds=1", "--threads=1", "--points-per-side=3", f"--output={output}"]
    subprocess.run([sys.executable, ROOT / "benchmarks" / "building" / "pipeline_vs_loop.py", *options], check=True)
    result = json.loads(output.read_text())
    (only,) = result["rounds"]
    assert (only["images"], only["build_threads"]) == (2, 1)
    assert result["ratio"] == {"median": only["ratio"], "least": only["ratio"], "most": only["ratio"]}
    assert 0 < only["share_of_ceiling"] < 1
