"""An image that is taken down while its dataset is built: no later build brings back its bytes or its names."""

import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.findings import Reason
from segmint.infra.metrics import RunMetrics
from segmint.infra.ray_session import Cluster
from segmint.infra.storage.storage import Storage
from segmint.pipeline.build import run_build, run_rows
from segmint.pipeline.building.dataset import open_or_create
from segmint.pipeline.building.execution.accounting import MissingShards
from segmint.pipeline.building.execution.stages import lay_out
from segmint.pipeline.commands.cli import app
from segmint.pipeline.config.config import Config, load_config
from segmint.pipeline.quality.audit.integrity import audit_integrity
from tests.support.builds import (
    NO_DETECTORS,
    ONE_EACH,
    ROOT,
    segmint,
    write_catalog,
    write_config,
    write_photographs,
)
from tests.support.everything import jpegs, mentions
from tests.support.locations import location_of
from tests.support.small_dataset import build_dataset
from tests.support.traces import files_with_traces, telling_windows
from tests.support.two_masks import TwoMaskSegment

pytestmark = pytest.mark.ray

ID, FILE = "portrait-of-ada", "ada-at-the-table.jpg"
COPIES = ("copy.jpg", "late.jpg", "again.jpg")
"""Files with the bytes of `FILE`: in the catalog from the start, missing at first, and in the catalog that grew."""

QUICK: dict[str, Any] = {
    "deidentify": NO_DETECTORS,
    "resources": ONE_EACH,
    "masks": {"points_per_side": 2, "crop_n_layers": 0, "pred_iou_thresh": 0.7, "stability_score_thresh": 0.8},
}


class TakedownScene:
    """A dataset of photographs; image 1, in shard 0, is to be taken down."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.photos, self.dataset = folder / "photos", folder / "dataset"
        self.others = write_photographs(self.photos, 5)
        self.source = (self.photos / self.others.pop(1)).rename(self.photos / FILE).read_bytes()
        (self.photos / COPIES[0]).write_bytes(self.source)
        self.rows = [
            {"uri": FILE, "image_id": ID},
            *({"uri": name} for name in (self.others[0], COPIES[1], self.others[1], COPIES[0], self.others[2])),
        ]
        self.config = write_config(
            folder / "build.yaml", self.photos / "catalog.jsonl", self.dataset, **QUICK, **changes
        )
        self.name(self.rows)
        self.release = b""

    @property
    def loaded(self) -> Config:
        return load_config(str(self.config))

    def name(self, rows: list[dict[str, str]]) -> None:
        """Write the catalog."""
        write_catalog(self.photos / "catalog.jsonl", [{"license": "CC0-1.0", **row} for row in rows])

    def look(self) -> None:
        """Keep what is to be taken down; put its picture into a report."""
        self.release = jpegs(self.dataset)["sa_1.jpg"]
        (self.dataset / "report/images").mkdir(parents=True)
        (self.dataset / "report/images/sa_1.jpg").write_bytes(self.release)
        (self.dataset / "report/index.html").write_text(f"<img src='images/sa_1.jpg' alt='{ID}'>")

    def arguments(self) -> list[str]:
        """Of the command that takes the image down."""
        ids = self.photos.parent / "ids.txt"
        ids.write_text(f"{ID}\n")
        return ["takedown", str(self.dataset), "--ids", str(ids), "--reason", "she asked for it", "--yes"]

    def grow(self) -> None:
        """Name the same bytes once more in the catalog, and put them where they were missing."""
        for copy in COPIES[1:]:
            (self.photos / copy).write_bytes(self.source)
        self.name([*self.rows, {"uri": COPIES[2]}, {"uri": self.others[3]}])

    def windows(self) -> np.ndarray:
        """64-byte windows of the source and the released image that no other photograph has, such as JPEG's tables."""
        own = np.union1d(telling_windows(self.source), telling_windows(self.release))
        others = [(self.photos / name).read_bytes() for name in self.others] + list(jpegs(self.dataset).values())
        return np.setdiff1d(own, np.concatenate([telling_windows(other) for other in others]))

    def check_that_nothing_is_left(self) -> np.ndarray:
        """Neither bytes nor names, in any file; and the finder of bytes finds them where they are. Return `windows`."""
        windows = self.windows()
        assert len(windows) > 5_000
        assert {path.name for path in files_with_traces(windows, [self.photos])} == {FILE, *COPIES}
        assert files_with_traces(windows, [self.dataset]) == []
        words = [ID, FILE, hashlib.sha256(self.source).hexdigest()]
        assert mentions(self.dataset, words) == []
        names = [word.encode() for word in words]
        files = [path for path in self.dataset.rglob("*") if path.is_file()]
        holders = {path.parent.name for path in files if any(name in path.read_bytes() for name in names)}
        assert holders == {"tombstones"}
        assert {path.parent.name for path in files} >= {"versions", "shards", "images", "rejects", "catalog"}
        assert not {path.relative_to(self.dataset).parts[0] for path in files} & {"report", "reservations"}
        assert [finding.line() for finding in audit_integrity(location_of(self.dataset)).findings] == []
        return windows

    def prove(self) -> tuple[int, list[str]]:
        """The exit code of `takedown --prove`, and where it found the image."""
        done = CliRunner().invoke(app, ["takedown", str(self.dataset), "--prove", ID, "--json"])
        return done.exit_code, json.loads(done.stdout)["found"]


