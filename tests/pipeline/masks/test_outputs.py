"""Where masks go, and what would be overwritten."""

import pytest

from segmint.infra.errors import UsageError
from segmint.pipeline.masks.images import Photograph, Photographs
from segmint.pipeline.masks.outputs import image_id, plan_outputs


def one(name: str) -> Photographs:
    return Photographs((Photograph(name, name.rpartition("/")[2]),), is_one=True)


def several(*places: str, root: str = "a") -> Photographs:
    return Photographs(tuple(Photograph(f"{root}/{place}", place) for place in places), is_one=False)


def targets(photographs: Photographs, output: str) -> list[str]:
    return [task.target for task in plan_outputs(photographs, output).tasks]


def test_one_photograph_goes_to_a_file_or_a_folder(tmp_path):
    assert targets(one("a/x.jpg"), "out.json") == ["out.json"]
    assert plan_outputs(one("a/x.jpg"), "out.json").folder is None
    assert targets(one("a/x.jpg"), "out") == targets(one("a/x.jpg"), "out/") == ["out/x.json"]
    (tmp_path / "odd.json").mkdir()
    assert targets(one("a/x.jpg"), str(tmp_path / "odd.json")) == [f"{tmp_path}/odd.json/x.json"]


def test_several_keep_their_tree_and_their_endings_where_names_meet():
    assert targets(several("x.jpg", "deep/x.jpg", "deep/y.v2.png"), "s3://out/p") == [
        "s3://out/p/x.json",
        "s3://out/p/deep/x.json",
        "s3://out/p/deep/y.v2.json",
    ]
    assert targets(several("x.jpg", "x.png", "y.png"), "out/") == ["out/x.jpg.json", "out/x.png.json", "out/y.json"]
    (task,) = plan_outputs(several("deep/x.jpg"), "out").tasks
    assert task.overlay == "out/deep/x.overlay.png"


def test_numbers_depend_on_the_place_alone_and_leave_room_for_masks():
    first = plan_outputs(several("x.jpg", "y.jpg"), "out").tasks[1]
    grown = plan_outputs(several("a.jpg", "x.jpg", "y.jpg"), "other").tasks[2]
    assert first.image_id == grown.image_id == image_id("y.jpg") != image_id("x.jpg")
    assert all(0 < image_id(f"{number}.jpg") * 10_000 + 9_999 < 2**53 for number in range(1000))
    assert plan_outputs(one("x.jpg"), "x.json").tasks[0].image_id == 1


def test_outputs_that_collide_or_are_no_json_are_refused(tmp_path):
    image = tmp_path / "x.jpg"
    image.write_bytes(b"")
    twice = Photographs((Photograph("a/x.jpg", "x.jpg"), Photograph("b/x.jpg", "x.jpg")), is_one=False)
    with pytest.raises(UsageError, match=r"both be written to out/x\.jpg\.json"):
        plan_outputs(twice, "out")
    with pytest.raises(UsageError, match=r"both be written to out/x\.jpg\.json"):
        plan_outputs(several("x.jpg", "x.png", "x.jpg.tif"), "out")
    for ending in (".png", ".JPG"):
        with pytest.raises(UsageError, match="masks are written as JSON"):
            plan_outputs(one("a/y.jpg"), f"x{ending}")
    with pytest.raises(UsageError, match="is one file: expected a folder, for 2"):
        plan_outputs(several("x.jpg", "y.jpg"), "out.json")
    (tmp_path / "taken").write_bytes(b"")
    with pytest.raises(UsageError, match="is a file"):
        plan_outputs(several("x.jpg", "y.jpg"), str(tmp_path / "taken"))


def test_no_photograph_is_written_over(tmp_path):
    named = tmp_path / "x.json"  # a photograph, whatever its name is
    with pytest.raises(UsageError, match="over the photograph"):
        plan_outputs(one(str(named)), str(tmp_path / "." / "x.json"))
    drawn = Photographs((Photograph("a/x.jpg", "x.jpg"), Photograph("a/x.overlay.png", "y.png")), is_one=False)
    with pytest.raises(UsageError, match="over the photograph"):
        plan_outputs(drawn, "a")
