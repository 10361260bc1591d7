"""Batch b has the same images for any number of ranks and workers, and from any step on."""

import itertools
import json
import pickle
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader

from segmint.catalogs.dataset.reading.batches import Batches, BatchIterator, ReaderPosition
from segmint.catalogs.dataset.reading.torch_dataset import BatchLoader, open_dataset
from segmint.catalogs.layout import DamagedDatasetError
from segmint.infra.errors import UsageError
from tests.support.committed import masks, pixels, write_dataset, write_generation
from tests.support.committed_shard import CommittedShard
from tests.support.locations import location_of

IMAGES = [ordinal + 1 for ordinal in range(60) if ordinal % 3 < 2]
"""The ids in the dataset `many`: the last row of each shard is refused."""

GLOBAL = 12
"""Images of a batch: four batches an epoch, the last with eight that were there before."""

Part = list[list[int]]


def flat(batches: Iterable[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(batches))


def ids(batches: object) -> Part:
    return [[sample.id for sample in batch] for batch in batches]  # type: ignore[attr-defined]


def ranks_of(
    monkeypatch: pytest.MonkeyPatch, uri: str, ranks: int, workers: int, state: dict | None = None, stop: int = 99
) -> tuple[Part, list[dict]]:
    """The global batches of an epoch from a state on, up to `stop` of them, and each rank's state after them."""
    parts, states = [], []
    for rank in range(ranks):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(ranks))
        loader = BatchLoader(open_dataset(uri).batches(GLOBAL, seed=5, window=6), num_workers=workers)
        if state is not None:
            loader.load_state_dict(state)
        parts.append(ids(itertools.islice(loader, stop)))
        states.append(loader.state_dict())
    return [flat(batch) for batch in zip(*parts, strict=True)], states


@pytest.fixture(scope="module")
def epoch(many: str) -> Part:
    """The batches of the first epoch, read by one process."""
    return ids(open_dataset(many).batches(GLOBAL, seed=5, window=6))


