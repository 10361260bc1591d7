"""What training keeps of a dataset's images is deleted where it is known, and nothing else is."""

import shutil
from pathlib import Path

import pytest

from segmint.catalogs.dataset.manifest import dataset_keys, put_dataset_id
from segmint.catalogs.dataset.outputs import EMBEDDINGS, SCANS, forget_dataset
from tests.support.locations import location_of

NPY = f"{'5' * 64}.npy"
UNKNOWN_ID = "not checked: caches of this machine: id.json was missing or damaged"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This machine's own cache of training."""
    monkeypatch.setenv("SEGMINT_CACHE", str(tmp_path / "own"))
    return tmp_path / "own" / "train"


@pytest.fixture
def moved(ended, tmp_path: Path) -> Path:
    """The folder of a dataset that was trained on, with the cache that it notes beside it."""
    folder = tmp_path / "moved"
    shutil.copytree(ended.output.parent, folder, ignore=shutil.ignore_patterns("run"))
    before, now = (dataset_keys(location_of(each))[0] for each in (ended.dataset, folder / "dataset"))
    for kind in (EMBEDDINGS, SCANS):
        (folder / "cache" / kind / before).rename(folder / "cache" / kind / now)
    return folder


def test_caches_that_are_noted_and_this_machines_own_lose_what_they_have_of_the_dataset(moved: Path, own: Path) -> None:
    key = dataset_keys(location_of(moved / "dataset"))[0]
    cache = moved / "cache"
    for folder in (own / EMBEDDINGS / key / "w", cache / EMBEDDINGS / ("0" * 12) / "w"):
        folder.mkdir(parents=True)
        (folder / NPY).write_bytes(b"an embedding")
    assert len(list((cache / EMBEDDINGS / key).rglob("*.npy"))) == 3
    assert sorted(forget_dataset(location_of(moved / "dataset"))) == [
        "../cache: 4 files of embeddings and thumbnails deleted",  # three images, one shard
        UNKNOWN_ID,
        "this machine's training cache: 1 file of embeddings and thumbnails deleted",
    ]
    assert [path.parent.parent.name for path in cache.rglob("*.np*")] == ["0" * 12]
    assert not list(own.rglob("*.npy"))
    assert int((cache / "embeddings.used").read_text()) == len(b"an embedding")
    assert forget_dataset(location_of(moved / "dataset")) == []


def test_a_note_leads_to_no_other_files(moved: Path, own: Path) -> None:
    """Only files with a cache's names go, and links are not followed."""
    cache, key = moved / "cache", dataset_keys(location_of(moved / "dataset"))[0]
    elsewhere = moved / "elsewhere" / "w"
    others = [cache / EMBEDDINGS / key / "w" / "thesis.npy", cache / SCANS / key / "photo.jpg", elsewhere / NPY]
    for path in others:
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text("mine")
    (own / EMBEDDINGS).mkdir(parents=True)
    (own / EMBEDDINGS / key).symlink_to(moved / "elsewhere")
    noted = "../cache: 4 files of embeddings and thumbnails deleted"
    assert forget_dataset(location_of(moved / "dataset")) == [UNKNOWN_ID, noted]
    assert all(path.read_text() == "mine" for path in others)


def test_a_cache_that_cannot_be_deleted_is_named(moved: Path, own: Path) -> None:
    key = dataset_keys(location_of(moved / "dataset"))[0]
    (moved / "cache" / "embeddings.used").unlink()
    (moved / "cache" / "embeddings.used").mkdir()
    _, line = forget_dataset(location_of(moved / "dataset"))
    assert line.startswith("../cache: some embeddings and thumbnails could not be deleted; delete them yourself: ")
    assert not list((moved / "cache" / EMBEDDINGS / key).rglob("*.npy"))


@pytest.mark.parametrize("has_id", [True, False])
def test_another_spelling_of_the_path_finds_the_same_files(moved: Path, own: Path, has_id: bool) -> None:
    """`..` and links are spellings, in the takedown or in what was read before; a new id doesn't hide older files."""
    (moved / "x").mkdir()
    (moved / "far" / "off").mkdir(parents=True)
    (moved / "far" / "off" / "link").symlink_to(moved / "dataset")
    if has_id:
        put_dataset_id(location_of(moved / "dataset"))
    spellings = ["dataset", "x/../dataset", "far/off/link"]
    noted = ["../cache: 4 files of embeddings and thumbnails deleted"]
    unknown = [] if has_id else [UNKNOWN_ID]
    for spelling, taken in zip(spellings, reversed(spellings), strict=True):
        folder = own / EMBEDDINGS / dataset_keys(location_of(moved / spelling))[0] / "w"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / NPY).write_bytes(b"an embedding")
        assert sorted(forget_dataset(location_of(moved / taken))) == [
            *noted,
            *unknown,
            "this machine's training cache: 1 file of embeddings and thumbnails deleted",
        ]
        noted, unknown = [], []
