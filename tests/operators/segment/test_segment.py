"""Segment: masks of real photographs from our own JPEGs, the same alone and in a table."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from segmint.infra.assets import sha256_of
from segmint.infra.device import Compute
from segmint.model.automatic.rle import Funnel, GeneratedMasks, MaskRecord, encode
from segmint.model.automatic.settings import MaskSettings
from segmint.operators.prepare.release import ReleaseConfig, encode_original, release
from segmint.operators.rows import FUNNEL_STEPS, MASKS_PER_IMAGE_LIMIT, PREPARED, SEGMENTED, Row, to_table
from segmint.operators.segment.numerics import observe_numerics
from segmint.operators.segment.overlap import HostThreads
from segmint.operators.segment.segment import (
    MixedNumericsError,
    Segment,
    SegmentSettings,
    check_count,
    find_frugally,
)
from tests.support.described_rows import faulted_row, rejected_row
from tests.support.photographs import photograph

pytestmark = pytest.mark.usefixtures("embedded_once")


@pytest.fixture(scope="module")
def settings(mobile_sam_path: Path) -> SegmentSettings:
    masks = MaskSettings.sa1b(
        points_per_side=2, crop_n_layers=1, pred_iou_thresh=0.6, stability_score_thresh=0.7, points_per_chunk=2
    )
    numerics = observe_numerics(Compute("cpu", "fp32", 1), 2, 1, sha256_of(mobile_sam_path))
    return SegmentSettings(masks, "mobile_sam", numerics)


@pytest.fixture(scope="module")
def segment(settings: SegmentSettings) -> Segment:
    return Segment(settings)


def prepared_row(ordinal: int, name: str, size: tuple[int, int], short_side: int) -> dict:
    pixels = photograph(name, size)
    released = release(pixels, ReleaseConfig(short_side=short_side))
    larger = released.width < size[0]
    return {
        "ordinal": ordinal,
        "id": ordinal + 1,
        "image_id": name,
        "uri": f"{name}.jpg",
        "width": released.width,
        "height": released.height,
        "release": released.jpeg,
        "original": encode_original(pixels) if larger else None,
    }


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """A photograph with a larger original, two rows without pixels, and that original as an image of its own.

    Its crops are the same pixels in both rows, so that they are encoded once.
    """
    coffee = prepared_row(0, "coffee", (300, 200), 100)
    large = {"ordinal": 3, "id": 4, "image_id": "large coffee", "uri": "large coffee.jpg", "width": 300, "height": 200}
    return [coffee, rejected_row(1), faulted_row(2), {**large, "release": coffee["original"], "original": None}]


@pytest.fixture(scope="module")
def out(segment: Segment, rows: list[Row]) -> pa.Table:
    """All rows in one table."""
    return segment(to_table(rows, PREPARED))


def test_every_row_comes_out_with_masks_in_the_released_frame(out: pa.Table) -> None:
    from pycocotools import mask as coco_mask

    assert out.schema == SEGMENTED
    assert "original" not in out.column_names
    coffee, refused, broken, large = out.to_pylist()
    assert (refused["reason"], refused["masks"], broken["masks"]) == ("not_found", None, None)
    assert broken["fault"] == faulted_row(2)["fault"]
    for row, size in ((coffee, [100, 150]), (large, [200, 300])):
        assert row["fault"] is None
        assert len(row["masks"]) == row["funnel"]["written"] > 0
        assert row["funnel"]["predicted"] == 3 * (4 + 4 * 1)
        for mask in row["masks"]:
            assert mask["segmentation"]["size"] == size
            assert coco_mask.decode(mask["segmentation"]).sum() == mask["area"]
            x, y, w, h = mask["crop_box"]
            assert 0 <= x < x + w <= size[1]
            assert 0 <= y < y + h <= size[0]


def test_an_image_gives_the_same_masks_alone_and_in_a_table(segment: Segment, rows: list[Row], out: pa.Table) -> None:
    alone = [segment(to_table([row], PREPARED)).to_pylist()[0] for row in reversed(rows)]
    assert out.to_pylist() == alone[::-1]


def test_threads_beside_the_device_change_nothing(settings: SegmentSettings, rows: list[Row], out: pa.Table) -> None:
    """Two calls at once, on an actor set up as one with a GPU is."""
    overlapped = Segment(settings, threads=HostThreads.of("cuda"))
    with ThreadPoolExecutor(2) as calls:
        tables = list(calls.map(overlapped, [to_table(rows[:2], PREPARED), to_table(rows[2:], PREPARED)]))
    assert pa.concat_tables(tables).to_pylist() == out.to_pylist()


def test_a_bug_on_one_image_is_a_fault_of_only_its_row(segment: Segment, rows: list[Row]) -> None:
    coffee, *_, large = rows
    broken, whole = segment(to_table([{**large, "release": b"no JPEG"}, coffee], PREPARED)).to_pylist()
    assert broken["fault"].startswith("segment: UnidentifiedImageError")
    assert whole["fault"] is None


def test_exhausted_gpu_memory_is_retried_once() -> None:
    """The error comes from a stand-in, because only a GPU raises it."""
    pixels = np.zeros((2, 2, 3), np.uint8)
    calls = []

    def generator(fails: int) -> Any:
        def find(image: np.ndarray, original: None) -> str:
            calls.append(image)
            if len(calls) <= fails:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return "found"

        return SimpleNamespace(find=find)

    assert find_frugally(generator(1), pixels, None) == "found"
    assert len(calls) == 2
    calls.clear()
    with pytest.raises(torch.OutOfMemoryError):
        find_frugally(generator(9), pixels, None)
    assert len(calls) == 2


def test_an_image_with_more_masks_than_ids_is_refused(
    segment: Segment, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its masks are one mask, many times: no setting makes so many of a small photograph."""
    box = (2.0, 3.0, 19.0, 9.0)
    mask = np.zeros((100, 150), bool)
    mask[3:13, 2:22] = True
    record = MaskRecord(encode(mask), 200, box, 0.9, 0.95, (0.0, 0.0, 150.0, 100.0), (10.0, 8.0))
    many = GeneratedMasks((record,) * (MASKS_PER_IMAGE_LIMIT + 1), Funnel())
    monkeypatch.setattr(segment.generator, "finish", lambda _: many)
    (out,) = segment(to_table(rows[:1], PREPARED)).to_pylist()
    assert (out["stage"], out["reason"], out["fault"]) == ("segment", "too_many_masks", None)
    assert out["masks"] is None
    check_count(MASKS_PER_IMAGE_LIMIT)


