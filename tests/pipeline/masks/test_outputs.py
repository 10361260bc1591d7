"""Where masks go, and what would be overwritten."""

import pytest

from segmint.infra.errors import UsageError
from segmint.infra.storage.storage import Storage
from segmint.pipeline.masks.images import Photograph, Photographs
from segmint.pipeline.masks.outputs import (
    Outputs,
    PhotographTask,
    check_writable,
    existing_files,
    image_id,
    plan_outputs,
    with_kept_files,
)


def one(name: str) -> Photographs:
    return Photographs((Photograph(name, name.rpartition("/")[2]),), is_one=True)


def several(*places: str, root: str = "a") -> Photographs:
    return Photographs(tuple(Photograph(f"{root}/{place}", place) for place in places), is_one=False)


def targets(photographs: Photographs, output: str | None) -> list[str]:
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
    assert targets(several("x.jpg", "x.png", "x.jpg.tif", "x.jpg.tif.gif"), "o") == [
        "o/x.jpg.json",
        "o/x.png.json",
        "o/x.jpg.tif.json",
        "o/x.jpg.tif.gif.json",
    ]
    (task,) = plan_outputs(several("deep/x.jpg"), "out").tasks
    assert task.overlay == "out/deep/x.overlay.png"


def test_numbers_depend_on_the_place_alone_and_leave_room_for_masks():
    first = plan_outputs(several("x.jpg", "y.jpg"), "out").tasks[1]
    grown = plan_outputs(several("a.jpg", "x.jpg", "y.jpg"), "other").tasks[2]
    assert first.image_id == grown.image_id == image_id("y.jpg") != image_id("x.jpg")
    assert all(0 < image_id(f"{number}.jpg") * 10_000 + 9_999 < 2**53 for number in range(1000))
    assert plan_outputs(one("x.jpg"), "x.json").tasks[0].image_id == 1


def test_equal_numbers_of_two_photographs_are_refused():
    equal = several("252204.jpg", "781093.jpg")
    with pytest.raises(UsageError, match=r"252204\.jpg and a/781093\.jpg have the same image_id 186332595867, "):
        plan_outputs(equal, "out")
    assert len(plan_outputs(equal, None).tasks) == 2  # next to photographs, only the file name counts


