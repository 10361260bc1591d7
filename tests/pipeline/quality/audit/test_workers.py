"""The audit by Ray: the very report that threads of one process make, from actors that load what they need once."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
import ray
from typer.testing import CliRunner

import segmint.pipeline.quality.audit.integrity
from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.manifest import load_manifest
from segmint.catalogs.findings import Code
from segmint.infra.errors import UnfinishedError, UsageError
from segmint.infra.ray_session import Cluster, ray_session
from segmint.infra.storage.errors import StorageFaultError, UnavailableError
from segmint.infra.storage.location import Location
from segmint.infra.storage.retry import RetryPolicy
from segmint.infra.storage.storage import Storage
from segmint.operators.audit.privacy import DetectorSpec
from segmint.operators.prepare.release import ReleaseConfig, release
from segmint.pipeline.building.execution import actors
from segmint.pipeline.commands.cli import app
from segmint.pipeline.config.config import ResourcesConfig
from segmint.pipeline.quality.audit import workers
from segmint.pipeline.quality.audit.audit import AuditOptions, audit_dataset
from segmint.pipeline.quality.audit.content import ContentPlan, FileSettings, ShardPlan
from segmint.pipeline.quality.audit.integrity import audit_integrity
from segmint.pipeline.quality.audit.privacy import SearchPlan
from segmint.pipeline.quality.audit.result import AuditReport, result_lines
from segmint.pipeline.quality.audit.workers import AuditShards, AuditTask, audit_by_ray
from tests.support.builds import ROOT, digests, photograph
from tests.support.committed_shard import CommittedShard
from tests.support.everything import upload
from tests.support.faulty_proxy import FaultyProxy, answer
from tests.support.locations import location_of
from tests.support.planting import LATER, ShardEdit, edit_row, first_part, flip
from tests.support.s3_server import S3Server
from tests.support.torchscript import MagentaDetector, saved, spot

pytestmark = [pytest.mark.ray, pytest.mark.s3]

BY_RAY, IN_THREADS = 0, 1 << 60
"""Masks from which on Ray audits."""


@pytest.fixture(scope="module", autouse=True)
def running_ray(s3_server: S3Server) -> Iterator[None]:
    """A Ray whose workers have the S3 server's credentials; most audits start one of them, for each takes seconds."""
    with ray_session("local", object_store_memory=200_000_000), pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "ray_session", one_cpu)
        yield


@contextmanager
def one_cpu(*arguments: Any, **options: Any) -> Iterator[Cluster]:
    """A session as on a cluster with one CPU."""
    with ray_session(*arguments, **options) as cluster:
        yield replace(cluster, cpus=1.0)


def audit(dataset: Path, ray_from: int, **options: Any) -> AuditReport:
    return audit_dataset(location_of(dataset), AuditOptions(now=LATER, ray_from=ray_from, **options))


def with_a_face(taken: CommittedShard) -> None:
    pixels = spot(np.fliplr(photograph("astronaut", (240, 180))), 20, 120, side=12)
    taken.members[0] = taken.members[0][0], release(pixels, ReleaseConfig()).jpeg


def other_area(taken: CommittedShard) -> None:
    taken.rows["masks"][0]["area"] += 1


@pytest.mark.long
def test_a_whole_dataset_that_was_named_relatively_is_whole_either_way(
    small_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "ray_session", ray_session)  # a worker for each of the three shards
    monkeypatch.chdir(small_dataset.parent)
    named = Path(small_dataset.name)
    threads, by_ray = (audit(named, ray_from, privacy_sample=0) for ray_from in (IN_THREADS, BY_RAY))
    assert by_ray == threads
    assert by_ray.findings.total == 0
    assert by_ray.checked.jpegs_decoded == 6


