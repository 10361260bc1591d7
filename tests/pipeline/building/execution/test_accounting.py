"""The accounting as a person reads it: what was written, rejected, retried or left, and why."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pyarrow.parquet as pq
import pytest

from segmint.catalogs.dataset.manifest import load_manifest, read_manifest
from segmint.catalogs.dataset.tombstones import RemovedImage, TakedownRequest, Tombstone, put_tombstone
from segmint.catalogs.dataset.versions import put_version, version_numbers
from segmint.infra.errors import UnfinishedError
from segmint.infra.metrics import RunMetrics
from segmint.operators.prepare.deidentify import LeftAloneEntry
from segmint.operators.shards.write import ShardResult
from segmint.pipeline.building.dataset import BuildDataset
from segmint.pipeline.building.execution.accounting import (
    Accounting,
    NotRecordedError,
    RunRecord,
    StageLoad,
    account,
    record_end,
)
from segmint.pipeline.building.execution.ceiling import Ceiling
from tests.support.locations import location_of
from tests.support.protocol import two_shards

WHOLE = Accounting(
    dataset="d", rows=8, written=6, rejected={"not_found": 1, "truncated": 1}, masks=40, shards=3, seconds=2.0
)


def test_a_person_reads_reasons_rates_and_what_is_left() -> None:
    text = "\n".join(WHOLE.lines())
    assert "6 images with 40 masks in 3 shards" in text
    assert "nothing to do: all rows of 3 shards are done (2.0 s)" in text  # --shards may leave others
    run = Accounting(
        dataset="d",
        rows=8,
        written=4,
        rejected=Counter({"not_found": 1}),
        missing=[2],
        missing_rows=3,
        built_rows=5,
        built_images=4,
        built_masks=30,
        seconds=2.0,
    )
    text = "\n".join(run.lines())
    assert "3 rows in 1 shard, for the next run" in text
    assert "5 rows in 2.0 s: 2 images/s, 15 masks/s" in text
    idle = "\n".join(replace(run, built_rows=0).lines())
    assert "nothing to do: all rows of " not in idle
    message = run.unfinished_message({2: "the store does not answer"})
    assert "shard 2: the store does not answer" in message
    assert "Nothing is lost" in message


def test_unused_regions_are_counted_once_all_shards_are_built(dataset: Path) -> None:
    location = location_of(dataset)
    run = BuildDataset(location, load_manifest(location), Path())
    names = pq.read_table(next((dataset / "images").glob("sa_000001-*")), columns=["source_sha256"])[0].to_pylist()
    box = {"x": 1, "y": 1, "w": 9, "h": 9, "decided_by": "Ada"}
    listed = {name: (LeftAloneEntry(sha256=name, **box),) for name in (names[0], "0" * 64)}
    one_shard, record = range(1), RunRecord(RunMetrics("small"))
    told = account(run, one_shard, record, 1.0, listed=listed)
    assert told.left_alone_unmatched == (1, 1), "the photographs of other shards count, too"
    next((dataset / "commits").glob("000002.*")).unlink()
    assert account(run, one_shard, record, 1.0, listed=listed).left_alone_unmatched == (0, 0)


def test_retried_rows_are_shown() -> None:
    """Whether they are images now or not."""
    run = replace(WHOLE, retried_rows=3, retried_images=2, built_rows=3, built_images=2)
    assert "retried              3 rejected rows, of which 2 became images" in run.lines()
    none = replace(WHOLE, retried_rows=3)
    assert not any("nothing to do" in line for line in none.lines())
    left = replace(WHOLE, not_retried=[4, 5])
    assert not left.complete
    message = left.unfinished_message({4: "the store does not answer"})
    assert message.startswith("rejected rows in 2 shards could not be retried. They are unchanged")
    assert "shard 4: the store does not answer\n  shard 5: not reached\n" in message
    assert "could not be finished" not in message


CEILING = Ceiling("cpu", "AVX512", "fp32", 2, 1, flop_per_s=2e11, flop_per_image=8 * 10**9, flop_per_mask=10**8)


def test_a_run_is_shown_as_a_share_of_its_ceiling() -> None:
    run = Accounting(
        dataset="d",
        rows=8,
        written=8,
        built_rows=8,
        built_images=8,
        built_masks=40,
        seconds=2.0,
        ceiling=CEILING.drawing(20),
    )
    assert run.share_of_ceiling == pytest.approx(4 / 20)
    line = run.lines()[-1]
    assert "20 images/s, 100 masks/s, the theoretical peak of 1 x cpu (AVX512, fp32, 2 threads, 200 GFLOP/s)" in line
    assert line.endswith("this run reached 20%")
    told = run.to_dict()
    assert (told["images_per_s"], told["masks_per_s"]) == (4.0, 20.0)
    assert (told["ceiling_images_per_s"], told["share_of_ceiling"]) == (20.0, 0.2)
    assert told["ceiling"]["flop_per_s"] == 2e11
    json.dumps(told, allow_nan=False)


def test_the_masks_that_a_run_drew_count_in_its_ceiling() -> None:
    run = RunRecord(RunMetrics("d"))
    run.note(ShardResult(0, "committed", {"rows": 3, "images": 2, "masks": 4}, drawn=50))
    run.note(ShardResult(1, "committed", {"rows": 3, "images": 2, "masks": 4}))  # by another writer
    with two_shards() as place:
        dataset = SimpleNamespace(location=place.location, manifest=read_manifest(place.location))
        found = account(cast(BuildDataset, dataset), range(2), run, 2.0, CEILING)
    assert found.ceiling == CEILING.drawing(12.5)
    assert found.to_dict()["ceiling"]["drawn_per_image"] == 12.5


def test_a_run_says_how_busy_its_stages_were() -> None:
    loads = (StageLoad("prepare", 3.0, 4.0), StageLoad("segment", 1.0, 8.0))
    run = Accounting(dataset="d", rows=8, written=8, built_rows=8, built_images=8, seconds=4.0, stages=loads)
    assert run.lines()[-1].startswith("busy      prepare 75%, segment 12%")
    told = json.loads(json.dumps(run.to_dict(), allow_nan=False))
    assert told["stages"] == [
        {"stage": "prepare", "busy_s": 3.0, "worker_s": 4.0, "share": 0.75},
        {"stage": "segment", "busy_s": 1.0, "worker_s": 8.0, "share": 0.125},
    ]
    assert not any("busy" in line for line in WHOLE.lines()), "a run that had nothing to do"


def test_a_run_that_made_no_image_has_no_share() -> None:
    for run in (WHOLE, Accounting(dataset="d", rows=8, written=0, built_rows=8, seconds=2.0, ceiling=CEILING)):
        assert not any("ceiling" in line for line in run.lines())
        assert not run.share_of_ceiling
        json.dumps(run.to_dict(), allow_nan=False)


def test_a_run_over_a_damaged_version_is_not_recorded() -> None:
    with two_shards() as place:
        put_version(place.location, "build")
        (place.location / "versions/1.json").put(b"{}")
        dataset = SimpleNamespace(location=place.location, write_index=lambda: None)
        with pytest.raises(NotRecordedError, match=r"the latest version, or a file of it, is damaged.*segmint repair"):
            record_end(cast(BuildDataset, dataset), WHOLE, {})


@pytest.mark.parametrize(("committed", "requested", "numbers"), [(0, 0, []), (1, 1, [1]), (1, 0, [1])])
def test_a_run_records_a_version_if_there_is_a_shard(committed: int, requested: int, numbers: list[int]) -> None:
    with two_shards(committed) as place:
        dataset = SimpleNamespace(location=place.location)
        with pytest.raises(UnfinishedError, match="could not be finished"):
            record_end(cast(BuildDataset, dataset), replace(WHOLE, shards=requested, missing=(1,), missing_rows=3), {})
        assert version_numbers(place.location) == numbers


def test_a_run_beside_an_unfinished_takedown_is_not_called_damaged() -> None:
    with two_shards() as place:
        put_version(place.location, "build")
        image = RemovedImage(ordinal=1, id=2, image_id="image-1", uri="photo_1.jpg", sha256=None)
        tombstone = Tombstone(request=TakedownRequest(ids=("2",)), reason="asked", when="now", images=(image,))
        put_tombstone(place.location, tombstone)
        dataset = SimpleNamespace(location=place.location, write_index=lambda: None)
        with pytest.raises(NotRecordedError, match=r"^shards.json or a version .*: a takedown didn't finish, or "):
            record_end(cast(BuildDataset, dataset), WHOLE, {})
