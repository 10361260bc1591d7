"""Three people's first hour with an installed segmint: they type what the README says, and see what it promises.

The package is the wheel, in a folder of its own before all others on the path. Only names of files are put in the place
of the README's, and settings that make it quick are added. Commands that follow one another share a process, which
imports torch once.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import skimage.data
from PIL import Image

from tests.support.environments import COMMANDS, ended, installed_wheel

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)

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
"""What is there, by what the README calls it."""

QUICK = ("--set", "points_per_side=4", "--set", "crop_n_layers=0")


@dataclass(frozen=True)
class Workplace:
    """A folder to work in, and where the wheel is installed."""

    folder: Path
    installed: Path

    def type(self, beginning: str, *more: str) -> subprocess.CompletedProcess[str]:
        """Run the README's command that begins so, with further options."""
        return self.run("-m", "segmint", *words_of(beginning), *more)

    def type_all(self, *commands: tuple[str, ...]) -> list[subprocess.CompletedProcess[str]]:
        """Run the README's commands that begin so, each with further options, and return how they ended."""
        words = [[*words_of(beginning), *more] for beginning, *more in commands]
        return ended(self.run("-c", COMMANDS, json.dumps(words)), words)

    def run(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run Python with the installed package."""
        environment = {**os.environ, "PYTHONPATH": str(self.installed), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
        done = subprocess.run(
            [sys.executable, *arguments], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done


def words_of(beginning: str) -> list[str]:
    """The words after `segmint` of the README's command that begins so."""
    lines = {line for line in shown() if line.startswith(beginning)}
    (line,) = {beginning} & lines or lines
    _, *words = shlex.split(line, comments=True)
    return [BUCKETS.get(word, word) for word in words]


def shown() -> list[str]:
    """The README's commands."""
    text = "\n".join(block.replace("\\\n", " ") for kind, block in BLOCKS if not kind)
    return [line for line in text.splitlines() if line.startswith("segmint ")]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """Photographs, and the package: nothing else."""
    installed = installed_wheel(tmp_path_factory) / "installed"
    work = tmp_path_factory.mktemp("first-hour")
    (work / "demo/photos").mkdir(parents=True)
    for name in ("coffee", "chelsea"):
        Image.fromarray(getattr(skimage.data, name)()).save(work / f"demo/photos/{name}.png")
    made = Workplace(work, installed)
    home = made.run("-c", "import segmint; print(segmint.__file__)").stdout
    assert str(installed) in home
    return made


@pytest.fixture(scope="module")
def built(desk: Workplace) -> Workplace:
    """The engineer's hour: a configuration, a catalog, a plan, a dataset."""
    desk.run(
        "-m", "segmint", "init", "demo/build.yaml", "--catalog", "demo/catalog.parquet", "--output", "demo/dataset"
    )
    config = desk.folder / "demo/build.yaml"
    text = config.read_text()
    text = re.sub(r"#masks:\n#  profile: sa1b\n#  points_per_side: 32\n#  crop_n_layers: 2", _MASKS, text)
    config.write_text(text)

    scanned, checked, planned = desk.type_all(
        ("segmint catalog scan",), ("segmint catalog check",), ("segmint plan build.yaml", "--sample", "1", "--json")
    )
    assert [each.returncode for each in (scanned, checked, planned)] == [0, 0, 0]
    assert "2 rows" in scanned.stderr
    assert "next: segmint catalog check demo/catalog.parquet --config demo/build.yaml" in scanned.stderr
    assert "next: segmint plan demo/build.yaml" in checked.stderr
    assert json.loads(planned.stdout)["images"]["value"] == 2
    done = desk.type("segmint build build.yaml", "--set", "resources.address=local")
    assert re.search(r"written +2 images with \d+ masks in 1 shard", done.stdout)
    assert "next: segmint audit" in done.stderr
    return desk


_MASKS = "masks:\n  points_per_side: 4\n  crop_n_layers: 0"


def test_a_researcher_has_masks_within_the_hour(built: Workplace) -> None:
    desk = built
    first, _, folder, again = done = desk.type_all(
        ("segmint masks photo.jpg", "--overlay", *QUICK),
        ("segmint masks demo/photos/chelsea.png",),
        ("segmint masks photos -o masks", *QUICK),
        ("segmint masks photos -o masks", *QUICK),
    )
    assert [each.returncode for each in done] == [0, 0, 0, 0], done
    assert (desk.folder / "demo/photos/coffee.masks.json").exists()
    assert (desk.folder / "demo/photos/coffee.masks.png").exists()
    assert "demo/photos/coffee.masks.png" in first.stdout + first.stderr
    assert json.loads((desk.folder / "cat.json").read_text())["annotations"][0]["point_coords"] == [[225, 150]]
    assert sorted(path.name for path in (desk.folder / "masks").glob("c*.json")) == ["chelsea.json", "coffee.json"]
    assert "2 photographs" in folder.stderr
    assert "2 photographs" in again.stderr
    wrong = desk.run("-m", "segmint", "masks", "no.jpg", "-o", "no.json", code=2)
    assert "no.jpg" in wrong.stderr

    (script,) = [block for kind, block in BLOCKS if kind == "python" and "segmint.MaskGenerator" in block]
    script = script.replace("points_per_side=8", "points_per_side=2")
    printed = desk.run("-c", f"import matplotlib\nmatplotlib.use('agg')\n{script}").stdout
    rows = [line for line in printed.splitlines() if line.startswith("coffee.png ") or ".png" in line]
    assert len(rows) == 2, printed


def test_an_engineer_can_stop_and_grow(built: Workplace) -> None:
    again, wrong, other = done = built.type_all(
        ("segmint build build.yaml", "--set", "resources.address=local"),
        ("segmint build build.yaml", "--set", "masks.points_per_sid=4"),
        ("segmint build build.yaml", "--set", "masks.points_per_side=5"),
    )
    assert [each.returncode for each in done] == [0, 2, 2], done
    assert "nothing to do: all rows of " in again.stdout
    told = built.run("-m", "segmint", "status", "demo/dataset")
    assert "1 of 1" in told.stdout
    assert "did you mean points_per_side?" in wrong.stderr
    assert "masks.points_per_side" in other.stderr


def test_an_auditor_sees_the_verdict_and_what_is_damaged(built: Workplace) -> None:
    clean, _, verified, _ = done = built.type_all(
        ("segmint audit demo/dataset", "--privacy-sample", "1"),
        ("segmint report demo/dataset",),
        ("segmint verify demo/dataset",),
        ("segmint export demo/dataset",),
    )
    assert [each.returncode for each in done] == [0, 0, 0, 0], done
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
    damaged = built.run("-m", "segmint", "audit", "demo/dataset", "--integrity-only", code=1)
    assert damaged.stdout.startswith("1 finding")
    assert shard.name in damaged.stdout
