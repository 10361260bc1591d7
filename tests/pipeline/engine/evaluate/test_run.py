"""Runs over parts: nothing stops them, and Ray's actors give what one process gives."""

import pyarrow as pa
import pytest

from segmint.infra.storage.storage import Storage
from segmint.pipeline.building import first_numerics
from segmint.pipeline.config.config import ResourcesConfig
from segmint.pipeline.engine.evaluate.result import EvaluateTask, PartResult
from segmint.pipeline.engine.evaluate.run import RunOptions, TruthOptions, open_truths, run_measure
from segmint.pipeline.engine.evaluate.truth import Truth
from tests.pipeline.engine.evaluate.test_truth import coco_file, drawn_by_people, save
from tests.support.area_measure import AreaMeasure
from tests.support.committed import write_dataset
from tests.support.locations import location_of


@pytest.fixture(scope="module")
def truths(tmp_path_factory: pytest.TempPathFactory) -> list[Truth]:
    """A dataset of two shards, the second one's tar cut short, and a COCO file of three images, one missing."""
    folder = tmp_path_factory.mktemp("run")
    write_dataset(location_of(folder / "dataset"), shards=2, make_row=drawn_by_people)
    (tar,) = (folder / "dataset/shards").glob("sa_000001-*")
    tar.write_bytes(tar.read_bytes()[:700])
    for name in ("a.png", "b.png"):
        save(folder / "images" / name)
    file = coco_file(folder, "a.png", "gone.png", "b.png")
    options = TruthOptions((str(folder / "dataset"), str(file)), images=(str(folder / "images"),))
    return open_truths(options, Storage())


def together(results: list[PartResult]) -> tuple[list[object], list[tuple[str, str]]]:
    rows = pa.concat_tables([result.table for result in results]).to_pylist()
    skipped = [(each.where, each.why.split(":")[0]) for result in results for each in result.skipped]
    return [(row["truth"], row["image"], row["mask"], row["area"]) for row in rows], skipped


EXPECTED = [(0, "sa_1.jpg", 10_000, 600), (1, "a.png", 7, 300), (1, "b.png", 9, 300)]


def test_what_cannot_be_read_is_listed_and_stops_nothing(
    truths: list[Truth], capsys: pytest.CaptureFixture[str]
) -> None:
    task = EvaluateTask(AreaMeasure(), (), "cpu", "fp32")
    rows, skipped = together(list(run_measure(task, truths, RunOptions(ray=False))))
    assert rows == EXPECTED
    assert [where for where, _ in skipped] == ["shard 1", "gone.png"]
    assert "evaluate 5/5" in capsys.readouterr().err


def test_a_bug_of_a_measure_costs_its_image(truths: list[Truth]) -> None:
    task = EvaluateTask(AreaMeasure(refused=("a.png",)), (), "cpu", "fp32")
    rows, skipped = together(list(run_measure(task, truths, RunOptions(ray=False))))
    assert rows == [EXPECTED[0], EXPECTED[2]]
    assert ("a.png", "KeyError") in skipped


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_rays_actors_give_the_same_in_the_same_order(truths: list[Truth], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_numerics, "actors_that_fit", lambda *_: 2)
    task = EvaluateTask(AreaMeasure(), (), "cpu", "fp32")
    here = together(list(run_measure(task, truths, RunOptions(ray=False))))
    there = together(list(run_measure(task, truths, RunOptions(ray=True, resources=ResourcesConfig()))))
    assert there == here
