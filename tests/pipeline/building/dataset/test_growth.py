"""A dataset grows with its catalog: only by new rows, only when asked to, and once."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from segmint.catalogs.dataset.manifest import load_latest_manifest
from segmint.catalogs.dataset.sweep import sweep
from segmint.catalogs.dataset.tombstones import TakedownRequest
from segmint.catalogs.layout import part_path
from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import StorageFaultError
from segmint.infra.storage.storage import Storage
from segmint.pipeline.building.dataset.dataset import BuildDataset, open_or_create
from segmint.pipeline.config.config import Config, load_config
from segmint.pipeline.corrections.amend import amend
from segmint.pipeline.corrections.takedown import takedown
from tests.support.builds import digests, write_catalog, write_config
from tests.support.locations import location_of


def row(index: int, **changes: Any) -> dict[str, Any]:
    return {"uri": f"photo_{index}.jpg", "license": "CC0-1.0" if index % 2 else "CC-BY-4.0", **changes}


FIRST = [row(index) for index in range(8)]
LATER = [*(row(index) for index in (8, 9)), *reversed(FIRST), row(10), row(3), row(11)]
"""Four new rows; the known ones are in another order, one of them twice."""


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """The folder of a dataset of eight rows, three a shard."""
    open_or_create(configured(tmp_path, FIRST), Storage())
    return tmp_path / "dataset"


def read_shards(dataset: BuildDataset, *shards: int) -> pa.Table:
    return dataset.read_runs([(span.start, span.stop) for span in dataset.spans(shards)])


def configured(folder: Path, rows: list[dict[str, Any]], name: str = "catalog") -> Config:
    catalog = write_catalog(folder / f"{name}.jsonl", rows)
    return load_config(str(write_config(folder / f"{name}.yaml", catalog, folder / "dataset")))


def grown(folder: Path, rows: list[dict[str, Any]], storage: Storage | None = None, **options: str) -> BuildDataset:
    return open_or_create(configured(folder, rows, **options), storage or Storage(), grow=True)


@pytest.mark.usefixtures("weights")
def test_new_rows_are_refused_until_they_are_asked_for(tmp_path: Path, begun: Path) -> None:
    before = digests(begun)
    with pytest.raises(UsageError, match=r"has 4 new rows that are not in .*: pass --grow"):
        open_or_create(configured(tmp_path, LATER), Storage())
    assert digests(begun) == before


@pytest.mark.usefixtures("weights")
def test_new_rows_become_a_separate_part_with_its_shards(tmp_path: Path, begun: Path) -> None:
    before = digests(begun)
    dataset = grown(tmp_path, LATER)
    after = digests(begun)
    assert {path: digest for path, digest in after.items() if path in before} == before
    part = dataset.manifest.catalog[1]
    assert sorted(set(after) - set(before)) == [f"catalog/part-1-{part.sha256[:12]}.parquet", "dataset.g2.json"]
    assert (part.path, part.rows, part.first_shard) == (f"catalog/part-1-{part.sha256[:12]}.parquet", 4, 3)
    assert (dataset.rows, dataset.shards()) == (12, range(5))
    assert [(span.start, span.stop) for span in dataset.spans(range(5))] == [(0, 3), (3, 6), (6, 8), (9, 12), (12, 13)]
    rows = read_shards(dataset, 2, 3, 4).to_pylist()
    assert [(r["ordinal"], r["id"], r["uri"]) for r in rows] == [
        (6, 7, "photo_6.jpg"),
        (7, 8, "photo_7.jpg"),
        (9, 10, "photo_8.jpg"),
        (10, 11, "photo_9.jpg"),
        (11, 12, "photo_10.jpg"),
        (12, 13, "photo_11.jpg"),
    ]
    assert dataset.manifest.licenses == {"CC-BY-4.0": 6, "CC0-1.0": 6}
    assert load_latest_manifest(location_of(begun)) == (dataset.manifest, 2)


@pytest.mark.usefixtures("weights")
def test_a_grown_dataset_stays_the_same_and_grows_again(tmp_path: Path, begun: Path) -> None:
    grown(tmp_path, LATER)
    before = digests(begun)
    for grow in (False, True):
        open_or_create(configured(tmp_path, LATER), Storage(), grow=grow)
        open_or_create(configured(tmp_path, LATER[::-1]), Storage(), grow=grow)
    assert digests(begun) == before
    dataset = grown(tmp_path, [row(12), *LATER])
    assert [part.first_shard for part in dataset.manifest.catalog] == [0, 3, 5]
    assert read_shards(dataset, 5).column("uri").to_pylist() == ["photo_12.jpg"]
    assert load_latest_manifest(location_of(begun)).generation == 3


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (LATER[:5], "5 of 8 rows are gone; the first has the image_id 'photo_0.jpg'"),
        (
            [row(0, license="CC0-1.0"), *FIRST[1:], row(8)],
            "1 of 8 rows have another license; the first has the image_id 'photo_0.jpg': 'CC-BY-4.0' before",
        ),
        (
            [*FIRST[:5], *(row(index, attribution="Zoë") for index in (5, 6, 7))],
            "3 of 8 rows have another attribution; the first has the image_id 'photo_5.jpg': '' before, 'Zoë' now",
        ),
    ],
)
def test_pinned_rows_must_stay_as_they_were(tmp_path: Path, begun: Path, rows: list[dict[str, Any]], says: str) -> None:
    before = digests(begun)
    for grow in (False, True):
        with pytest.raises(UsageError) as caught:
            open_or_create(configured(tmp_path, rows), Storage(), grow=grow)
        assert says in str(caught.value)
        assert ("`segmint amend" in str(caught.value)) == ("attribution" in says)
    assert digests(begun) == before


class InterruptedBuild(Storage):
    """Real storage that does something once, before a put whose name has this ending."""

    def __init__(self, ending: str, act: Callable[[], object]) -> None:
        super().__init__()
        self._ending, self._act = ending, act

    def put_if_absent(self, uri: str, data: bytes) -> bool:
        self._interrupt(uri)
        return super().put_if_absent(uri, data)

    def put_file(self, uri: str, path: Path) -> None:
        self._interrupt(uri)
        super().put_file(uri, path)

    def _interrupt(self, uri: str) -> None:
        if uri.endswith(self._ending):
            act, self._act = self._act, lambda: None
            act()


@pytest.mark.usefixtures("weights")
def test_a_crash_before_the_manifest_leaves_nothing_visible(tmp_path: Path, begun: Path) -> None:
    def crash() -> None:
        raise StorageFaultError("the power is gone")

    with pytest.raises(StorageFaultError):
        grown(tmp_path, LATER, InterruptedBuild("dataset.g2.json", crash))
    assert len(list((begun / "catalog").iterdir())) == 2
    assert len(open_or_create(configured(tmp_path, FIRST), Storage()).manifest.catalog) == 1
    left = digests(begun)
    (reservation,) = [path for path in left if path.startswith("reservations/")]
    del left[reservation]
    grown(tmp_path, LATER)
    after = digests(begun)
    assert set(after) - set(left) == {"dataset.g2.json"}
    assert {path: digest for path, digest in after.items() if path in left} == left


@pytest.mark.usefixtures("weights")
def test_a_sweep_spares_the_part_that_a_growing_build_has_reserved(tmp_path: Path, begun: Path) -> None:
    def sweep_now() -> list[str]:
        return sweep(location_of(begun), timedelta(0), datetime.now(UTC) + timedelta(hours=1))

    def crash() -> None:
        assert sweep_now() == []
        raise StorageFaultError("the power is gone")

    with pytest.raises(StorageFaultError):
        grown(tmp_path, LATER, InterruptedBuild("dataset.g2.json", crash))
    (reserved,) = {path for path in digests(begun) if path.startswith("catalog/part-1-")}
    assert sweep_now() == []
    grown(tmp_path, LATER[::-1], name="reversed")  # its manifest is the generation that was reserved
    assert not list((begun / "reservations").iterdir())
    assert sweep_now() == [reserved]


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize("ending", [".parquet", "dataset.g2.json"])
def test_a_build_that_loses_goes_on_with_the_same_catalog(tmp_path: Path, begun: Path, ending: str) -> None:
    """Also where the winner's file has other bytes: the same rows in another order."""
    dataset = grown(tmp_path, LATER, InterruptedBuild(ending, lambda: grown(tmp_path, LATER[::-1], name="reversed")))
    assert load_latest_manifest(location_of(begun)) == (dataset.manifest, 2)
    uris = read_shards(dataset, 3, 4).column("uri").to_pylist()
    assert uris == ["photo_11.jpg", "photo_10.jpg", "photo_9.jpg", "photo_8.jpg"]


