"""Subsets: which images a condition or a pinned selection chooses, and that every reader reads exactly these."""

import json
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from segmint.catalogs.dataset.reading.torch_dataset import BatchLoader, open_dataset
from segmint.catalogs.dataset.subsets import Selection, choose_images, read_selection
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.pipeline.export.export import select_images
from tests.support.committed import write_dataset
from tests.support.everything import upload
from tests.support.locations import location_of

ALL = [ordinal + 1 for ordinal in range(60) if ordinal % 3 < 2]
"""The ids in the dataset `many`: twenty shards of two images each."""

CONDITION = "id % 4 <> 0 AND id > 4"
CHOSEN = [number for number in ALL if number % 4 != 0 and number > 4]


def on_rank(monkeypatch: pytest.MonkeyPatch, rank: int, ranks: int) -> None:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(ranks))


def test_a_reader_yields_exactly_the_chosen_images(many: str) -> None:
    whole = {sample.id: sample for sample in open_dataset(many)}
    chosen = open_dataset(many, select=CONDITION)
    samples = list(chosen)
    assert [sample.id for sample in samples] == CHOSEN
    assert len(chosen) == len(CHOSEN)
    assert all(sample.jpeg == whole[sample.id].jpeg for sample in samples)
    assert [chosen[place].id for place in (0, 5, -1)] == [CHOSEN[0], CHOSEN[5], CHOSEN[-1]]
    with pytest.raises(IndexError):
        chosen[len(CHOSEN)]


@pytest.mark.usefixtures("processes")
def test_workers_and_ranks_share_the_chosen_images(many: str, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = DataLoader(open_dataset(many, select=CONDITION), num_workers=2, batch_size=None)
    assert sorted(sample.id for sample in workers) == CHOSEN
    found, lengths = [], []
    for rank in range(3):
        on_rank(monkeypatch, rank, 3)
        part = open_dataset(many, select=CONDITION)
        found += [sample.id for sample in part]
        lengths.append(len(part))
    assert found == CHOSEN
    assert max(lengths) - min(lengths) <= 1
    assert sum(lengths) == len(CHOSEN)


def test_batches_contain_the_chosen_images_and_resume_only_on_the_same_subset(many: str) -> None:
    def loader(select: str | None) -> BatchLoader:
        return BatchLoader(open_dataset(many, select=select).batches(4, seed=3, window=5, last="drop"), num_workers=0)

    first = [[sample.id for sample in batch] for batch in loader(CONDITION)]
    assert len(first) == len(CHOSEN) // 4
    read = [number for batch in first for number in batch]
    assert len(set(read)) == len(read)
    assert set(read) <= set(CHOSEN)
    assert first == [[sample.id for sample in batch] for batch in loader(CONDITION)]
    begun = loader(CONDITION)
    next(iter(begun))
    state = begun.state_dict()
    resumed = loader(CONDITION)
    resumed.load_state_dict(state)
    assert [[sample.id for sample in batch] for batch in resumed] == first[1:]
    for other in (f"({CONDITION})", None):
        with pytest.raises(UsageError, match="another order"):
            loader(other).load_state_dict(state)


def test_a_pinned_selection_is_the_same_on_a_disk_and_in_a_bucket(
    many: str, tmp_path: Path, s3_options: dict[str, dict[str, str]], s3_bucket: str
) -> None:
    file = tmp_path / "subset.json"
    selected = select_images(location_of(many), CONDITION, location_of(file))
    storage = Storage(s3_options)
    bucket = Location(storage, f"s3://{s3_bucket}/many")
    upload(Path(many), bucket)
    here, there = (choose_images(place, str(file)) for place in (location_of(many), bucket))
    assert here.ids.tolist() == there.ids.tolist() == CHOSEN
    assert here.sha256 == there.sha256 == selected.sha256 == choose_images(bucket, CONDITION).sha256
    assert [sample.id for sample in open_dataset(bucket.uri, storage, select=str(file))] == CHOSEN


def test_what_is_refused(many: str, tmp_path: Path) -> None:
    place = location_of(many)
    pinned = Selection.of(place, CONDITION)
    file = tmp_path / "subset.json"

    def refused(value: object) -> str:
        file.write_bytes(json.dumps(value).encode())
        with pytest.raises(UsageError) as error:
            choose_images(place, str(file))
        return str(error.value)

    fields = pinned.model_dump(mode="json")
    assert "was changed" in refused({**fields, "ids": fields["ids"][1:]})
    assert "was changed" in refused({**fields, "condition": "true"})
    assert "is not a selection" in refused({**fields, "ids": "all"})
    assert "is not a selection" in refused([])
    assert "another dataset" in refused({**fields, "dataset_id": "other"})
    with pytest.raises(UsageError, match="no such file"):
        read_selection(location_of(tmp_path / "none.json"))
    with pytest.raises(UsageError, match="meets the condition"):
        choose_images(place, "id < 0")
    with pytest.raises(UsageError, match="subquery isn't allowed"):
        choose_images(place, "id IN (SELECT 1)")
    with pytest.raises(UsageError, match="inside the dataset"):
        select_images(place, CONDITION, place / "subset.json")
    with pytest.raises(UsageError, match=r"ends with \.json"):
        select_images(place, CONDITION, location_of(tmp_path / "subset.txt"))


def test_an_image_that_no_takedown_removed_must_exist(many: str, tmp_path: Path) -> None:
    file = tmp_path / "subset.json"
    select_images(location_of(many), "true", location_of(file))
    other = tmp_path / "dataset"
    write_dataset(location_of(other), shards=2)
    with pytest.raises(UsageError, match="no takedown removed them"):
        choose_images(location_of(other), str(file))
    with pytest.raises(UsageError, match="already exists with other content"):
        select_images(location_of(other), "true", location_of(file))
