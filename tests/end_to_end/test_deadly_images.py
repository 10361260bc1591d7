"""Images that crash, hang or starve the process that decodes or segments them are refused; all others are unchanged."""

import io
import os
import tarfile
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from segmint.operators.segment.segment import Segment
from tests.support.bad_images import ALLOCATE, CRASH, EXIT, HANG, POISON, deadly_bitmap
from tests.support.builds import NO_DETECTORS, ROOT, photograph, segmint, write_catalog, write_config
from tests.support.small_dataset import build_dataset
from tests.support.two_masks import TwoMaskSegment

pytestmark = pytest.mark.ray

VERDICTS = {CRASH: "killed_worker", HANG: "timed_out", EXIT: "killed_worker", ALLOCATE: "out_of_memory"}
WIDTHS = {CRASH: 131, HANG: 132, EXIT: 133, ALLOCATE: 134}
"""Widths of released JPEGs that `POISON` makes deadly."""

HARMLESS = ("astronaut", "coffee", "chelsea")
TIMEOUT_S = 90  # far more than an image takes, even on a busy machine


def png(name: str, width: int = 120) -> bytes:
    """A small photograph; its width decides whether and how its JPEG is deadly."""
    stream = io.BytesIO()
    Image.fromarray(photograph(name, (width, 90))).save(stream, "PNG")
    return stream.getvalue()


def write_photographs(folder: Path, deadly: Sequence[bytes]) -> Path:
    """Write a catalog of harmless photographs, with the deadly ones inserted from the second position on."""
    folder.mkdir()
    files = [png(name) for name in HARMLESS]
    files[1:1] = deadly
    names = []
    for index, data in enumerate(files):
        names.append(f"{index}.img")
        (folder / names[-1]).write_bytes(data)
    return write_catalog(folder / "catalog.jsonl", [{"uri": name, "license": "CC0-1.0"} for name in names])


def configuration(folder: Path, catalog: Path, output: str, **changes: object) -> Path:
    return write_config(
        folder / f"{output}.yaml",
        catalog,
        folder / output,
        masks={"points_per_side": 2, "crop_n_layers": 0, "pred_iou_thresh": 0.5, "stability_score_thresh": 0.5},
        deidentify=NO_DETECTORS,
        ingest={"timeout_s": TIMEOUT_S},
        resources={"segment": {"actors": 1, "timeout_s": TIMEOUT_S}},
        **changes,
    )


def poisoned(config: Path, check: int = 0, module: str = "segmint", **environment: str) -> str:
    path = os.pathsep.join(filter(None, [str(POISON), str(ROOT), os.environ.get("PYTHONPATH")]))
    return segmint("build", config, check=check, timeout=1200, module=module, PYTHONPATH=path, **environment)


def contents(dataset: Path, without: range) -> tuple[list[object], list[object], dict[str, bytes]]:
    """Rows of images and masks, and the tar's files by name, of all ordinals except some."""
    tables = []
    for kind in ("images", "masks"):
        rows = pq.ParquetDataset(sorted((dataset / kind).iterdir())).read().to_pylist()
        tables.append([row for row in rows if row["ordinal"] not in without])
    files = {}
    for shard in sorted((dataset / "shards").iterdir()):
        with tarfile.open(shard) as archive:
            for member in archive:
                stream = archive.extractfile(member)
                assert stream is not None
                files[member.name] = stream.read()
    for ordinal in without:
        for ending in ("jpg", "json"):
            files.pop(f"sa_{ordinal + 1}.{ending}", None)
    return tables[0], tables[1], files


