"""Metrics as Prometheus gets them: a real Ray counts, and its export port is read."""

import io
import os
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pytest
import ray
import ray.data

from segmint.infra.metrics import FAULTS, IMAGES_WRITTEN, METRICS, SHARDS_MISSING, Metric, RunMetrics
from segmint.infra.progress import Progress
from segmint.infra.ray_session import ray_session
from segmint.operators.shards.write import ShardResult
from segmint.pipeline.build import iter_blocks
from segmint.pipeline.building.execution.accounting import RunRecord
from segmint.pipeline.building.execution.stage_watch import watched
from tests.support.metrics import exported_name
from tests.support.row_stubs import describe_rows

pytestmark = pytest.mark.ray

Scraped = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture(scope="module")
def export_port() -> Iterator[int]:
    """The port at which a local Ray, that reports twice a second, exports its metrics."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "RAY_metrics_report_interval_ms", "500")
        with ray_session("local", object_store_memory=200_000_000):
            yield ray.nodes()[0]["MetricsExportPort"]


def scrape(port: int, dataset: str) -> Scraped:
    """Our metrics of one dataset by exported name and our own labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    found: Scraped = {}
    for line in lines:
        match = re.fullmatch(r"(ray_segmint_\w+)\{(.*)\} (\S+)", line)
        if match:
            labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2]))
            ours = frozenset((key, labels[key]) for key in ("reason", "kind", "stage") if key in labels)
            if labels["dataset"] == dataset:
                found[match[1], ours] = float(match[3])
    return found


def scraped_until(port: int, dataset: str, enough: Callable[[Scraped], bool]) -> Scraped:
    """What the port says as soon as it is enough, and at the latest after a minute."""
    for _ in range(120):
        found = scrape(port, dataset)
        if enough(found):
            break
        time.sleep(0.5)
    return found


def value(found: Scraped, metric: Metric, **labels: str) -> float | None:
    return found.get((exported_name(metric), frozenset(labels.items())))


def test_what_a_run_counts_is_what_prometheus_reads(export_port: int) -> None:
    run = RunRecord(RunMetrics("street"))
    with (
        Progress(stream=io.StringIO(), bars=False) as progress,
        watched(progress, 10, stall_timeout=60, metrics=run.metrics),
    ):
        rows = ray.data.from_arrow(pa.table({"ordinal": list(range(10))})).repartition(target_num_rows_per_block=2)
        blocks = rows.map_batches(describe_rows, batch_size=None, batch_format="pyarrow", num_cpus=0.5)
        assert sum(rows for _, rows in iter_blocks(blocks)) == 10
    counts = {"rows": 6, "images": 3, "masks": 70, "rejected:not_found": 2, "rejected:truncated": 1}
    run.note(ShardResult(0, "committed", counts))
    run.note(ShardResult(1, "committed", {"rows": 2, "images": 2, "masks": 8}))
    run.note(ShardResult(2, "on_hold", {}, "an outage"))
    run.note_failure([1, 2], OSError("gone"))
    run.settled([0, 1, 2], left=[2])
    run.metrics.set(SHARDS_MISSING, 1)

    expected = {
        ("ray_segmint_images_written_total", frozenset()): 5.0,
        ("ray_segmint_masks_written_total", frozenset()): 78.0,
        ("ray_segmint_shards_committed_total", frozenset()): 2.0,
        ("ray_segmint_rows_rejected_total", frozenset({("reason", "not_found")})): 2.0,
        ("ray_segmint_rows_rejected_total", frozenset({("reason", "truncated")})): 1.0,
        ("ray_segmint_faults_total", frozenset({("kind", "shard")})): 1.0,
        ("ray_segmint_faults_total", frozenset({("kind", "window")})): 1.0,
        ("ray_segmint_shards_missing", frozenset()): 1.0,
        ("ray_segmint_shards_on_hold", frozenset()): 1.0,
        ("ray_segmint_stage_rows_total", frozenset({("stage", "describe")})): 10.0,
    }
    seconds = ("ray_segmint_stage_seconds_total", frozenset({("stage", "describe")}))
    memory = ("ray_segmint_driver_memory_bytes", frozenset())

    def is_complete(found: Scraped) -> bool:  # a stage's rows and seconds may be exported before its last block
        return {seconds, memory} <= found.keys() and expected.items() <= found.items()

    found = scraped_until(export_port, "street", is_complete)
    assert found.pop(seconds) >= 5 * 0.05, "five blocks slept for 0.05 seconds each"
    assert found.pop(memory) == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)
    assert found == expected
    assert {name for name, _ in [*expected, seconds, memory]} == {exported_name(metric) for metric in METRICS}


def test_a_second_run_in_the_same_process_counts_separately(export_port: int) -> None:
    for dataset, count in (("first", 3), ("second", 4), ("second", 5)):
        RunMetrics(dataset).add(IMAGES_WRITTEN, count)
    found = scraped_until(export_port, "second", lambda found: value(found, IMAGES_WRITTEN) == 9)
    assert value(found, IMAGES_WRITTEN) == 9
    assert value(scrape(export_port, "first"), IMAGES_WRITTEN) == 3


def test_the_page_lists_every_metric_with_its_labels() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "clusters.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(ray_segmint_\w+)` \| (.*?)\| ", page, re.MULTILINE)
    listed = {name: tuple(re.findall(r"\w+", labels)) for name, labels in rows}
    assert listed == {exported_name(metric): metric.labels for metric in METRICS}


def test_metrics_never_stop_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = RunMetrics("street")
    metrics.add(FAULTS)  # the label is missing, which Ray raises for
    metrics.add(FAULTS, kind="shard")
    assert capsys.readouterr().err.count("switched off") == 1
