"""The gate's verdict in a trial is that of the command, by names that training gives its datasets."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.training.datasets import write_scenes
from benchmarks.training.gate import gate, summary
from benchmarks.training.scenes import LabeledScene
from segmint.catalogs.dataset.manifest import load_manifest
from segmint.catalogs.lineage import TrainingDatasetRef
from tests.pipeline.engine.evaluate.gate.conftest import put_lineage
from tests.support.committed import ROWS, masks, pixels
from tests.support.locations import location_of


@pytest.mark.long
@pytest.mark.usefixtures("processes")
def test_the_command_judges_and_scenes_that_were_trained_on_do_not_count(tmp_path: Path) -> None:
    scenes = [LabeledScene(f"scene-{number}", pixels(number), np.stack(masks(number))) for number in range(ROWS)]
    write_scenes(tmp_path / "scenes-0", scenes, "imported")
    assert load_manifest(location_of(tmp_path / "scenes-0")).name == "scenes-0"
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.pth").write_bytes(name.encode())
    new = tmp_path / "new" / "new.pth"
    put_lineage(new, [(TrainingDatasetRef(name="scenes-0", digest="0" * 64), 0.0)])
    found = gate(tmp_path, "old/old.pth", new, ["scenes-0"], "scenes-0", threads=1)
    assert (found["verdict"], found["passes"]) == ("no independent truth", False)
    assert found["skipped"] == {"scenes-0": ROWS}
    assert str(tmp_path) not in str(found)
    with pytest.raises(SystemExit, match=r"(?s)ended with 2: .*missing: no such dataset"):
        gate(tmp_path, "old/old.pth", new, ["missing"], "scenes-0", threads=1)


def test_an_exit_code_that_contradicts_the_answer_is_an_error() -> None:
    with pytest.raises(SystemExit, match="the gate says passes: True, and the command ended with 1"):
        summary({"passes": True}, 1)
    found = {"verdict": "better", "reasons": [], "independent": 1, "guards": [], "images": [], "guard_images": []}
    assert summary({**found, "passes": True}, 3)["passes"] is False