def test_only_the_outputs_in_a_folder_are_looked_at(tmp_path):
    """Not even the names of its other subfolders, one of which may be unreadable."""
    for name in ("x.json", "x.overlay.png", "other.json", "deep/x.json", "deep/y.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    outputs = plan_outputs(several("x.jpg", "y.jpg"), str(tmp_path))
    storage = Storage()
    storage.walk = storage.list = None
    assert existing_files(storage, outputs) == {f"{tmp_path}/x.json", f"{tmp_path}/x.overlay.png"}
    outputs = plan_outputs(several("deep/y.jpg"), f"file://{tmp_path}")
    assert existing_files(Storage(), outputs) == {f"file://{tmp_path}/deep/y.json"}


def test_outputs_that_collide_or_are_no_json_are_refused(tmp_path):
    image = tmp_path / "x.jpg"
    image.write_bytes(b"")
    twice = Photographs((Photograph("a/x.jpg", "x.jpg"), Photograph("b/x.jpg", "x.jpg")), is_one=False)
    with pytest.raises(UsageError, match=r"both be written to out/x\.jpg\.json"):
        plan_outputs(twice, "out")
    for ending in (".png", ".JPG"):
        with pytest.raises(UsageError, match="masks are written as JSON"):
            plan_outputs(one("a/y.jpg"), f"x{ending}")
    with pytest.raises(UsageError, match=r"is a single file: expected a folder, because the input is .* with 2"):
        plan_outputs(several("x.jpg", "y.jpg"), "out.json")
    (tmp_path / "taken").write_bytes(b"")
    with pytest.raises(UsageError, match="is a file"):
        plan_outputs(several("x.jpg", "y.jpg"), str(tmp_path / "taken"))


def test_no_photograph_is_written_over(tmp_path):
    named = tmp_path / "x.json"  # a photograph, whatever its name is
    with pytest.raises(UsageError, match="overwrite the photograph"):
        plan_outputs(one(str(named)), str(tmp_path / "." / "x.json"))
    drawn = Photographs((Photograph("a/x.jpg", "x.jpg"), Photograph("a/x.overlay.png", "y.png")), is_one=False)
    with pytest.raises(UsageError, match="overwrite the photograph"):
        plan_outputs(drawn, "a")


def test_a_photograph_keeps_its_file_when_one_of_a_similar_name_comes_or_goes():
    files = {
        "out/x.json": "x.jpg",
        "out/deep/y.jpg.json": "y.jpg",
        "out/z.json": "z.gif",
        "out/v.jpg.json": "v.jpg",
        "out/w.json": "w.jpg",
        "out/w.png.json": "w.png",
    }

    def kept(*places: str) -> list[str]:
        outputs = with_kept_files(plan_outputs(several(*places), "out"), files, files.__getitem__)
        return [task.target.removeprefix("out/") for task in outputs.tasks]

    assert kept("x.jpg", "x.png") == ["x.json", "x.png.json"]
    assert kept("deep/y.jpg") == ["deep/y.jpg.json"]
    assert kept("z.jpg", "z.png") == ["z.jpg.json", "z.png.json"]  # z.json is of another one
    assert kept("v.jpg", "v.jpg.tif") == ["v.json", "v.jpg.json"]
    assert kept("x.jpg") == ["x.json"]
    assert kept("w.png") == ["w.png.json"]  # w.jpg is deleted
    assert kept("w.jpg") == ["w.json"]


def test_every_photograph_has_its_own_folder_of_cutouts(tmp_path):
    names = ("x.jpg", "x.masks.jpg", "x.masks.png", "x.png", "y.masks.jpg", "y.jpg")
    for output in ("out", None):
        folders = [task.cutouts for task in plan_outputs(several(*names), output).tasks]
        assert len(set(folders)) == len(names)
        assert all(folder.endswith(".cutouts") for folder in folders)
    (task,) = plan_outputs(one("a/x.jpg"), "x.masks.json").tasks
    assert task.cutouts == "x.cutouts"


def test_a_name_that_no_folder_holds_is_told_in_bytes():
    task = PhotographTask(Photograph("a.jpg", "a.jpg"), f"out/{'ü' * 124}.json", 1)
    assert task.too_long(overlay=False) is None
    told = "the output's name would have 260 bytes, but the limit is 255. Rename the photograph."
    assert task.too_long(overlay=True) == told
    cut = PhotographTask(task.image, f"out/{'x' * 250}.json", 1)
    assert cut.too_long(overlay=False) is None
    assert cut.too_long(overlay=False, cutouts=True) == told.replace("260", "258")
    assert PhotographTask(task.image, f"s3://b/{'x' * 300}.json", 1).too_long(overlay=True) is None


def test_a_folder_that_cannot_be_made_is_refused_first(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    check_writable(plan_outputs(one("x.jpg"), str(tmp_path / "new" / "x.json")))
    check_writable(plan_outputs(one("x.jpg"), "s3://bucket/x"))
    for output in ("file/x.json", "file/deep/"):
        with pytest.raises(UsageError, match=r"can't create the folder .*, because .*file is a file"):
            check_writable(plan_outputs(one("x.jpg"), str(tmp_path / output)))
    with pytest.raises(UsageError, match=r"can't create the folder .*, because .*file is a file"):
        check_writable(Outputs((), str(tmp_path / "file")))


def test_without_an_output_masks_go_next_to_each_photograph(tmp_path):
    (task,) = plan_outputs(one("a/x.v2.jpg"), None).tasks
    assert (task.target, task.overlay) == ("a/x.v2.masks.json", "a/x.v2.masks.png")
    assert targets(one("x.jpg"), None) == ["x.masks.json"]
    mixed = several("x.jpg", "x.png", "deep/x.jpg")
    assert targets(mixed, None) == ["a/x.jpg.masks.json", "a/x.png.masks.json", "a/deep/x.masks.json"]
    # The same file whichever way the photograph is named.
    assert plan_outputs(several("deep/x.jpg"), None).tasks[0].image_id == image_id("x.jpg")
    assert plan_outputs(one(f"file://{tmp_path}/x.jpg"), None).tasks[0].target == f"{tmp_path}/x.masks.json"
    with pytest.raises(UsageError, match=r"s3://b/x\.jpg is in a store, .* with -o"):
        plan_outputs(Photographs((*one("y.jpg").images, *one("s3://b/x.jpg").images), is_one=False), None)
    with pytest.raises(UsageError, match=r"overwrite the photograph a/x\.masks\.png"):
        plan_outputs(several("x.jpg", "x.masks.png"), None)


def test_next_to_a_photograph_only_the_files_of_masks_are_looked_at(tmp_path):
    for name in ("x.jpg", "x.png", "x.masks.json", "x.json", "x.overlay.png", "x.jpg.masks.png"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "x.masks.png").symlink_to(tmp_path / "absent")
    outputs = plan_outputs(one(str(tmp_path / "x.jpg")), None)
    there = {f"{tmp_path}/{name}" for name in ("x.masks.json", "x.masks.png", "x.jpg.masks.png")}
    assert existing_files(Storage(), outputs) == there
    both = plan_outputs(several("x.jpg", "x.png", root=str(tmp_path)), None)
    kept = with_kept_files(both, existing_files(Storage(), both), lambda file: "x.png")
    assert [task.target for task in kept.tasks] == [f"{tmp_path}/x.jpg.masks.json", f"{tmp_path}/x.masks.json"]
