"""Three people's first hour with an installed segmint: they type what the README says, and see what it promises.

They also read `docs/README.md`. The package is the wheel, in a folder of its own before all others on the path. Only
names of files are put in the place of the pages', and settings that make it quick are added. All commands but the build
share a process, which imports torch once; the build is a process of its own, as a shell starts it.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import skimage.data
from PIL import Image

from tests.support.environments import Session, installed_wheel

ROOT = Path(__file__).resolve().parents[2]
PAGES = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/README.md"))
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGES, re.DOTALL | re.MULTILINE)

BUCKETS = {
    "s3://acme-photos/2026": "demo/photos",
    "s3://acme-photos/catalog.parquet": "demo/catalog.parquet",
    "s3://acme-datasets/street-2026": "demo/dataset",
    "LicenseRef-acme-2026": "CC0-1.0",
    "build.yaml": "demo/build.yaml",
    "photos": "demo/photos",
    "photo.jpg": "demo/photos/coffee.png",
    "photo.json": "coffee.json",
}
"""What is there, by what the pages call it."""

LOCAL = ("--set", "resources.address=local")
QUICK = ("--set", "points_per_side=4", "--set", "crop_n_layers=0")


@dataclass(frozen=True)
class Workplace:
    """A folder to work in, where the wheel is installed, and a process of that package."""

    folder: Path
    installed: Path
    session: Session

    def type(self, beginning: str, *more: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run the command of the pages that begins so, with further options, in the process that runs them all."""
        return self.run(*words_of(beginning), *more, code=code)

    def run(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a command, or `-c` and code, in that process."""
        done = self.session.run(*words)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def start(self, beginning: str, *more: str) -> subprocess.CompletedProcess[str]:
        """Run the command of the pages that begins so, with further options, in a process of its own."""
        command = [sys.executable, "-m", "segmint", *words_of(beginning), *more]
        environment = {**os.environ, "PYTHONPATH": str(self.installed), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        return done


def words_of(beginning: str) -> list[str]:
    """The words after `segmint` of the command of the pages that begins so."""
    lines = {line for line in shown() if line.startswith(beginning)}
    (line,) = {beginning} & lines or lines
    _, *words = shlex.split(line, comments=True)
    return [BUCKETS.get(word, word) for word in words]


def shown() -> list[str]:
    """The commands of the pages."""
    text = "\n".join(block.replace("\\\n", " ") for kind, block in BLOCKS if not kind)
    return [line for line in text.splitlines() if line.startswith("segmint ")]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    """Photographs, and the package: nothing else."""
    installed = installed_wheel(tmp_path_factory) / "installed"
    work = tmp_path_factory.mktemp("first-hour")
    (work / "demo/photos").mkdir(parents=True)
    for name in ("coffee", "chelsea"):
        Image.fromarray(getattr(skimage.data, name)()[:200, :300]).save(work / f"demo/photos/{name}.png")
    session = Session(work, installed)
    assert str(installed) in session.home
    yield Workplace(work, installed, session)
    session.close()


@pytest.fixture(scope="module")
def built(desk: Workplace) -> Workplace:
    """The engineer's hour: a configuration, a catalog, a plan, a dataset."""
    desk.run("init", "demo/build.yaml", "--catalog", "demo/catalog.parquet", "--output", "demo/dataset")
    config = desk.folder / "demo/build.yaml"
    text = config.read_text()
    text = re.sub(r"#masks:\n#  profile: sa1b\n#  points_per_side: 32\n#  crop_n_layers: 2", _MASKS, text)
    config.write_text(text)

    scanned = desk.type("segmint catalog scan")
    checked = desk.type("segmint catalog check")
    planned = desk.type("segmint plan build.yaml", "--sample", "1", "--json")
    assert "2 rows" in scanned.stderr
    assert "next: segmint catalog check demo/catalog.parquet --config demo/build.yaml" in scanned.stderr
    assert "next: segmint plan demo/build.yaml" in checked.stderr
    assert json.loads(planned.stdout)["images"]["value"] == 2
    done = desk.start("segmint build build.yaml", *LOCAL, "--set", "resources.segment.actors=1")
    assert re.search(r"written +2 images with \d+ masks in 1 shard", done.stdout)
    assert "next: segmint audit" in done.stderr
    return desk


_MASKS = "masks:\n  points_per_side: 4\n  crop_n_layers: 0"


def test_a_researcher_has_masks_within_the_hour(built: Workplace) -> None:
    desk = built
    first = desk.type("segmint masks photo.jpg", "--overlay", *QUICK)
    desk.type("segmint masks demo/photos/chelsea.png")
    folder = desk.type("segmint masks photos -o masks", *QUICK)
    again = desk.type("segmint masks photos -o masks", *QUICK)
    assert (desk.folder / "demo/photos/coffee.masks.json").exists()
    assert (desk.folder / "demo/photos/coffee.masks.png").exists()
    assert "demo/photos/coffee.masks.png" in first.stdout + first.stderr
    assert json.loads((desk.folder / "cat.json").read_text())["annotations"][0]["point_coords"] == [[225, 150]]
    assert sorted(path.name for path in (desk.folder / "masks").glob("c*.json")) == ["chelsea.json", "coffee.json"]
    assert "2 photographs" in folder.stderr
    assert "2 photographs" in again.stderr
    wrong = desk.run("masks", "no.jpg", "-o", "no.json", code=2)
    assert "no.jpg" in wrong.stderr

    (script,) = [block for kind, block in BLOCKS if kind == "python" and "segmint.MaskGenerator" in block]
    script = script.replace("points_per_side=8", "points_per_side=2")
    printed = desk.run("-c", f"import matplotlib\nmatplotlib.use('agg')\n{script}").stdout
    rows = [line for line in printed.splitlines() if line.startswith("coffee.png ") or ".png" in line]
    assert len(rows) == 2, printed


def test_an_engineer_can_stop_and_grow(built: Workplace) -> None:
    again = built.type("segmint build build.yaml", *LOCAL)
    assert "nothing to do: all rows of " in again.stdout
    assert "1 of 1" in built.run("status", "demo/dataset").stdout
    wrong = built.type("segmint build build.yaml", "--set", "masks.points_per_sid=4", code=2)
    assert "did you mean points_per_side?" in wrong.stderr
    other = built.type("segmint build build.yaml", "--set", "masks.points_per_side=5", code=2)
    assert "masks.points_per_side" in other.stderr


def test_an_auditor_sees_the_verdict_and_what_is_damaged(built: Workplace) -> None:
    clean = built.type("segmint audit demo/dataset", "--privacy-sample", "1")
    built.type("segmint report demo/dataset")
    verified = built.type("segmint verify demo/dataset")
    built.type("segmint export demo/dataset")
    assert clean.stdout.startswith("verdict: no findings")
    assert "next: segmint report demo/dataset" in clean.stderr
    assert "<html" in (built.folder / "demo/dataset/report/index.html").read_text()[:300]
    assert "version 1" in verified.stdout
    coco = json.loads((built.folder / "demo/coco/instances.json").read_text())
    assert len(coco["images"]) == 2

    (shard,) = (built.folder / "demo/dataset/shards").glob("*.tar")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    damaged = built.run("audit", "demo/dataset", "--integrity-only", code=1)
    assert damaged.stdout.startswith("integrity: 1 finding")
    assert shard.name in damaged.stdout