def check(
    folder: Path,
    stage: str,
    deeds: Sequence[int],
    module: str = "segmint",
    segment_class: type[Segment] = Segment,
) -> None:
    """Build with images that are deadly in these ways in a stage, and again with `POISON` off; compare."""
    deadly = [deadly_bitmap(deed) if stage == "prepare" else png("rocket", WIDTHS[deed]) for deed in deeds]
    catalog = write_photographs(folder / "photos", deadly)
    rows = len(HARMLESS) + len(deadly)
    config = configuration(folder, catalog, "deadly", images_per_shard=rows, rows_per_block=rows)
    printed = poisoned(config, module=module)
    rejects = pq.ParquetDataset(sorted((folder / "deadly" / "rejects").iterdir())).read().to_pylist()
    found = [(row["ordinal"], row["stage"], row["reason"]) for row in rejects]
    assert found == [(1 + place, stage, VERDICTS[deed]) for place, deed in enumerate(deeds)]
    assert stage == "prepare" or all("alone" in row["detail"] for row in rejects)
    assert f"{rows} rows in" in printed
    harmless = configuration(folder, catalog, "harmless", images_per_shard=rows, rows_per_block=rows)
    build_dataset(harmless, segment_class=segment_class)
    places = range(1, 1 + len(deadly))
    undisturbed = contents(folder / "harmless", places)
    assert len(undisturbed[0]) == len(HARMLESS)
    assert len(undisturbed[1]) > 0
    assert contents(folder / "deadly", places) == undisturbed


@pytest.mark.long
def test_an_image_that_ends_its_worker_is_refused_and_the_rest_is_unchanged(tmp_path: Path) -> None:
    """With a stub of the segment stage, except for the trials: the model isn't what ends its worker."""
    check(tmp_path, "segment", [EXIT], module="tests.support.two_masks", segment_class=TwoMaskSegment)


@pytest.mark.long
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("stage", ["prepare", "segment"])
def test_every_kind_of_death_has_its_reason(tmp_path: Path, stage: str) -> None:
    check(tmp_path, stage, list(VERDICTS))


@pytest.mark.long
def test_images_that_end_a_worker_with_several_in_flight_are_refused_alone(tmp_path: Path) -> None:
    check(tmp_path, "segment", [EXIT, CRASH], module="tests.support.overlapped")


@pytest.mark.long
def test_if_every_image_ends_its_worker_no_image_is_refused(tmp_path: Path) -> None:
    catalog = write_photographs(tmp_path / "photos", [])
    config = configuration(tmp_path, catalog, "all", retry_wait_s=0)
    printed = poisoned(config, check=3, SEGMINT_TEST_ALL_JPEGS_DEADLY="1")
    assert "a new worker failed on a control image" in printed
    assert "Nothing is lost" in printed
    assert not list((tmp_path / "all").glob("commits/*"))
    segmint("build", config)
    assert len(pq.ParquetDataset(sorted((tmp_path / "all" / "images").iterdir())).read()) == len(HARMLESS)


@pytest.mark.long
def test_a_row_whose_fault_stays_is_named_and_costs_its_shard_alone(tmp_path: Path) -> None:
    """A store that refuses every request has a fault, and says nothing about the image."""

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(400)

    write_photographs(tmp_path / "photos", [])
    names = ["0.img", "s3://nowhere/far.jpg", "1.img", "2.img"]
    rows = [{"uri": name, "image_id": f"image {name}", "license": "CC0-1.0"} for name in names]
    catalog = write_catalog(tmp_path / "photos" / "catalog.jsonl", rows)
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        options = {"s3://nowhere": {"endpoint_url": f"http://127.0.0.1:{server.server_port}", "anon": True}}
        config = configuration(tmp_path, catalog, "dataset", images_per_shard=2, retry_wait_s=0, storage=options)
        printed = segmint("build", config, check=3, timeout=600)
        server.shutdown()
    named = "row 1 (image_id 'image s3://nowhere/far.jpg', uri 's3://nowhere/far.jpg')"
    assert f"shard 0: {named} had a fault in 3 attempts and in a trial: prepare: StorageFaultError" in printed
    assert "1 shard with 2 rows could not be finished" in printed
    assert len(list((tmp_path / "dataset" / "commits").iterdir())) == 1
