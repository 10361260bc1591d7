"""Building small datasets in tests as a user would: a folder of photographs, a catalog, a YAML file, the command."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from typer.testing import CliRunner

from segmint.catalogs.dataset.outputs import OUTPUTS
from segmint.catalogs.dataset.versions import VERSIONS
from segmint.catalogs.layout import DATASET_ID
from segmint.pipeline.commands.cli import app
from tests.support.photographs import photograph

ROOT = Path(__file__).resolve().parents[2]

SMALL = {
    "name": "small",
    "images_per_shard": 3,
    "license": {"allow": ["CC0-1.0", "CC-BY-4.0"]},
    "masks": {"points_per_side": 3, "crop_n_layers": 0, "pred_iou_thresh": 0.7, "stability_score_thresh": 0.8},
    "model": {"threads": 1, "device": "cpu"},
    "rows_per_block": 2,
    "retry_wait_s": 1,
    "resources": {"segment": {"actors": 1}},
}
"""A configuration that takes seconds: nine prompts an image, no crops, one actor with one thread."""

AS_SHIPPED = {**SMALL["model"], "kernels": "torch"}
"""The `model` part of a configuration that computes as a cluster does to which Ray ships the checkout: without the
library of CPU kernels."""

NO_DETECTORS = {"faces": {"detector": "none"}, "plates": {"detector": "none"}}
"""The `deidentify` part of a configuration without detectors, whose processes take seconds to start."""

ONE_EACH = {"segment": {"actors": 1}, "prepare": {"actors": 1, "num_cpus": 0.5}}
"""Pools of one actor: a cluster of several CPUs would have more."""

SEVERAL_ACTORS = {"segment": {"actors": 3, "num_cpus": 1}, "prepare": {"actors": 2, "num_cpus": 0.5}}
"""Pools of several actors on two cores."""


def write_photographs(folder: Path, count: int) -> list[str]:
    """`count` different small photographs as JPEG files; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = [photograph(name, (240, 180)) for name in ("astronaut", "coffee", "chelsea", "rocket")]
    names = []
    for index in range(count):
        pixels = np.roll(sources[index % len(sources)], 7 * (index // len(sources)), axis=1)
        names.append(f"photo_{index:03}.jpg")
        Image.fromarray(pixels).save(folder / names[-1], quality=92)
    return names


def write_catalog(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A JSON Lines catalog."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def small_catalog(folder: Path, count: int = 8) -> Path:
    """A catalog of `count` photographs, of which the third has a forbidden license and the last is missing."""
    names = write_photographs(folder, count - 1)
    rows = [{"uri": name, "license": "CC0-1.0", "image_id": f"image-{i}"} for i, name in enumerate(names)]
    rows[2]["license"] = "CC-BY-NC-4.0"
    rows.append({"uri": "nowhere.jpg", "license": "CC0-1.0", "image_id": "image-missing"})
    return write_catalog(folder / "catalog.jsonl", rows)


def write_config(path: Path, catalog: str | Path, output: str | Path, **changes: Any) -> Path:
    """`SMALL` with a catalog, an output and changes, as YAML."""
    tree = {**SMALL, "catalog": str(catalog), "output": str(output), **changes}
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def segmint(
    *arguments: str | Path,
    check: int | None = 0,
    timeout: float = 300,
    module: str = "segmint",
    **environment: str,
) -> str:
    """Run the command in a separate process; return what it printed, both streams together.

    `check` is the exit code expected; None takes any. `module` is run as the command.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    if check is not None and done.returncode != check:
        raise AssertionError(f"segmint {arguments} ended with {done.returncode}, not {check}:\n{done.stdout}")
    return done.stdout


def segmint_and_modules(*arguments: str | Path) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """Run the command in a separate process; return how it ended, and the names of the modules that it had loaded."""
    with tempfile.NamedTemporaryFile() as names:
        script = (
            "import atexit, pathlib, sys\nfrom segmint.pipeline.commands.cli import main\n"
            "names = pathlib.Path(sys.argv.pop(1))\n"
            "atexit.register(lambda: names.write_text(' '.join(sys.modules)))\nmain()\n"
        )
        words = [sys.executable, "-c", script, names.name, *map(str, arguments)]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
        return done, set(Path(names.name).read_text().split())


def segmint_here(*arguments: str | Path, check: int = 0) -> str:
    """Run the command in this process, which has imported torch and Ray.

    For commands that end before Ray starts, and for builds with `local_ray`, which such a build treats as a cluster.
    """
    done = CliRunner().invoke(app, list(map(str, arguments)))
    if done.exit_code != check:
        raise AssertionError(f"segmint {arguments} ended with {done.exit_code}, not {check}:\n{done.output}")
    return done.output


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file under a folder, by its path there; without a dataset's recorded versions, outputs, and id.

    Versions have their time, and kills and ranges of shards leave other numbers of them. Tests that read a shared
    dataset note what they write of it. An id is random.
    """
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] not in (VERSIONS, OUTPUTS, DATASET_ID)
    }