def test_the_funnel_has_the_generator_s_steps() -> None:
    assert tuple(field.name for field in fields(Funnel)) == FUNNEL_STEPS == tuple(asdict(Funnel()))


def test_a_worker_with_other_numerics_is_refused_unless_mixing_is_allowed(settings: SegmentSettings) -> None:
    other = replace(settings, numerics=replace(settings.numerics, torch="1.0"))
    with pytest.raises(MixedNumericsError, match="torch"):
        Segment(other)
    Segment(replace(other, allow_mixed_numerics=True))


def test_a_worker_that_cannot_compile_is_refused_unless_mixing_is_allowed(
    settings: SegmentSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests of `BatchEncoder` cover how torch itself fails without a compiler."""

    def break_down(*_: object) -> None:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: break_down)
    compiled = replace(settings, numerics=replace(settings.numerics, encoder="compiled"))
    with pytest.raises(MixedNumericsError, match=r"model\.encoder compiled.*no compiler here.*allow_mixed_numerics"):
        Segment(compiled)
    with pytest.warns(RuntimeWarning, match="no compiler here"):
        Segment(replace(compiled, allow_mixed_numerics=True))


@pytest.mark.long
def test_an_actor_compiles_its_encoder_before_the_first_image(
    settings: SegmentSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.compiler.reset()
    rows = to_table([prepared_row(0, "coffee", (300, 200), 200)], PREPARED)
    expected = Segment(settings)(rows).to_pylist()[0]["masks"]
    segment = Segment(replace(settings, numerics=replace(settings.numerics, encoder="compiled")))
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", pytest.fail)
    found = segment(rows).to_pylist()[0]["masks"]
    assert [mask["point_coords"] for mask in found] == [mask["point_coords"] for mask in expected]
    for one, other in zip(found, expected, strict=True):
        assert one["predicted_iou"] == pytest.approx(other["predicted_iou"], abs=1e-4)


def test_an_actor_reports_the_measured_peak_of_its_device(
    settings: SegmentSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segmint.operators.segment.segment.outlive_signals", lambda: None)
    reports: list[float] = []
    ledger: Any = SimpleNamespace(report_peak=reports.append)
    Segment(settings, ledger=ledger)
    assert reports == []
    Segment(settings, measures_peak=True, ledger=ledger)
    assert len(reports) == 1
    assert reports[0] > 1e9


def test_describing_and_writing_masks_starts_without_torch() -> None:
    code = "import segmint.operators.describe, segmint.operators.shards.write, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_one_process_compiles_before_the_others_which_then_run_at_once(tmp_path: Path) -> None:
    """The first one dies, so the next one is first."""
    code = (
        "import os, sys, time; from pathlib import Path; from segmint.operators.segment.segment import first_alone\n"
        "folder = Path(sys.argv[1])\n"
        "with first_alone(folder, 'numerics'):\n"
        "    (folder / f'{os.getpid()}.in').touch()\n"
        "    while not (folder / 'go').exists(): time.sleep(0.01)\n"
        "    time.sleep(0.2)\n"
    )

    def entered() -> set[str]:
        return {path.name for path in tmp_path.glob("*.in")}

    def until(count: int) -> None:
        end = time.monotonic() + 60
        while len(entered()) < count:
            assert time.monotonic() < end
            time.sleep(0.01)

    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(3)]
    try:
        until(1)
        time.sleep(0.3)
        (first,) = entered()
        killed = next(process for process in processes if first == f"{process.pid}.in")
        killed.kill()
        until(2)
        time.sleep(0.3)
        assert len(entered()) == 2, "two compile at once"
        (tmp_path / "go").touch()
        until(3)
        assert sorted(process.wait(60) for process in processes) == [-9, 0, 0]
        assert [path.name for path in tmp_path.glob("*.done")] == ["segmint-numerics.done"]
    finally:
        for process in processes:
            process.kill()
