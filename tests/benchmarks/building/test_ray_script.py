"""The benchmark of a Ray Data script and segmint's steps, on few photographs: who loses or repeats which."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_a_build_alone_ends_and_names_the_photograph_that_kills_its_worker(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    options = ["--images=8", "--points-per-side=2", "--deaths=3", f"--output={output}"]
    options += ["--sides", "segment_anything", "segmint build"]
    subprocess.run([sys.executable, ROOT / "benchmarks" / "building" / "ray_script.py", *options], check=True)
    script, build = json.loads(output.read_text())["sides"]
    assert (script["ended_by_itself"], script["named"]) == (False, False)
    assert script["deaths"][1] >= 3
    assert 1 <= script["lost"] < 8
    assert (build["ended_by_itself"], build["named"], build["done"]) == (True, True, 7)
    assert (build["lost"], build["twice"]) == (0, 0)
