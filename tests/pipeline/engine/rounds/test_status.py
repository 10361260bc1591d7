"""The rounds of small datasets: figures against what was written, and what is not read."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.manifest import DatasetManifest, Weights
from segmint.catalogs.layout import MANIFEST
from segmint.pipeline.engine.rounds.status import read_engine
from tests.support.builds import segmint_here
from tests.support.committed import row_of, write_dataset, write_generation
from tests.support.lineages import BASE, HELD_OUT, TRAINED, chain_of
from tests.support.locations import location_of


def of_people(ordinal: int, refused: bool) -> dict[str, Any]:
    """A row whose first mask was corrected in 10 s and a second more for each ordinal; the other one is as it was."""
    row = row_of(ordinal, refused)
    if not refused:
        row["masks"][0] |= {"source": "corrected", "seconds": 10.0 + ordinal, "annotator": "Ada"}
        row["masks"][1] |= {"source": "imported" if ordinal == 1 else "automatic"}
    return row


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
        "weights": Weights(name="sam-11.pth", sha256=TRAINED),
        "lineage": lineage,
        "catalog": (part.model_copy(update={"rows": 6}),),
    }
    (second / MANIFEST).write_bytes(begun.model_copy(update=changes).to_json())
    return first, second


def test_the_rounds_have_what_was_written(rounds: tuple[Path, Path]) -> None:
    answer = json.loads(segmint_here("engine", "status", rounds[1], rounds[0], "--json"))
    assert answer["lineages"] == 1
    first, second = answer["rounds"]
    assert [(row["name"], row["round"], row["complete"]) for row in (first, second)] == [
        ("small", 0, True),
        ("small-1", 1, False),
    ]
    assert first["images"] == 6
    assert first["masks"] == sum(first["masks_by_source"].values()) == 12
    sources = {"automatic": 9, "assisted": 0, "corrected": 2, "manual": 0, "imported": 1}
    assert first["masks_by_source"] == sources
    assert first["masks_per_image"] == 2
    assert first["masks_timed"] == 2
    assert first["seconds_per_mask"] == 10.5
    assert first["held_out"] is None
    assert first["trainings"] == []
    assert second["masks_by_source"]["automatic"] == second["masks"] == 4
    assert second["seconds_per_mask"] is None
    assert second["held_out"] == HELD_OUT.model_dump()
    assert [link["name"] for link in second["trainings"]] == ["sam-00.pth", "sam-11.pth"]


def test_people_get_a_table(rounds: tuple[Path, Path]) -> None:
    assert segmint_here("engine", "status", *rounds).splitlines() == [
        "round  dataset  images  masks  automatic  corrected  imported  masks/image  s/mask  mIoU at 1 click  held out",
        "0      small         6     12          9          2         1            2    10.5                -         -",
        "1      small-1       2      4          4          0         0            2       -    0.361 → 0.828         7",
        "round 1: weights sam-11.pth (SHA-256 111111111111), trained on small (digest dddddddddddd) from sam-00.pth; "
        "mean IoU at one click 0.361 before and 0.828 after, on 14 masks of 2 held-out images",
        "small-1 is not complete: 1 of 2 shards committed",
        "small: 2 of 3 masks of people have a time",
    ]


def test_tables_are_read_of_changed_shards_alone(rounds: tuple[Path, Path], tmp_path: Path) -> None:
    """The tables of the other two shards are gone, and nothing misses them."""
    shutil.copytree(rounds[0], tmp_path / "dataset")
    dataset = location_of(tmp_path / "dataset")
    before = read_engine([dataset]).rows[0]
    for shard in (1, 2):
        commit = CommitLog(dataset).latest(shard)
        assert commit is not None
        for entry in commit.files:
            (tmp_path / "dataset" / entry.path).unlink()
    assert read_engine([dataset]).rows[0] == before
    assert before.by_source["corrected"] == 2


def test_other_lineages_have_tables_of_their_own(rounds: tuple[Path, Path], tmp_path: Path) -> None:
    write_dataset(location_of(tmp_path / "other"), shards=1)
    manifest = DatasetManifest.from_json((tmp_path / "other" / MANIFEST).read_bytes())
    changes = {"name": "other", "weights": Weights(name="vit_h", sha256="f" * 64)}
    (tmp_path / "other" / MANIFEST).write_bytes(manifest.model_copy(update=changes).to_json())
    lines = segmint_here("engine", "status", tmp_path / "other", *rounds).splitlines()
    heads = [line for line in lines if line.startswith("lineage")]
    assert heads == [
        f"lineage 1 of 2: sam-00.pth (SHA-256 {BASE[:12]}), 1 training",
        "lineage 2 of 2: vit_h (SHA-256 ffffffffffff), 0 trainings",
    ]
    assert lines[lines.index(heads[1]) + 2].startswith("0      other ")


def test_a_place_without_a_dataset_is_named(tmp_path: Path) -> None:
    assert f"{tmp_path} is not a segmint dataset: no dataset.json" in segmint_here(
        "engine", "status", tmp_path, check=2
    )
