"""The benchmark of the finder of copies: planted copies are found in each of its parts."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.datasets.duplicates import (
    compare_with_brute_force,
    kept_result,
    measure_crowd,
    measure_frames,
    measure_rows,
)
from benchmarks.datasets.duplicates_photographs import (
    CHANGES,
    GRID,
    Group,
    compare_group,
    halves,
    hashed_group,
    search,
    set_thresholds,
)
from segmint.operators.similar.clusters import ImageRows
from segmint.operators.similar.near import Thresholds
from tests.support.photographs import photograph


def test_what_is_changed_is_found_and_counted_by_change() -> None:
    photographs = {name: Image.fromarray(photograph(name)) for name in ("astronaut", "chelsea")}
    found = compare_group(photographs, hashed_group(photographs))
    assert found["pictures"] == 2  # each has one tile at most, which is no further picture
    assert {name: each["found"] for name, each in found["changes"].items()} == {
        name: 0.0 if name == "caption of 10% added below" else 1.0 for name in CHANGES
    }
    assert found["found"] == 2 * len(CHANGES) - 2
    pairs = 2 * len(CHANGES) + 2
    assert found["different"]["pairs"] == (pairs // 2) ** 2
    assert found["different"]["near"] == found["different"]["copies"] == 0


def test_halves_are_split_by_the_names_alone() -> None:
    photographs = {name: Image.new("RGB", (1, 1)) for name in ("truck", "dog", "coins", "moon", "page")}
    first, second = halves(photographs)
    assert (set(first), set(second)) == tuple(map(set, halves(dict(reversed(photographs.items())))))
    assert (len(first), len(second)) == (3, 2)
    assert first | second == photographs


def test_the_thresholds_set_are_the_highest_of_the_best_that_confuse_nothing() -> None:
    # rows 0 and 1 are a picture and its noisy copy, 2 is another picture, which is row 0 with more noise
    random = np.random.default_rng(0)
    picture = np.asarray(Image.fromarray(photograph("chelsea")).convert("L").resize((64, 64)), np.float64)
    noise = random.normal(0, 1, (2, 16, 16)).repeat(4, axis=1).repeat(4, axis=2) * np.array([15, 40])[:, None, None]
    thumbnails = np.clip(np.concatenate([picture[None], picture + noise]), 0, 255).astype(np.uint8)
    hashes = np.zeros((3, 6), np.uint64)
    hashes[:, 0] = 1
    no = np.zeros(3, bool)
    rows = ImageRows(np.zeros((3, 2), np.uint64), hashes, np.array([2, 1, 1]), ~no, no)
    group = Group(rows, thumbnails, np.array([0, 0, 1]), 2)
    chosen = set_thresholds(group)
    assert chosen.whole in GRID
    assert chosen.middle in GRID
    right, wrong = search(group, chosen)
    assert (right.tolist(), wrong.any()) == ([False, True, False], False)
    for higher in (Thresholds(chosen.whole + 0.05, chosen.middle), Thresholds(chosen.whole, chosen.middle + 0.05)):
        assert not search(group, higher)[0].any()
    assert search(group, Thresholds(GRID[0], GRID[0]))[1].any()
    with pytest.raises(SystemExit, match="there are none to set"):
        set_thresholds(group._replace(thumbnails=thumbnails[[0, 0, 0]]))


def test_a_result_is_kept_only_if_its_settings_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "duplicates.json"
    with pytest.raises(SystemExit, match="does not exist: there is no result to keep parts of"):
        kept_result(path, {"distance": 3})
    path.write_text(json.dumps({"settings": {"distance": 3, "rows": 5}, "rows": {}}))
    assert kept_result(path, {"distance": 3}) == {"settings": {"distance": 3, "rows": 5}, "rows": {}}
    with pytest.raises(SystemExit, match="was measured with another distance"):
        kept_result(path, {"distance": 4})


def test_planted_hashes_and_rows_are_found() -> None:
    exact = compare_with_brute_force(3_000)
    assert exact["agree"]
    assert exact["pairs"] > 50
    rows = measure_rows(3_000)
    assert rows["planted"] == {"near": 150, "same": 60}
    assert (rows["found"], rows["others"], rows["exact"]) == (210, 0, 60)


def test_a_crowd_is_one_picture_or_as_many_as_rows() -> None:
    assert measure_crowd(300, True)["copies"] == 299
    assert measure_crowd(300, False)["copies"] == 0


def test_frames_of_a_picture_are_near_one_another() -> None:
    assert 0 < measure_frames(1000)["copies"] < 900
