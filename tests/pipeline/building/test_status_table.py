"""Several datasets side by side: the table, its order, and the trainings of the weights."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from segmint.catalogs.dataset.manifest import DatasetManifest, ModelWeights
from segmint.catalogs.layout import MANIFEST
from segmint.catalogs.lineage import TrainingRound, trainings
from segmint.pipeline.building.status import Prices, Status, StatusTable
from segmint.pipeline.building.totals import NOBODY, Totals
from tests.support.builds import segmint_here
from tests.support.committed import of_people, write_dataset, write_generation
from tests.support.lineages import BASE, HELD_OUT, TRAINED, chain_of
from tests.support.locations import location_of

A, B, C, D = (letter * 64 for letter in "abcd")


def row(name: str, *weights: str) -> Status:
    lineage: tuple[TrainingRound, ...] = chain_of(*weights) if len(weights) > 1 else ()
    return Status(
        dataset=name,
        name=name,
        time=datetime(2026, 5, 1, tzinfo=UTC),
        totals=Totals(rows=1, written=1, rejected={}, masks=1, shards=1, missing=(), missing_rows=0),
        last_commit=None,
        pace=None,
        prices=Prices(),
        gaps=(),
        drift=None,
        round=trainings(lineage),
        weights=ModelWeights(name="sam.pth", sha256=weights[-1]),
        trainings=lineage,
        people=NOBODY,
    )


def test_each_training_is_listed_once() -> None:
    """Two trainings that began with the same weights are both a round 1."""
    table = StatusTable([row("first", A), row("branch", A, D), row("third", A, B, C), row("second", A, B)])
    lines = table.lines()[5:]
    assert [line.partition(", ")[0] for line in lines] == [
        f"round 1: weights sam-dd.pth (SHA-256 {D[:12]})",
        f"round 1: weights sam-bb.pth (SHA-256 {B[:12]})",
        f"round 2: weights sam-cc.pth (SHA-256 {C[:12]})",
    ]


@pytest.fixture(scope="module")
def rounds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Round 0 of three shards, of which people worked on the first; and round 1, of one shard of two."""
    folder = tmp_path_factory.mktemp("rounds")
    first, second = folder / "round-0", folder / "round-1"
    begun = write_dataset(location_of(first), shards=3)
    write_generation(location_of(first), 0, generation=2, make_row=of_people)
    write_dataset(location_of(second), shards=1)
    lineage = chain_of(BASE, TRAINED)
    lineage = (lineage[0], lineage[1].model_copy(update={"held_out": HELD_OUT}))
    (part,) = begun.catalog
    changes = {
        "name": "small-1",
        "weights": ModelWeights(name="sam-11.pth", sha256=TRAINED),
        "lineage": lineage,
        "catalog": (part.model_copy(update={"rows": 6}),),
    }
    (second / MANIFEST).write_bytes(begun.model_copy(update=changes).to_json())
    return first, second


def test_json_has_the_datasets_in_the_order_given(rounds: tuple[Path, Path]) -> None:
    answer = json.loads(segmint_here("status", rounds[1], rounds[0], "--json"))
    assert answer.keys() == {"datasets", "not_checked"}
    second, first = answer["datasets"]
    assert [(one["name"], one["round"], one["complete"]) for one in (first, second)] == [
        ("small", 0, True),
        ("small-1", 1, False),
    ]
    assert (first["written"], first["masks"], first["masks_by_source"]["corrected"]) == (6, 12, 2)
    assert (first["held_out"], first["trainings"], first["seconds_per_mask"]) == (None, [], 10.5)
    assert second["masks_by_source"]["automatic"] == second["masks"] == 4
    assert second["seconds_per_mask"] is None
    assert second["held_out"] == HELD_OUT.model_dump()
    assert [link["name"] for link in second["trainings"]] == ["sam-00.pth", "sam-11.pth"]
    alone = json.loads(segmint_here("status", rounds[0], "--json"))
    assert {**first, "time": None} == {**alone, "time": None}


ROUND = (
    "round 1: weights sam-11.pth (SHA-256 111111111111), trained on small (digest dddddddddddd) from sam-00.pth; "
    "mean IoU at one click 0.361 before and 0.828 at the best step, on 14 masks of 2 held-out images"
)


def test_people_get_a_table_in_the_order_given(rounds: tuple[Path, Path]) -> None:
    head, *rows = (
        "dataset  round  shards  images  rejected  masks  automatic  corrected  imported  masks/image  s/mask  "
        "time left  mIoU at 1 click              measured",
        "small        0  3 of 3       6         3     12          9          2         1            2    10.5  "
        "        -                -                     -",
        "small-1      1  1 of 2       2         1      4          4          0         0            2       -  "
        "  unknown    0.361 → 0.828  14 masks of 2 images",
    )
    notes = [ROUND, "small: 2 of 3 annotated masks have a time"]
    assert segmint_here("status", *rounds).splitlines() == [head, *rows, *notes]
    assert segmint_here("status", *rounds[::-1]).splitlines() == [head, *rows[::-1], *notes]


def test_one_dataset_has_no_table_but_its_trainings(rounds: tuple[Path, Path]) -> None:
    lines = segmint_here("status", rounds[1]).splitlines()
    assert lines[0].startswith(f"small-1: {rounds[1]}, ")
    assert lines[-1] == ROUND


def test_datasets_of_one_name_are_told_apart(rounds: tuple[Path, Path], tmp_path: Path) -> None:
    """Datasets of one name are shown by where they are; what a table cannot say of one has a line."""
    other = tmp_path / "other"
    write_dataset(location_of(other), shards=2)
    (other / "commits/000000.g1.json").unlink()
    manifest = DatasetManifest.from_json((other / MANIFEST).read_bytes())
    (other / MANIFEST).write_bytes(
        manifest.model_copy(update={"weights": ModelWeights(name="vit_h", sha256="f" * 64)}).to_json()
    )
    head, *lines = segmint_here("status", other, *rounds).splitlines()
    assert head.split()[:3] == ["dataset", "round", "shards"]
    assert [line.split()[:2] for line in lines[:3]] == [[str(other), "0"], [str(rounds[0]), "0"], [str(rounds[1]), "1"]]
    assert [line for line in lines if line.startswith("round")] == [ROUND]
    assert f"small: 1 shard on hold; see `segmint status {other}`" in lines


def test_a_place_without_a_dataset_is_named(rounds: tuple[Path, Path], tmp_path: Path) -> None:
    said = segmint_here("status", rounds[0], tmp_path, check=2)
    assert f"{tmp_path} is not a segmint dataset: no dataset.json" in said
