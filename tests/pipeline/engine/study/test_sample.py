"""A study's sample: spread over the strata, the same again, and pinned."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO

from segmint.catalogs.dataset.reader import Dataset
from segmint.infra.errors import UsageError
from segmint.pipeline.engine.study.sample import (
    ImageStratum,
    allocate,
    draw_stratified,
    mask_sha256,
    sample_study,
    stratum_of,
)
from tests.support.committed import write_dataset
from tests.support.imported import FIRST, import_coco, write_coco
from tests.support.killed_writes import KilledProcessError, dying_after
from tests.support.locations import location_of
from tests.support.protocol import two_shards

APART = (22, 5, 28, 30)


@pytest.fixture
def small(tmp_path: Path) -> str:
    """Images 1, 2, 4, 5, 7, 8 with two masks each."""
    uri = str(tmp_path / "small")
    write_dataset(location_of(uri), shards=3)
    return uri


@pytest.mark.parametrize(
    ("masks", "label"),
    [(1, "<=10"), (10, "<=10"), (11, "11-50"), (50, "11-50"), (51, "51-100"), (200, "101-200"), (201, ">200")],
)
def test_bins_are_the_papers(masks: int, label: str) -> None:
    assert stratum_of(masks, None) == ImageStratum(stratum_of(masks, "").bin, "")
    assert stratum_of(masks, "DE").masks == label


@given(sizes=st.lists(st.integers(1, 400), min_size=1, max_size=20), count=st.integers(1, 500), seed=st.integers(0, 99))
def test_each_stratum_gives_its_share_rounded_up_or_down(sizes: list[int], count: int, seed: int) -> None:
    population = {ImageStratum(index, ""): size for index, size in enumerate(sizes)}
    shares = allocate(population, count, seed)
    total = sum(sizes)
    assert sum(shares.values()) == min(count, total)
    for stratum, size in population.items():
        exact = min(count, total) * size / total
        assert abs(shares[stratum] - exact) < 1 + 1e-9
        assert shares[stratum] <= size


def test_small_strata_have_their_turn() -> None:
    population = {ImageStratum(index, ""): 1 for index in range(50)}
    drawn = Counter(stratum for seed in range(400) for stratum, n in allocate(population, 10, seed).items() if n)
    assert set(drawn) == set(population)
    assert all(40 < times < 130 for times in drawn.values())  # 80 on average


def test_images_are_drawn_evenly_within_a_stratum(small: str) -> None:
    dataset = Dataset.open(location_of(small))
    drawn = draw_stratified(dataset, 4, seed=0)
    assert drawn.population == {ImageStratum(0, ""): 6}
    assert len(drawn.ids) == len(set(drawn.ids)) == 4
    assert drawn.ids == draw_stratified(dataset, 4, seed=0).ids
    assert set.union(*(set(draw_stratified(dataset, 2, seed).ids) for seed in range(30))) == {1, 2, 4, 5, 7, 8}
    assert draw_stratified(dataset, 99, seed=1).ids == [1, 2, 4, 5, 7, 8]


def test_what_a_study_holds(small: str, tmp_path: Path) -> None:
    done = sample_study(location_of(small), 3, 0, location_of(tmp_path / "study"))
    assert (done.images, done.masks, done.population, done.strata, done.without_masks) == (3, 6, 6, 1, 0)
    manifest = json.loads((tmp_path / "study/manifest.json").read_text())
    assert manifest["strata"] == [{"masks": "<=10", "country": None, "images": 6, "drawn": 3}]
    assert (manifest["seed"], manifest["asked"], manifest["dataset"]["name"]) == (0, 3, "small")
    numbers = [image["id"] for image in manifest["images"]]
    assert {path.name for path in (tmp_path / "study/images").iterdir()} == {f"sa_{n}.jpg" for n in numbers}
    loaded = COCO(tmp_path / "study/instances.json")
    assert loaded.getImgIds() == numbers
    pins = {mask["id"]: mask["sha256"] for image in manifest["images"] for mask in image["masks"]}
    assert pins == {number: mask_sha256(each["segmentation"]) for number, each in loaded.anns.items()}
    tasks = json.loads((tmp_path / "study/tasks.json").read_text())
    assert [task["data"]["segmint_id"] for task in tasks] == numbers
    assert (tmp_path / "study/label_config.xml").is_file()


def test_it_is_the_same_again(small: str, tmp_path: Path) -> None:
    for name in ("one", "two"):
        sample_study(location_of(small), 3, 5, location_of(tmp_path / name))
    names = {path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()}
    assert len(names) == 8
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_killed_anywhere_it_has_no_manifest(small: str, tmp_path: Path) -> None:
    with dying_after(None) as budget:
        sample_study(location_of(small), 2, 0, location_of(tmp_path / "whole"))
    assert budget.spent == 10  # two are the dataset's notes of it, and two the list of its files
    for writes in range(budget.spent - 1):  # the list is begun once
        with pytest.raises(KilledProcessError), dying_after(writes):
            sample_study(location_of(small), 2, 0, location_of(tmp_path / "killed"))
        assert not (tmp_path / "killed/manifest.json").exists()
    sample_study(location_of(small), 2, 0, location_of(tmp_path / "killed"))
    with pytest.raises(UsageError, match="already exists"):
        sample_study(location_of(small), 2, 0, location_of(tmp_path / "killed"))


def test_what_cannot_be_corrected_is_refused(tmp_path: Path) -> None:
    write_dataset(location_of(tmp_path / "empty"), shards=0)
    with pytest.raises(UsageError, match="no committed images with automatic masks"):
        sample_study(location_of(tmp_path / "empty"), 2, 0, location_of(tmp_path / "empty-study"))
    write_dataset(location_of(tmp_path / "bare"), shards=1, with_images=False)
    with pytest.raises(UsageError, match="has only annotations"):
        sample_study(location_of(tmp_path / "bare"), 2, 0, location_of(tmp_path / "study"))


def test_masks_of_people_are_not_the_models(tmp_path: Path) -> None:
    """Of image 1 people changed one mask of two, of image 2 both, and of image 4 they deleted one."""
    with two_shards() as place:
        images = {1: [(FIRST, 10_000), (APART, None)], 2: [(APART, None)], 4: [(FIRST, 40_000)]}
        import_coco(place, write_coco(place, images))
        done = sample_study(place.location, 9, 0, location_of(tmp_path / "study"))
    assert (done.images, done.masks, done.masks_of_people, done.without_masks) == (3, 4, 1, 1)
    assert "not included: 1 annotated mask" in done.lines()
    manifest = json.loads((tmp_path / "study/manifest.json").read_text())
    ids = {image["id"]: [mask["id"] for mask in image["masks"]] for image in manifest["images"]}
    assert ids == {1: [10_000], 4: [40_000], 5: [50_000, 50_001]}
    assert set(COCO(tmp_path / "study/instances.json").anns) == {10_000, 40_000, 50_000, 50_001}
    tasks = json.loads((tmp_path / "study/tasks.json").read_text())
    assert [len(task["predictions"][0]["result"]) for task in tasks] == [1, 1, 2]
