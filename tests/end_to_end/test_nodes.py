"""Builds on a cluster of several nodes write the same bytes as one machine, even if a node dies or two drivers share
the work.

The nodes are real ones, started by `ray start`, all on this machine.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.support.builds import AS_SHIPPED, digests, segmint, small_catalog, write_config
from tests.support.clusters import RayCluster, RayNode, ray_cluster
from tests.support.runs import assert_whole, running, title, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_catalog(tmp_path_factory.mktemp("photos"), count=12)


@pytest.fixture(scope="module")
def undisturbed(catalog: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of the files that one segment actor of a local Ray writes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    segmint("build", configured(folder, catalog, model=AS_SHIPPED))
    return digests(folder / "dataset")


def configured(folder: Path, catalog: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    pools = {"prepare": {"actors": [1, 2]}, **changes.pop("resources", {})}
    return write_config(
        folder / "build.yaml", catalog, folder / "dataset", images_per_shard=2, resources=pools, **changes
    )


def works(node: RayNode, stage: str) -> bool:
    """Whether an actor of a stage runs on a node."""
    return any(f"MapWorker(MapBatches({stage}))" in title(process) for process in node.processes())


def build_on(cluster: RayCluster, config: Path, *stages_elsewhere: str) -> None:
    """Build to the end, and check that these stages had actors on the last node."""
    with running(config, **cluster.environment) as run:
        for stage in stages_elsewhere:
            wait_for(f"{stage} on the last node", lambda stage=stage: works(cluster.nodes[-1], stage), run)
        assert run.wait() == 0, run.told()


def test_one_node_and_two_and_one_to_four_segment_actors_write_the_same(
    catalog: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    with ray_cluster(8) as cluster:
        for actors in (1, 2):
            config = configured(tmp_path / f"one-{actors}", catalog, resources={"segment": {"actors": actors}})
            build_on(cluster, config)
            assert_whole(config.parent / "dataset", undisturbed)
        cluster.add_node(8)
        for actors in (2, 4):
            # Each takes so many CPUs that no node can hold all of them.
            pool = {"segment": {"actors": actors, "num_cpus": 12 / actors}}
            config = configured(tmp_path / f"two-{actors}", catalog, resources=pool, rows_per_block=1)
            build_on(cluster, config, "Segment")
            assert_whole(config.parent / "dataset", undisturbed)


def test_a_build_survives_losing_a_node_that_its_pools_need(
    catalog: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    # A head without stages, and a segment actor on each of the others: once both are on one node, it has no CPU left
    # for a writer.
    config = configured(tmp_path / "killed", catalog, stall_timeout=1800)
    with ray_cluster(0, 5, 5) as cluster, running(config, **cluster.environment) as run:
        wait_for("segment actor on the last node", lambda: works(cluster.nodes[-1], "Segment"), run)
        cluster.nodes[-1].kill()
        assert run.wait() == 0, run.told()
    assert_whole(tmp_path / "killed" / "dataset", undisturbed)


def test_two_drivers_share_the_shards_of_a_dataset(catalog: Path, undisturbed: dict[str, str], tmp_path: Path) -> None:
    first = configured(tmp_path / "shared", catalog, resources={"prepare": {"actors": 1}, "segment": {"actors": 1}})
    second = first.with_name("second.yaml")
    second.write_text(first.read_text())
    with (
        ray_cluster(6, 6) as cluster,
        running(first, "--shards", "0/2", **cluster.environment) as one,
        running(second, "--shards", "1/2", **cluster.environment) as other,
    ):
        assert (one.wait(), other.wait()) == (0, 0), one.told() + other.told()
    assert_whole(tmp_path / "shared" / "dataset", undisturbed)