def test_an_epoch_has_every_image_once_and_is_filled_up_with_its_first_ones(epoch: Part) -> None:
    order = flat(epoch)
    assert [len(batch) for batch in epoch] == [GLOBAL] * 4
    assert sorted(order[:40]) == IMAGES
    assert order[40:] == order[:8]
    assert order[:40] != IMAGES


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(("ranks", "workers", "stop"), [(1, 4, 3), (2, 1, 1), (3, 0, 2), (8, 0, 0)])
def test_any_ranks_and_workers_read_the_same_batches_and_go_on_as_others(
    many: str, epoch: Part, ranks: int, workers: int, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, states = ranks_of(monkeypatch, many, ranks, workers, stop=stop)
    assert first == epoch[:stop]
    assert states == [states[0]] * ranks
    assert states[0]["samples"] == stop * GLOBAL  # whatever workers have read ahead
    rest, ends = ranks_of(monkeypatch, many, 9 - ranks if ranks > 1 else 2, 0, states[0])
    assert rest == epoch[stop:]
    assert {(end["epoch"], end["samples"]) for end in ends} == {(1, 0)}


@pytest.mark.long
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("workers", [0, 1, 4])
def test_every_cell_of_the_matrix_goes_on_in_every_other(
    many: str, epoch: Part, ranks: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stop in range(len(epoch) + 1):
        first, states = ranks_of(monkeypatch, many, ranks, workers, stop=stop)
        assert first == epoch[:stop]
        assert states == [states[0]] * ranks
        if stop == len(epoch):
            assert (states[0]["epoch"], states[0]["samples"]) == (1, 0)
            continue
        for others, each in itertools.product((1, 2, 3, 8), (0, 1, 4)):
            rest, ends = ranks_of(monkeypatch, many, others, each, states[0])
            assert rest == epoch[stop:]
            assert {(end["epoch"], end["samples"]) for end in ends} == {(1, 0)}


def test_samples_are_those_of_a_plain_reading(many: str) -> None:
    plain = {sample.id: sample for sample in open_dataset(many)}
    for sample in itertools.chain(*open_dataset(many).batches(8, seed=2)):
        other = plain[sample.id]
        assert (sample.jpeg, sample.masks) == (other.jpeg, other.masks)
        assert sample.row == other.row
        assert len(sample.row) == len(other.row)
        assert pickle.loads(pickle.dumps(sample)).row == other.row
    ordinal = sample.row["ordinal"]
    assert np.abs(sample.image.astype(int) - pixels(ordinal)).mean() < 5
    np.testing.assert_array_equal(sample.masks[1].mask, masks(ordinal)[1])
    with pytest.raises(KeyError, match="nothing"):
        sample.row["nothing"]


def test_without_shuffling_the_order_is_the_datasets(many: str) -> None:
    batches = open_dataset(many).batches(9, shuffle=False, last="drop")
    assert ids(batches) == [IMAGES[start : start + 9] for start in range(0, 36, 9)]
    assert len(batches) == 4


def test_the_last_images_are_dropped_by_a_key(many: str, epoch: Part) -> None:
    assert ids(open_dataset(many).batches(GLOBAL, seed=5, window=6, last="drop")) == epoch[:3]


def test_a_batch_larger_than_the_dataset_is_filled_up_again_and_again(dataset: str) -> None:
    (batch,) = ids(open_dataset(dataset).batches(14, seed=1))
    assert batch == batch[:6] * 2 + batch[:2]


@pytest.mark.usefixtures("processes")
def test_a_plain_data_loader_takes_it_and_epochs_are_set(many: str) -> None:
    batches = open_dataset(many).batches(20, seed=3)
    loader = DataLoader(batches, batch_size=None, num_workers=2, persistent_workers=True)
    first = ids(loader)
    assert ids(loader) == first
    batches.begin(1)
    second = ids(loader)
    assert second != first
    batches.begin(1, samples=20)
    assert ids(loader) == second[1:]


@pytest.mark.parametrize("workers", [1, 3])
def test_an_iterator_of_any_worker_goes_on_where_its_state_was_saved(many: str, workers: int) -> None:
    batches, alone = open_dataset(many).batches(3, seed=5), ReaderPosition(0, 1)
    batches.begin(2, samples=6)
    whole = ids(batches)
    for part in range(workers):
        first, other = (BatchIterator(batches, 2, 6, alone, ReaderPosition(part, workers)) for _ in range(2))
        received = ids(itertools.islice(first, 2))
        state = json.loads(json.dumps(first.state_dict()))
        assert ids(first) == whole[part::workers][2:]
        other.load_state_dict(state)
        assert received + ids(other) == whole[part::workers]
        assert other.state_dict() == first.state_dict()
        other.load_state_dict(other.state_dict())
        assert ids(other) == []


@pytest.mark.parametrize("key", ["seed", "global_batch", "workers", "worker", "format"])
def test_an_iterator_refuses_a_state_of_another_order_or_worker(many: str, key: str) -> None:
    batches = open_dataset(many).batches(3, seed=5)
    iterator = iter(batches)
    with pytest.raises(UsageError, match=f"{key}: 7, here "):
        iterator.load_state_dict({**iterator.state_dict(), key: 7})
    with pytest.raises(UsageError, match="global_batch: None, here 3"):
        iterator.load_state_dict(BatchLoader(batches).state_dict())


@pytest.mark.long
@pytest.mark.usefixtures("processes")
def test_spawned_workers_read_the_same(many: str, epoch: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    batches = open_dataset(many).batches(GLOBAL, seed=5, window=6)
    loader = BatchLoader(batches, num_workers=1, multiprocessing_context="spawn")
    assert ids(loader) == [batch[4:8] for batch in epoch]


@pytest.mark.usefixtures("processes")
def test_a_rank_that_a_launcher_sent_them_to_reads_its_own_part(
    many: str, epoch: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = pickle.dumps(open_dataset(many).batches(GLOBAL, seed=5, window=6))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    sent = pickle.loads(packed)
    loader = DataLoader(sent, batch_size=None, num_workers=1, persistent_workers=True)
    assert ids(loader) == [batch[4:8] for batch in epoch]
    sent.begin(0, samples=GLOBAL)  # also seen by workers that persist
    assert ids(loader) == [batch[4:8] for batch in epoch[1:]]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"global_batch": 1.0}, r"1\.0 for a number of images"),
        ({"global_batch": 0}, "global_batch=0"),
        ({"global_batch": 1, "window": 0}, "window=0"),
        ({"global_batch": 1, "seed": -1}, "seed=-1"),
        ({"global_batch": 1, "last": "keep"}, "expected 'pad' or 'drop'"),
        ({"global_batch": 7, "last": "drop"}, "has 6 images, too few for a batch of 7"),
    ],
)
def test_what_cannot_be_is_refused(dataset: str, options: dict, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        open_dataset(dataset).batches(**options)


def test_begin_refuses_what_comes_before_the_first(dataset: str) -> None:
    with pytest.raises(UsageError, match="epoch=0, samples=-2"):
        open_dataset(dataset).batches(2).begin(0, -2)


def test_more_ranks_than_images_of_a_batch_are_refused(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UsageError, match="a global_batch of 2 for 3 ranks"):
        iter(open_dataset(dataset).batches(2))


def shard_file(dataset: str, kind: str, shard: int = 1) -> Path:
    return next(Path(dataset, kind).glob(f"sa_{shard:06}-*"))


def read_all(dataset: str, **options: bool) -> Batches:
    batches = open_dataset(dataset, **options).batches(2, seed=1)
    list(batches)
    return batches


@pytest.mark.parametrize("kind", ["shards", "images"])
def test_a_changed_byte_is_found_before_it_is_read(dataset: str, kind: str) -> None:
    path = shard_file(dataset, kind)
    data = bytearray(path.read_bytes())
    data[1500 if kind == "shards" else len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedDatasetError, match=rf"shard 1 of {dataset}: .*{path.name} is damaged: .*segmint repair"):
        read_all(dataset, verify=True)
    with pytest.raises(DamagedDatasetError, match=rf"{path.name} is damaged"):
        list(open_dataset(dataset, verify=True))


def test_files_are_hashed_at_the_first_reading_alone(dataset: str) -> None:
    batches = read_all(dataset, verify=True)
    path = shard_file(dataset, "shards")
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"predicted_iou":0.91', b'"predicted_iou":0.81'))
    assert {mask.predicted_iou for batch in batches for sample in batch for mask in sample.masks} == {0.91, 0.81}


def test_a_short_tar_and_one_that_is_gone_say_what_to_do(dataset: str) -> None:
    path = shard_file(dataset, "shards")
    with tarfile.open(path) as archive:
        second = archive.getmembers()[2].offset
    for size in (second, 3000):  # without the second image, and without any
        path.write_bytes(path.read_bytes()[:size])
        for read in (lambda: read_all(dataset), lambda: open_dataset(dataset)[3]):
            with pytest.raises(DamagedDatasetError, match=r"shard 1 of .* image [45] where it should be.*segmint rep"):
                read()
    path.unlink()
    for read in (lambda: read_all(dataset), lambda: open_dataset(dataset)[3]):
        with pytest.raises(DamagedDatasetError, match=r"shard 1 of .*it is not there.*segmint repair"):
            read()


@pytest.mark.long
@pytest.mark.usefixtures("processes")
def test_a_damaged_shard_is_named_through_workers(dataset: str) -> None:
    shard_file(dataset, "shards").unlink()
    with pytest.raises(DamagedDatasetError, match="shard 1 of"):
        list(BatchLoader(open_dataset(dataset).batches(2), num_workers=2))


def test_an_image_of_another_number_is_damage(dataset: str) -> None:
    taken = CommittedShard(Path(dataset), 0)
    taken.edit_member(1, lambda data: data.replace(b'"image_id":1', b'"image_id":2'))
    taken.write()
    with pytest.raises(DamagedDatasetError, match="does not contain image 1 where it should be"):
        read_all(dataset)


def test_a_mask_of_another_size_and_a_table_without_a_column_are_damage(dataset: str) -> None:
    taken = CommittedShard(Path(dataset), 0)
    taken.edit_member(1, lambda data: data.replace(b'"size":[60,80]', b'"size":[60000,80000]'))
    taken.write()
    with pytest.raises(DamagedDatasetError, match=r"has the size \(60000, 80000\); image 1 has \(60, 80\)"):
        read_all(dataset)
    path = shard_file(dataset, "images", shard=0)
    pq.write_table(pq.read_table(path).drop_columns(["width"]), path)
    with pytest.raises(DamagedDatasetError, match=r"sa_000000-.*\.parquet is not a readable Parquet file: .*width"):
        read_all(dataset)


def test_a_shard_that_a_correction_replaced_is_told(dataset: str) -> None:
    batches = open_dataset(dataset).batches(2)
    write_generation(location_of(dataset), shard=2, generation=2, refuse=2)
    Path(dataset, "commits/000002.g1.json").unlink()
    with pytest.raises(UsageError, match=r"shard 2 of .* generation 2 replaced 1\. Open the dataset again"):
        list(batches)


def test_annotations_without_images_are_read(tmp_path: Path) -> None:
    uri = str(tmp_path / "dataset")
    write_dataset(location_of(uri), shards=2, with_images=False)
    samples = list(itertools.chain(*open_dataset(uri).batches(2)))
    assert {sample.jpeg for sample in samples} == {None}
    assert sorted(sample.id for sample in samples) == [1, 2, 4, 5]
