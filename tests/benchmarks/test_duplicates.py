"""The benchmark of the finder of copies: planted copies are found in each of its parts."""

from PIL import Image

from benchmarks.duplicates import CHANGES, compare_group, compare_with_brute_force, measure_crowd, measure_rows
from tests.support.photographs import photograph


def test_what_is_changed_is_found_and_counted_by_change() -> None:
    photographs = {name: Image.fromarray(photograph(name)) for name in ("astronaut", "chelsea")}
    found = compare_group(photographs)
    assert found["pictures"] == 2  # each has one tile at most, which is no further picture
    assert {name: each["found"] for name, each in found["changes"].items()} == {
        name: 0.0 if name == "caption of 10 % added below" else 1.0 for name in CHANGES
    }
    pairs = 2 * len(CHANGES) + 2
    assert found["different"]["pairs"] == (pairs // 2) ** 2
    assert found["different"]["near"] == found["different"]["copies"] == 0


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