@pytest.mark.usefixtures("weights")
def test_a_build_that_loses_to_another_catalog_is_refused(tmp_path: Path, begun: Path) -> None:
    other = [*FIRST, row(20)]
    storage = InterruptedBuild("dataset.g2.json", lambda: grown(tmp_path, other, name="other"))
    with pytest.raises(UsageError, match=r"another build has grown (?s:.*)1 of 9 rows are gone"):
        grown(tmp_path, LATER, storage)
    dataset = open_or_create(configured(tmp_path, other), Storage())
    assert read_shards(dataset, 3).column("uri").to_pylist() == ["photo_20.jpg"]


@pytest.mark.usefixtures("weights")
def test_many_that_grow_at_once_agree(tmp_path: Path, begun: Path) -> None:
    config = configured(tmp_path, LATER)
    with ThreadPoolExecutor(4) as pool:
        datasets = list(pool.map(lambda _: open_or_create(config, Storage(), grow=True), range(4)))
    assert len({dataset.manifest.to_json() for dataset in datasets}) == 1
    assert load_latest_manifest(location_of(begun)) == (datasets[0].manifest, 2)


@pytest.mark.usefixtures("weights")
def test_a_first_build_may_be_asked_to_grow(tmp_path: Path) -> None:
    dataset = grown(tmp_path, FIRST)
    assert [part.path for part in dataset.manifest.catalog] == [
        part_path(0, part.sha256) for part in dataset.manifest.catalog
    ]


