"""Whole builds with catalog, photographs and dataset on a real S3 server, behind a proxy that injects faults.

Only the segment stage is a stub: it uses no store.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from segmint.catalogs.dataset.commits import CommitLog
from segmint.infra.ray_session import Cluster
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.operators.shards.revise import read_file, read_table
from segmint.pipeline.quality.audit.integrity import audit_integrity
from tests.support.builds import (
    AS_SHIPPED,
    NO_DETECTORS,
    ONE_EACH,
    ROOT,
    SEVERAL_ACTORS,
    digests,
    segmint,
    segmint_here,
    small_catalog,
    write_catalog,
    write_config,
    write_photographs,
)
from tests.support.everything import upload
from tests.support.faulty_proxy import (
    CUT_BODY,
    DRIP_BODY,
    LONG_LENGTH,
    LOSE_ANSWER,
    REFUSE,
    RESET_BODY,
    SHORT_LENGTH,
    STALL_BODY,
    FaultyProxy,
    answer,
    faulty_proxy,
)
from tests.support.s3_server import S3Server
from tests.support.small_dataset import build_dataset
from tests.support.storms import Outage, Storm, StormRule
from tests.support.two_masks import TwoMaskSegment

pytestmark = [pytest.mark.ray, pytest.mark.s3]

SLOW_DOWN = answer(503, "SlowDown")
ERROR = answer(500, "InternalError")
COMMIT = "/commits/"
TINY: dict[str, Any] = {
    "images_per_shard": 2,
    "deidentify": NO_DETECTORS,
    "rows_per_block": 1,
    "model": AS_SHIPPED,  # a build of this process sees a cluster
    "resources": ONE_EACH,
}


@dataclass(frozen=True)
class FaultyWorld:
    """A proxy in front of the server, a configuration that uses only the proxy, and the expected output."""

    proxy: FaultyProxy
    config: Path
    dataset: str
    direct: Storage  # bypasses the proxy
    undisturbed: dict[str, str]
    scratch: Path

    def build(self, check: int | None = 0) -> str:
        stubbed = "tests.support.two_masks"
        printed = segmint(
            "build", self.config, "--json", check=check, timeout=500, module=stubbed, PYTHONPATH=str(ROOT)
        )
        self.recover()
        return printed

    def recover(self) -> None:
        """End the faults."""
        self.proxy.policy = lambda method, target: b""

    def standing(self) -> dict[str, str]:
        """SHA-256 of every file in the dataset."""
        copy = self.scratch / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        for entry in self.direct.walk(self.dataset):
            target = copy / entry.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(self.direct.read(f"{self.dataset}/{entry.name}"))
        return digests(copy)

    def is_as_if_nothing_had_happened(self) -> None:
        assert self.standing() == self.undisturbed
        report = audit_integrity(Location(self.direct, self.dataset))
        assert list(report.findings) == []


@pytest.fixture(scope="module")
def photos_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    small_catalog(folder, count=8)
    return folder


@pytest.fixture(scope="module")
def undisturbed(photos_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("undisturbed")
    config = write_config(folder / "build.yaml", photos_folder / "catalog.jsonl", folder / "set", **TINY)
    return digests(Path(build_dataset(config, segment_class=TwoMaskSegment)))


@pytest.fixture
def world(
    s3_server: S3Server, s3_bucket: str, photos_folder: Path, undisturbed: dict[str, str], tmp_path: Path
) -> Iterator[FaultyWorld]:
    direct = Storage({"s3://": {"endpoint_url": s3_server.endpoint_url}})
    for path in sorted(photos_folder.iterdir()):
        direct.put(f"s3://{s3_bucket}/in/{path.name}", path.read_bytes())
    with faulty_proxy(s3_server.port) as proxy:
        dataset = f"s3://{s3_bucket}/set"
        options = {"endpoint_url": proxy.url, "connect_timeout": 2, "read_timeout": 2}
        config = write_config(
            tmp_path / "build.yaml", f"s3://{s3_bucket}/in/catalog.jsonl", dataset, storage={"s3://": options}, **TINY
        )
        yield FaultyWorld(proxy, config, dataset, direct, undisturbed, tmp_path)


def test_a_storm_of_all_faults_and_an_outage_leave_no_trace(
    world: FaultyWorld, local_ray: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    storm = Storm(
        StormRule(SHORT_LENGTH, "GET", r"in/photo_001", first=1),
        StormRule(STALL_BODY, "GET", r"in/photo_003", first=1),
        StormRule(LONG_LENGTH, "GET", r"in/photo_004", first=1),
        StormRule(RESET_BODY, "GET", r"in/photo", share=0.3),
        StormRule(LOSE_ANSWER, "PUT", COMMIT, first=1),
        StormRule(REFUSE, "PUT", r"set/", share=0.1),
        StormRule(SLOW_DOWN, share=0.15),
        StormRule(ERROR, share=0.1),
        StormRule(CUT_BODY, "GET", share=0.1),
        seed=1,
    )
    outage = Outage(world.proxy, seconds=3, after=2, method="PUT", target=COMMIT, policy=storm)
    world.proxy.policy = outage
    monkeypatch.setattr("segmint.pipeline.build.Segment", TwoMaskSegment)
    segmint_here("build", world.config)
    world.recover()
    world.is_as_if_nothing_had_happened()
    assert outage.happened
    assert len(storm.hits) == 9


@pytest.mark.long
@pytest.mark.parametrize(
    "rules",
    [
        # Looking for an object that is missing takes two requests an attempt, and there are five attempts.
        pytest.param([StormRule(ERROR, first=1), StormRule(answer(502, "BadGateway"), first=2)], id="bursts of 5xx"),
        pytest.param([StormRule(RESET_BODY, "GET", first=2), StormRule(REFUSE, "PUT|HEAD", share=0.3)], id="resets"),
        pytest.param(
            [StormRule(SLOW_DOWN, share=0.3), StormRule(answer(429, "TooManyRequests"), share=0.2)], id="throttling"
        ),
        pytest.param([StormRule(CUT_BODY, "GET", first=2), StormRule(LONG_LENGTH, "GET", first=3)], id="cut bodies"),
        pytest.param([StormRule(SHORT_LENGTH, "GET", r"in/photo", first=1)], id="short bodies"),
        pytest.param(
            [StormRule(STALL_BODY, "GET", r"in/photo", first=1), StormRule(DRIP_BODY, "GET", COMMIT, first=1)],
            id="stalls",
        ),
        pytest.param([StormRule(LOSE_ANSWER, "PUT", r"set/", first=1)], id="lost answers"),
    ],
)
def test_a_fault_of_every_kind_leaves_no_trace(rules: list[StormRule], world: FaultyWorld) -> None:
    storm = Storm(*rules, seed=2)
    world.proxy.policy = storm
    world.build()
    world.is_as_if_nothing_had_happened()
    assert set(storm.hits) == set(rules)


@pytest.mark.long
def test_an_outage_of_a_minute_pauses_the_run(world: FaultyWorld) -> None:
    outage = Outage(world.proxy, seconds=60, after=2, method="PUT", target=COMMIT)
    world.proxy.policy = outage
    printed = world.build()
    assert outage.happened
    assert "waiting for" in printed
    world.is_as_if_nothing_had_happened()


@pytest.mark.long
def test_an_endless_outage_ends_the_run_with_advice(world: FaultyWorld) -> None:
    world.config.write_text(world.config.read_text() + "outage_timeout_s: 5\nmax_faults: 5\n")
    world.proxy.policy = Outage(world.proxy, seconds=None, after=2, method="PUT", target=COMMIT)
    printed = world.build(check=3)
    assert "run the same command again" in printed
    assert len(world.direct.list(f"{world.dataset}/commits")) >= 1
    world.proxy.come_up()
    world.build()
    world.is_as_if_nothing_had_happened()


@pytest.mark.long
@pytest.mark.parametrize(
    ("target", "response"),
    [
        (r"in/photo", answer(403, "AccessDenied")),
        ("", answer(400, "ExpiredToken")),
        (r"set/shards", answer(403, "AccessDenied")),
    ],
    ids=["photographs", "everything", "shards"],
)
def test_refused_credentials_end_the_run_with_advice_and_refuse_no_image(
    target: str, response: bytes, world: FaultyWorld
) -> None:
    # The first photographs are read; then the credentials expire.
    reads: list[str] = []

    def policy(method: str, asked: str) -> bytes:
        reads.extend([asked] * ("in/photo" in asked))
        return response if len(reads) > 3 and re.search(target, asked) else b""

    world.config.write_text(world.config.read_text() + "max_faults: 5\n")
    world.proxy.policy = policy
    printed = world.build(check=3)
    assert "check the credentials" in printed
    assert ("max_faults doesn't apply" in printed) == (target == "in/photo")
    assert "run the same command again" in printed
    # What a writer reserved and could not put stays reserved until the next build.
    standing = {path: digest for path, digest in world.standing().items() if not path.startswith("reservations/")}
    assert standing.items() <= world.undisturbed.items()
    world.build()
    world.is_as_if_nothing_had_happened()


def refusing(pattern: str) -> Callable[[str, str], bytes]:
    """A policy of a proxy: the store refuses to send what matches."""
    return lambda method, target: answer(403, "AccessDenied") if re.search(pattern, target) else b""


def accounting(printed: str) -> Any:
    """Parse the JSON in a build's output."""
    found = re.search(r"^\{$.*^\}$", printed, re.MULTILINE | re.DOTALL)
    assert found is not None, printed
    return json.loads(found[0])