def test_neither_growth_nor_a_retry_nor_another_driver_brings_it_back(
    tmp_path: Path, local_ray: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stub of the segment stage, which only sees released images."""
    monkeypatch.setattr("segmint.pipeline.build.Segment", TwoMaskSegment)
    scene = TakedownScene(tmp_path)
    build_dataset(scene.config, only=[0], segment_class=TwoMaskSegment)
    scene.look()
    tar = next((scene.dataset / "shards").iterdir())
    before = tar.read_bytes()

    # Another driver has opened the dataset, laid out its stages and read its rows, and sleeps.
    opened = open_or_create(scene.loaded, Storage())
    stages = lay_out(scene.loaded, opened, local_ray)
    missing = MissingShards(scene.loaded, opened, opened.shards(), RunMetrics("other"))
    window = missing.read(missing.left)
    assert missing.left == [1]
    done = CliRunner().invoke(app, scene.arguments())
    assert (done.exit_code, "1 image removed from 1 shard" in done.stdout) == (0, True), done.output

    # It wakes up: its stages let the copy through, and its writer finds the tombstone.
    (result,) = run_rows(window, stages, missing.write)
    assert (result.status, result.counts["images"], result.counts["rejected:taken_down"]) == ("committed", 2, 1)
    scene.grow()
    accounting = run_build(scene.loaded, grow=True, retry_rejected=[Reason.NOT_FOUND])
    assert (accounting.rows, accounting.written, accounting.rejected) == (8, 4, {"taken_down": 4})
    assert (accounting.retried_rows, accounting.retried_images) == (1, 0)

    windows = scene.check_that_nothing_is_left()
    assert scene.prove() == (0, [])
    tar.write_bytes(before)
    assert files_with_traces(windows, [scene.dataset]) == [tar]
    assert scene.prove() == (1, [f"shards/{tar.name}: not in any commit, and may contain the image"])
    tar.unlink()
    page = scene.dataset / "report/index.html"
    page.parent.mkdir(exist_ok=True)
    page.write_text(f"<h1>{ID}</h1>")
    assert scene.prove() == (1, [f"{page} mentions it"])
    shutil.rmtree(page.parent)
    assert scene.prove() == (0, [])


@pytest.mark.long
@pytest.mark.parametrize("commits", [1, 3])
def test_a_takedown_beside_a_running_build(tmp_path: Path, commits: int) -> None:
    """Two processes: whatever the build is doing when the takedown comes."""
    scene = TakedownScene(tmp_path, images_per_shard=1, window_shards=2)
    command = [sys.executable, "-m", "segmint", "build", str(scene.config)]
    log = CommitLog(location_of(scene.dataset))
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as build:
        while len(log.committed()) < commits:
            assert build.poll() is None
            time.sleep(0.01)
        scene.look()
        segmint(*scene.arguments())
        assert build.wait(200) == 0
    scene.grow()
    segmint("build", scene.config, "--grow", "--retry-rejected", "not_found")
    scene.check_that_nothing_is_left()
    assert scene.prove() == (0, [])