def test_findings_regions_and_pictures_are_the_same_either_way(dataset: Path, tmp_path: Path) -> None:
    ShardEdit(1, with_a_face)(dataset)
    ShardEdit(1, other_area)(dataset)
    edit_row("masks", 2, 0, predicted_iou=0.1)(dataset)
    CommittedShard(dataset, 0).dataset.joinpath("shards", "notes.txt").write_text("mine")
    flip(dataset / CommittedShard(dataset, 0).commit.file("rejects").path)
    others = (DetectorSpec.of(f"plate={saved(MagentaDetector(least=20), tmp_path / 'spot.pt')}"),)
    answers: dict[int, Any] = {}
    for ray_from in (IN_THREADS, BY_RAY):
        folder = tmp_path / str(ray_from)
        files = {"regions": location_of(folder / "regions.jsonl"), "pictures": location_of(folder / "pictures")}
        report = audit(dataset, ray_from, privacy_sample=4, sample=2, detectors=others, **files)
        answers[ray_from] = report, result_lines(report), digests(folder)
    assert answers[BY_RAY] == answers[IN_THREADS]
    report, _, files = answers[BY_RAY]
    assert set(report.findings.counts) >= {"still_detected", "mask_area", "other_json", "stray_file", "file_digest"}
    assert report.not_compared == (0,)
    assert report.privacy.images_checked >= 3  # one of shard 0 is in the sample
    assert set(files) == {"regions.jsonl", "pictures/sa_4_1_face.jpg", "pictures/sa_4_2_plate.jpg"}