def rejects(direct: Storage, dataset: str) -> list[tuple[Any, ...]]:
    """Ordinal, stage, reason, and detail of the rejected rows."""
    commits = CommitLog(Location(direct, dataset)).read_all()
    tables = [read_table(read_file(Location(direct, dataset), commit.file("rejects")), "rejects") for commit in commits]
    rows = [row for table in tables for row in table.to_pylist()]
    return sorted((row["ordinal"], row["stage"], row["reason"], row["detail"]) for row in rows)


def test_photographs_that_the_store_refuses_are_rejected_and_retried(
    world: FaultyWorld, local_ray: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segmint.pipeline.build.Segment", TwoMaskSegment)
    # Each attempt starts all actors again; `test_quarantine.py` counts attempts.
    monkeypatch.setattr("segmint.pipeline.building.execution.quarantine.FAULTY_ATTEMPTS", 1)
    world.config.write_text(world.config.read_text() + "max_faults: 1\n")
    world.proxy.policy = refusing("in/photo_00[14]")
    result = accounting(segmint_here("build", world.config, "--json"))
    assert result["rejected"] == {"license_not_allowed": 1, "not_found": 1, "persistent_fault": 2}
    given_up = [row for row in rejects(world.direct, world.dataset) if row[2] == "persistent_fault"]
    assert [row[:2] for row in given_up] == [(1, "prepare"), (4, "prepare")]
    assert given_up[0][3].startswith("AccessRefusedError: cannot read photo_001.jpg: ")
    assert list(audit_integrity(Location(world.direct, world.dataset)).findings) == []
    assert "persistent_fault" in segmint_here("status", world.dataset, "--config", world.config)

    world.recover()
    printed = segmint_here("build", world.config, "--retry-rejected", "persistent_fault")
    assert re.search(r"retried +2 rejected rows, of which 2 became images", printed)
    assert "persistent_fault" not in [row[2] for row in rejects(world.direct, world.dataset)]


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("resources", [ONE_EACH, SEVERAL_ACTORS], ids=["one actor", "several actors"])
def test_3_of_1000_photographs_that_never_work_cost_3_rows(
    resources: dict[str, Any], s3_server: S3Server, s3_bucket: str, tmp_path: Path
) -> None:
    direct = Storage({"s3://": {"endpoint_url": s3_server.endpoint_url}})
    names = write_photographs(tmp_path / "photos", 1000)
    catalog = write_catalog(tmp_path / "photos" / "catalog.jsonl", [{"uri": n, "license": "CC0-1.0"} for n in names])
    upload(catalog.parent, Location(direct, f"s3://{s3_bucket}/in"))
    dataset = f"s3://{s3_bucket}/set"
    with faulty_proxy(s3_server.port) as proxy:
        config = write_config(
            tmp_path / "build.yaml",
            f"s3://{s3_bucket}/in/catalog.jsonl",
            dataset,
            storage={"s3://": {"endpoint_url": proxy.url}},
            **{**TINY, "images_per_shard": 100, "rows_per_block": 10, "resources": resources, "max_faults": 5},
        )
        world = FaultyWorld(proxy, config, dataset, direct, {}, tmp_path)
        proxy.policy = refusing("in/photo_(017|018|512)")
        result = accounting(world.build())
        assert (result["rows"], result["written"], result["rejected"]) == (1000, 997, {"persistent_fault": 3})
        given_up = rejects(direct, dataset)
        assert [row[:3] for row in given_up] == [(n, "prepare", "persistent_fault") for n in (17, 18, 512)]
        assert all("AccessRefusedError: cannot read photo_" in row[3] for row in given_up)
        assert list(audit_integrity(Location(direct, dataset)).findings) == []
