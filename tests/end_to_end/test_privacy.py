"""The output of a build has no face, no plate and no metadata, and no byte of an original is on disk."""

import contextlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.builds import ROOT, photograph, write_catalog, write_config
from tests.support.traces import files_with_traces, scan_data, telling_windows

pytestmark = pytest.mark.ray

SECRET = "a-secret-that-only-the-metadata-of-the-original-holds"


def with_metadata(path: Path, pixels: np.ndarray) -> None:
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x010E] = SECRET  # ImageDescription
    exif[0x8825] = {1: "N", 2: (47.0, 22.0, 0.0)}  # GPS
    image.save(path, quality=97, exif=exif, comment=SECRET.encode(), icc_profile=b"x" * 128)


@pytest.fixture(scope="module")
def ray_folder() -> Iterator[Path]:
    # Ray's sockets need a short path.
    folder = Path(tempfile.mkdtemp(prefix="sm-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def built(ray_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path, str]:
    """Photographs, the dataset, the spilled objects, and the log of a build whose object store spills everything."""
    folder = tmp_path_factory.mktemp("privacy")
    (folder / "photos").mkdir()
    rows = []
    for name in ("astronaut", "coffee", "chelsea"):
        pixels = photograph(name)
        with_metadata(folder / "photos" / f"{name}.jpg", pixels)
        rows.append({"uri": f"{name}.jpg", "license": "CC0-1.0"})
    catalog = write_catalog(folder / "photos" / "catalog.jsonl", rows)
    # Short sides of 200 and a crop layer make `prepare` pass on the larger originals, de-identified.
    config = write_config(
        folder / "build.yaml",
        catalog,
        folder / "dataset",
        release={"short_side": 200},
        masks={"points_per_side": 2, "crop_n_layers": 1, "pred_iou_thresh": 0.5, "stability_score_thresh": 0.5},
        resources={"segment": {"actors": 1}, "object_store_memory": 80_000_000},
        rows_per_block=1,  # blocks wait in the object store while an earlier one is segmented
    )
    spilling = {"RAY_TMPDIR": str(ray_folder), "RAY_object_spilling_threshold": "0.0001", "RAY_min_spilling_size": "0"}
    kept = FileCollector(ray_folder, folder / "kept")
    kept.start()
    try:
        done = subprocess.run(
            [sys.executable, "-c", HOLDING, "build", str(config)],
            cwd=ROOT,
            env={**os.environ, **spilling, "KEPT": str(folder / "kept"), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=500,
        )
    finally:
        kept.stop()
    assert done.returncode == 0, done.stdout
    return folder / "photos", folder / "dataset", ray_folder, done.stdout


HOLDING = """
import os, time
from pathlib import Path
import ray
from ray.data._internal.execution.interfaces.ref_bundle import RefBundle
from segmint.pipeline import build
from segmint.pipeline.commands.cli import main
from tests.support.two_masks import TwoMaskSegment

held, kept = [], Path(os.environ["KEPT"])
made, shut_down = RefBundle.__post_init__, ray.shutdown

def hold(bundle):
    made(bundle)
    held.extend(bundle.block_refs)

def shut_down_once_spilled():
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not any(path.stat().st_size > 10_000 for path in kept.iterdir()):
        time.sleep(0.1)
    shut_down()

RefBundle.__post_init__ = hold
build.Segment = TwoMaskSegment
ray.shutdown = shut_down_once_spilled
main()
"""
"""The command, which holds every block of the build: Ray must spill what nothing reads, however fast the machine.

The segment stage is a stub, which decodes what it gets: its masks take no part in this.
"""


class FileCollector(threading.Thread):
    """Hard-links every file that appears in Ray's folder, since Ray deletes spilled objects once they are used."""

    def __init__(self, folder: Path, destination: Path) -> None:
        super().__init__(daemon=True)
        self._folder, self._destination = folder, destination
        self._ended = threading.Event()

    def run(self) -> None:
        self._destination.mkdir()
        while not self._ended.wait(0.1):
            for path in self._folder.rglob("*spilled_objects*/*"):
                with contextlib.suppress(FileExistsError, FileNotFoundError):
                    os.link(path, self._destination / path.name)

    def stop(self) -> None:
        self._ended.set()
        self.join()


def released(dataset: Path) -> Iterator[tuple[str, Image.Image, bytes]]:
    for path in sorted((dataset / "shards").iterdir()):
        with tarfile.open(path) as archive:
            for member in archive.getmembers():
                if member.name.endswith(".jpg"):
                    data = archive.extractfile(member).read()
                    yield member.name, Image.open(io.BytesIO(data)), data


def test_no_metadata_survives(built: tuple[Path, Path, Path, str]) -> None:
    _, dataset, _, _ = built
    pictures = list(released(dataset))
    assert len(pictures) == 3
    for _, image, data in pictures:
        assert set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
        assert not image.getexif()
        assert SECRET.encode() not in data


def test_no_byte_of_an_original_is_on_disk_though_the_object_store_spilled(
    built: tuple[Path, Path, Path, str],
) -> None:
    photos, dataset, ray_folder, printed = built
    kept = photos.parent / "kept"
    assert any(path.stat().st_size > 10_000 for path in kept.iterdir()), "nothing was spilled: this shows nothing"
    needles = np.unique(
        np.concatenate([telling_windows(scan_data(path.read_bytes())) for path in photos.glob("*.jpg")])
    )
    assert len(needles) > 100_000
    assert files_with_traces(needles, [photos]), "the finder of traces finds the originals themselves"
    assert files_with_traces(needles, [ray_folder, kept, dataset]) == []
    holders = [
        path
        for folder in (ray_folder, kept, dataset)
        for path in folder.rglob("*")
        if path.is_file() and SECRET.encode() in path.read_bytes()
    ]
    assert holders == []
    assert SECRET not in printed


def test_the_regions_are_recorded_and_the_face_is_one_of_them(built: tuple[Path, Path, Path, str]) -> None:
    import duckdb

    _, dataset, _, _ = built
    rows = duckdb.sql(
        f"select image_id, faces, plates, regions from '{dataset}/images/*.parquet' order by ordinal"
    ).fetchall()
    found = {image_id: (faces, plates, len(regions)) for image_id, faces, plates, regions in rows}
    assert found == {"astronaut.jpg": (1, 0, 1), "coffee.jpg": (0, 0, 0), "chelsea.jpg": (0, 0, 0)}
    assert rows[0][3][0]["kind"] == "face"