def test_the_command_says_the_same_of_a_damaged_catalog_in_windows(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(dataset / first_part(dataset).path)
    command = ["audit", str(dataset), "--json", "--integrity-only"]
    threads = CliRunner().invoke(app, command)
    monkeypatch.setattr(workers, "WINDOW_SHARDS", 2)  # one after another
    monkeypatch.setattr(segmint.pipeline.quality.audit.integrity, "RAY_FROM_MASKS", BY_RAY)
    by_ray = CliRunner().invoke(app, command)
    assert (by_ray.exit_code, by_ray.stdout) == (threads.exit_code, threads.stdout)
    report = json.loads(by_ray.stdout)
    assert [finding["code"] for finding in report["findings"]] == [Code.CATALOG_DIGEST]
    assert (by_ray.exit_code, report["findings_total"], report["checked"]["catalog_rows"]) == (1, 1, 0)
    assert "audit 2/2" in by_ray.stderr


@pytest.mark.long
def test_a_fault_of_the_store_is_that_fault(small_dataset: Path, s3_server: S3Server, s3_bucket: str) -> None:
    uri = f"s3://{s3_bucket}/set"
    upload(small_dataset, Location(Storage({"s3://": {"endpoint_url": s3_server.endpoint_url}}), uri))
    proxy = FaultyProxy(s3_server.port)
    storage = Storage({"s3://": {"endpoint_url": proxy.url}}, RetryPolicy(attempts=2))
    try:
        assert audit_integrity(Location(storage, uri), now=LATER, ray_from=BY_RAY).findings.total == 0
        broken = answer(500, "InternalError")
        proxy.policy = lambda method, target: broken if method == "GET" and "/masks/sa_000001" in target else b""
        told = []
        for ray_from in (IN_THREADS, BY_RAY):
            with pytest.raises(StorageFaultError, match="masks/sa_000001") as raised:
                audit_integrity(Location(storage, uri), now=LATER, ray_from=ray_from)
            told.append((raised.type, str(raised.value)))
        assert told[0] == told[1]
    finally:
        proxy.close()


@pytest.mark.long
@pytest.mark.parametrize("arguments", [["--integrity-only"], ["--privacy-sample", "1"]])
def test_the_command_says_the_same(small_dataset: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    threads = CliRunner().invoke(app, ["audit", str(small_dataset), "--json", *arguments])
    monkeypatch.setattr(segmint.pipeline.quality.audit.integrity, "RAY_FROM_MASKS", BY_RAY)
    by_ray = CliRunner().invoke(app, ["audit", str(small_dataset), "--json", *arguments])
    assert (by_ray.exit_code, by_ray.stdout) == (threads.exit_code, threads.stdout)
    assert by_ray.exit_code == 0
    assert "audit 3/3" in by_ray.stderr


WAITING = """
import os, time
from pathlib import Path
import segmint.pipeline.quality.audit.integrity, segmint.pipeline.quality.audit.workers
from segmint.pipeline.commands.cli import main

class Waiting:
    def __init__(self, task):
        pass

    def __call__(self, plans):
        Path(os.environ["BEGUN"]).touch()
        time.sleep(3600)

segmint.pipeline.quality.audit.integrity.RAY_FROM_MASKS = 0
segmint.pipeline.quality.audit.workers.AuditShards = Waiting
main()
"""


@pytest.mark.long
def test_an_interrupted_audit_says_so_and_leaves_nothing_running(small_dataset: Path, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, "audit", str(small_dataset), "--privacy-sample", "0"],
        cwd=ROOT,
        env={**os.environ, "BEGUN": str(begun)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while process.poll() is None and not begun.exists():
        time.sleep(0.05)
    started = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate()
    assert (process.returncode, told.splitlines()[-1].partition(":")[0]) == (3, "interrupted"), told
    assert "Traceback" not in told
    _, left = psutil.wait_procs(started, timeout=300)
    assert left == []


# --- the actor ---


@pytest.fixture
def task(small_dataset: Path) -> AuditTask:
    manifest = load_manifest(location_of(small_dataset))
    return AuditTask(location_of(small_dataset), manifest, frozenset(), FileSettings(None, with_images=True), None)


def plan_of(dataset: Path, shard: int = 0) -> ShardPlan:
    commit = CommitLog(location_of(dataset)).latest(shard)
    assert commit is not None
    return ShardPlan(commit, commit.ordinals, frozenset(), counts_hold=True, decoded=frozenset())


def answers_of(actor: AuditShards, *plans: ShardPlan) -> list[Any]:
    table = actor(pa.table({"item": pa.array([pickle.dumps(plan) for plan in plans], pa.large_binary())}))
    return [pickle.loads(result) for result in table.column("item").to_pylist()]


def test_detectors_are_loaded_once_an_actor_and_travel_with_no_shard(
    small_dataset: Path, task: AuditTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = ContentPlan(None, SearchPlan(task.manifest, None, Storage(), with_pictures=False))
    loaded = []
    real = SearchPlan.searcher
    monkeypatch.setattr(SearchPlan, "searcher", lambda plan: loaded.append(plan) or real(plan))
    task = replace(task, content=content)
    assert len(pickle.dumps(task)) < 20_000
    actor = AuditShards(task)
    plans = [replace(plan_of(small_dataset, shard), searched=frozenset({0})) for shard in (0, 1)]
    audits = [result for plan in plans for result in answers_of(actor, plan)]
    assert [len(result.content.searches) for result in audits] == [1, 1]
    assert len(loaded) == 1
    assert max(len(pickle.dumps(result)) for result in audits) < 20_000


def test_a_node_that_does_not_see_the_dataset_is_no_finding(
    small_dataset: Path, task: AuditTask, tmp_path: Path
) -> None:
    (error,) = answers_of(
        AuditShards(replace(task, dataset=location_of(tmp_path / "elsewhere"))), plan_of(small_dataset)
    )
    assert isinstance(error, UsageError)
    assert "where all nodes can read it" in str(error)


class WithoutPickle(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (KeyError("x"), KeyError, "'x'"),
        (UnavailableError("the store is gone"), UnavailableError, "the store is gone"),
        (WithoutPickle(1, 2), RuntimeError, "WithoutPickle: 1 and 2"),
    ],
)
def test_an_error_in_an_actor_is_raised_by_the_driver_as_in_a_thread(
    small_dataset: Path,
    task: AuditTask,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    kind: type[Exception],
    told: str,
) -> None:
    def fail(*_: Any) -> None:
        raise error

    actor = AuditShards(task)
    monkeypatch.setattr("segmint.pipeline.quality.audit.workers.ShardAuditor.audit", fail)
    (found,) = answers_of(actor, plan_of(small_dataset))
    assert (type(found), str(found)) == (kind, told)
    if kind is KeyError:
        assert any("in fail" in note for note in found.__notes__)


@pytest.mark.long
def test_actors_that_die_again_and_again_end_the_audit_unfinished(
    small_dataset: Path, task: AuditTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actors, "RETRIES", 1)
    monkeypatch.setattr(workers, "AuditShards", DeadlyTask)
    with pytest.raises(UnfinishedError, match="Ray failed"):
        list(audit_by_ray(task, [plan_of(small_dataset)], ResourcesConfig(address="local")))
    assert ray.is_initialized()


class DeadlyTask:
    """An actor that its machine kills at once."""

    def __init__(self, task: AuditTask) -> None:
        pass

    def __call__(self, plans: pa.Table) -> pa.Table:
        os.kill(os.getpid(), signal.SIGKILL)
        return plans
