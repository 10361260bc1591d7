"""The same bytes for any number of actors, after a SIGKILL, and from ranges of shards."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.building.pace import IMAGE_S
from benchmarks.building.scale import write_build
from benchmarks.building.stubs import RELEASE_BYTES, StubbedPrepare, StubbedSegment
from segmint.infra.ray_session import Cluster
from segmint.infra.storage.storage import Storage
from segmint.pipeline.build import run_build
from segmint.pipeline.building.dataset import open_or_create
from segmint.pipeline.config.config import load_config
from tests.support.builds import SEVERAL_ACTORS, digests, segmint, write_config
from tests.support.built_fixtures import IN_TWOS, BuiltDataset
from tests.support.runs import STUBBED, assert_gone, assert_whole, running, wait_for
from tests.support.stubbed import write_dataset

pytestmark = pytest.mark.ray


@pytest.fixture
def catalog(built: BuiltDataset) -> Path:
    return built.catalog


@pytest.fixture
def undisturbed(built: BuiltDataset) -> dict[str, str]:
    """Digests of the files that one segment actor writes in one run."""
    return digests(built.dataset)


@pytest.mark.long
def test_three_segment_actors_write_the_same_as_one(catalog: Path, undisturbed: dict[str, str], tmp_path: Path) -> None:
    config = write_config(
        tmp_path / "build.yaml", catalog, tmp_path / "dataset", **IN_TWOS, resources=SEVERAL_ACTORS, rows_per_block=1
    )
    segmint("build", config)
    assert digests(tmp_path / "dataset") == undisturbed


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("window_shards", "rows_per_block", "actors"), [(1, 16, 1), (7, 128, 2), ("auto", "auto", 4), ("auto", 1, 2)]
)
def test_neither_windows_nor_blocks_nor_actors_change_a_byte(
    catalog: Path,
    undisturbed: dict[str, str],
    tmp_path: Path,
    window_shards: int | str,
    rows_per_block: int | str,
    actors: int,
) -> None:
    settings = {"window_shards": window_shards, "rows_per_block": rows_per_block, "resources": pools(actors)}
    config = write_config(tmp_path / "build.yaml", catalog, tmp_path / "dataset", **IN_TWOS, **settings)
    segmint("build", config, timeout=850)
    assert digests(tmp_path / "dataset") == undisturbed


def stubbed_build(folder: Path, catalog: Path | None = None, **settings: Any) -> dict[str, str]:
    """Digests of the files of ten shards of 120 rows, all different, whose pixels stubs made."""
    if catalog is not None:
        settings["catalog"] = str(catalog)
    config = write_build(folder, 1200, images_per_shard=120, **settings)
    with running(config, **STUBBED, **{RELEASE_BYTES: "3000"}) as run:
        assert run.wait() == 0, run.told()
    return digests(folder / "dataset")


@pytest.fixture(scope="module")
def stubbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A catalog, and the files that one segment actor writes in one window."""
    folder = tmp_path_factory.mktemp("stubbed")
    return folder / "catalog.parquet", stubbed_build(folder, resources=pools(1))


def pools(actors: int) -> dict[str, Any]:
    return {"segment": {"actors": actors, "num_cpus": 1}, "prepare": {"actors": 1, "num_cpus": 0.5}}


@pytest.mark.long
@pytest.mark.parametrize("actors", [1, 2, 4])
@pytest.mark.parametrize("window_shards", [1, 7, "auto"])
@pytest.mark.parametrize("rows_per_block", [16, 128])
def test_rows_reach_their_shards_in_any_windows_and_blocks(
    stubbed: tuple[Path, dict[str, str]], tmp_path: Path, window_shards: int | str, rows_per_block: int, actors: int
) -> None:
    catalog, files = stubbed
    settings = {"window_shards": window_shards, "rows_per_block": rows_per_block, "resources": pools(actors)}
    assert stubbed_build(tmp_path, catalog, **settings) == files


def test_a_killed_run_is_finished_by_the_next(
    tmp_path: Path, local_ray: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With stubs for pixels, unlike `test_kills.py`. The next run is this process's.

    The undisturbed files are written without Ray.
    """
    model = {"model": {"device": "cpu", "threads": 1, "kernels": "torch"}}  # this process's run sees a cluster
    sizes = {"images_per_shard": 15, "rows_per_block": 5, "window_shards": 8, "resources": pools(1), **model}
    killed, alone = (write_build(tmp_path / name, 120, **sizes) for name in ("killed", "alone"))
    commits = tmp_path / "killed" / "dataset" / "commits"
    with running(killed, **STUBBED, **{IMAGE_S: "0.04"}) as run:
        wait_for("commit", lambda: commits.is_dir() and any(commits.glob("*.json")), run)
        run.kill()
        run.wait()
        assert len(list(commits.glob("*.json"))) < 8, "the run was already whole when it was killed"
        assert_gone(run)
    monkeypatch.setattr("segmint.pipeline.build.Prepare", StubbedPrepare)
    monkeypatch.setattr("segmint.pipeline.build.Segment", StubbedSegment)
    assert run_build(load_config(str(killed))).written == 118
    write_dataset(alone)
    open_or_create(load_config(str(alone)), Storage()).write_index()
    assert_whole(tmp_path / "killed" / "dataset", digests(tmp_path / "alone" / "dataset"))


@pytest.mark.long
def test_ranges_of_shards_add_up_to_the_whole(catalog: Path, undisturbed: dict[str, str], tmp_path: Path) -> None:
    config = write_config(tmp_path / "build.yaml", catalog, tmp_path / "dataset", **IN_TWOS)
    segmint("build", config, "--shards", "1:3")
    assert sorted(path.name for path in (tmp_path / "dataset" / "commits").iterdir()) == [
        "000001.g1.json",
        "000002.g1.json",
    ]
    segmint("build", config, "--shards", "0:1")
    segmint("build", config)
    assert digests(tmp_path / "dataset") == undisturbed


@pytest.mark.long
@pytest.mark.parametrize("ranges", [((), ()), (("--shards", "0:2"), ("--shards", "2:3")), (("--shards", "0/2"), ())])
def test_two_concurrent_drivers_write_the_same_as_one(
    catalog: Path, undisturbed: dict[str, str], tmp_path: Path, ranges: tuple[tuple[str, ...], tuple[str, ...]]
) -> None:
    """On the same shards, on parts of them, and on both; a last run has only the index to write."""
    config = write_config(tmp_path / "build.yaml", catalog, tmp_path / "dataset", **IN_TWOS)
    first, second = ranges
    with running(config, *first) as one, running(config, *second) as other:
        assert (one.wait(), other.wait()) == (0, 0)
    assert "nothing to do: all rows of " in segmint("build", config)
    assert digests(tmp_path / "dataset") == undisturbed
