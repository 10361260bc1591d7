"""A node that is paused while it writes a shard, and resumes after another one has committed it."""

from pathlib import Path

import psutil
import pytest

from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.pipeline.quality.audit.integrity import audit_integrity
from tests.support.builds import AS_SHIPPED, digests, small_catalog, write_config
from tests.support.clusters import RayNode, ray_cluster
from tests.support.everything import download, upload
from tests.support.faulty_proxy import faulty_proxy
from tests.support.runs import running, title, wait_for
from tests.support.s3_server import S3Server
from tests.support.small_dataset import build_dataset

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.long, pytest.mark.timeout(2400)]


def writers(node: RayNode) -> list[psutil.Process]:
    return [process for process in node.processes() if title(process).startswith("ray::write_shard")]


def test_a_node_paused_during_the_commit_of_its_shard_changes_nothing(
    s3_server: S3Server, s3_bucket: str, tmp_path: Path
) -> None:
    small_catalog(tmp_path / "photos", count=6)
    catalog, dataset = f"s3://{s3_bucket}/in/catalog.jsonl", f"s3://{s3_bucket}/set"
    direct = Storage({"s3://": {"endpoint_url": s3_server.endpoint_url}})
    upload(tmp_path / "photos", Location(direct, f"s3://{s3_bucket}/in"))
    photos = tmp_path / "photos" / "catalog.jsonl"
    local = write_config(tmp_path / "local.yaml", photos, tmp_path / "undisturbed", model=AS_SHIPPED)
    undisturbed = digests(Path(build_dataset(local)))
    with faulty_proxy(s3_server.port) as proxy, ray_cluster(0, 8) as cluster:
        options = {"s3://": {"endpoint_url": proxy.url, "connect_timeout": 2, "read_timeout": 2}}
        config = write_config(tmp_path / "build.yaml", catalog, dataset, storage=options, stall_timeout=1800)
        sleeper = cluster.nodes[-1]  # all work is on this node until there is another one
        halted: list[int] = []
        woken: list[str] = []

        def policy(method: str, target: str) -> bytes:
            if (method, halted) == ("PUT", []) and "/set/masks/sa_000001" in target:
                # Two of the shard's files are there; of this one the header has arrived, and the body waits.
                halted.extend(process.pid for process in writers(sleeper))
                sleeper.pause()
            return b""

        proxy.policy = policy
        with running(config, **cluster.environment) as run:
            wait_for("a node halted in the middle of a shard", lambda: halted, run)
            assert not direct.exists(f"{dataset}/commits/000001.g1.json")
            cluster.add_node(8)
            assert run.wait(1800) == 0, run.told()
        assert digests(download(Location(direct, dataset), tmp_path / "before")) == undisturbed

        proxy.policy = lambda method, target: woken.append(f"{method} {target}") or b""
        still = writers(sleeper)
        assert {process.pid for process in still} == set(halted)
        assert {process.status() for process in still} == {psutil.STATUS_STOPPED}
        for process in still:
            process.resume()  # before its raylet, which would kill it
        wait_for("the end of the writers that woke up", lambda: not writers(sleeper))
        assert any(request.startswith("PUT ") and "/set/commits/" in request for request in woken), woken
        sleeper.wake_up()
        wait_for("the end of the node that woke up", lambda: not sleeper.alive())
    assert digests(download(Location(direct, dataset), tmp_path / "after")) == undisturbed
    assert list(audit_integrity(Location(direct, dataset)).findings) == []