@pytest.mark.usefixtures("weights")
def test_a_correction_of_the_catalog_meanwhile_does_not_keep_it_from_growing(tmp_path: Path, begun: Path) -> None:
    """A takedown also puts a generation of the manifest, with as many parts as before."""
    asked = TakedownRequest(ids=("photo_2.jpg",))
    correct = partial(takedown, location_of(begun), asked, "a request")
    dataset = grown(tmp_path, LATER, InterruptedBuild("dataset.g2.json", correct))
    assert load_latest_manifest(location_of(begun)) == (dataset.manifest, 3)
    assert [part.rows for part in dataset.manifest.catalog] == [8, 4]
    assert read_shards(dataset, 3).column("uri").to_pylist() == ["photo_8.jpg", "photo_9.jpg", "photo_10.jpg"]
    assert dataset.manifest.licenses == {"CC-BY-4.0": 5, "CC0-1.0": 6, "taken_down": 1}


@pytest.mark.usefixtures("weights")
def test_after_an_amendment_the_advice_is_to_write_its_values_or_to_take_the_catalog_s(
    tmp_path: Path, begun: Path
) -> None:
    """Either ends: the next build goes on."""
    corrected = [row(0, attribution="Ann"), *FIRST[1:]]

    def amended(rows: list[dict[str, Any]], **options: bool) -> None:
        amend(location_of(begun), location_of(write_catalog(tmp_path / "corrected.jsonl", rows)), **options)

    amended(corrected)
    with pytest.raises(UsageError) as caught:
        grown(tmp_path, [row(0, attribution=" "), *FIRST[1:], row(8)])
    assert "If the dataset's values are right, for example after an amendment, copy them to the catalog" in str(
        caught.value
    )
    assert "(pass --clear to also remove values" in str(caught.value)
    assert len(grown(tmp_path, [*corrected, row(8)]).manifest.catalog) == 2
    amended([row(0, attribution=" ")], clear=True)
    assert len(grown(tmp_path, [row(0, attribution=" "), *FIRST[1:], row(8), row(9)]).manifest.catalog) == 3
