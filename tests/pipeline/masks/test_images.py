"""Which photographs the arguments name."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import StorageFaultError
from segmint.infra.storage.storage import Storage
from segmint.pipeline.masks.images import find_photographs

TREE = ("b.jpg", "a.PNG", "notes.txt", "a.overlay.png", ".hidden.jpg", "deep/c.tif", "deep/er/d.heic", ".cache/e.jpg",
        "__MACOSX/f.jpg")  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in TREE:
        path = tmp_path / ".photos" / name  # a folder above that is hidden does not matter
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return ".photos"


def places(*arguments: str, recursive: bool = False) -> list[str]:
    return [image.place for image in find_photographs(Storage(), arguments, recursive=recursive).images]


def test_a_folder_stands_for_its_photographs_by_name(folder):
    assert places(folder) == ["a.PNG", "b.jpg"]
    everything = ["a.PNG", "b.jpg", "deep/c.tif", "deep/er/d.heic"]
    assert places(f"{folder}/", recursive=True) == everything
    found = find_photographs(Storage(), [folder], recursive=True)
    assert [image.name for image in found.images] == [f"{folder}/{place}" for place in everything]
    assert not found.is_one


def test_a_pattern_keeps_the_tree_below_its_first_wildcard(folder):
    assert places(f"{folder}/*") == ["a.PNG", "b.jpg"]
    assert places(f"{folder}/**/*.tif") == ["deep/c.tif"]
    assert places(f"{folder}/deep/**") == ["c.tif", "er/d.heic"]
    assert places(f"{folder}/d*p/**/*.*") == ["deep/c.tif", "deep/er/d.heic"]
    assert places(f"{folder}/[ab].*") == ["a.PNG", "b.jpg"]


def test_files_come_in_their_order_and_once(folder):
    assert places(f"{folder}/b.jpg", f"{folder}/a.PNG", folder, f"./{folder}/b.jpg") == ["b.jpg", "a.PNG"]
    assert find_photographs(Storage(), [f"{folder}/b.jpg"], recursive=False).is_one
    assert not find_photographs(Storage(), [f"{folder}/b.jpg", "s3://b/c.jpg"], recursive=False).is_one


def test_a_file_may_be_named_like_a_pattern(tmp_path):
    (tmp_path / "odd[1].jpg").write_bytes(b"")
    assert places(str(tmp_path / "odd[1].jpg")) == ["odd[1].jpg"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["absent.jpg", "{}/b.jpg", "gone.png"], "no such file: absent.jpg, gone.png"),
        (["{}/deep/er/no*"], "no photograph matches"),
        (["{}/**x/*"], "is not a valid pattern"),
        (["{}/__MACOSX/none*"], "no photograph matches"),
        (["https://example.org/x.jpg"], "https:// "),
    ],
)
def test_what_is_not_there_is_named(folder, arguments, told):
    with pytest.raises(UsageError, match=re.escape(told)):
        places(*(argument.format(folder) for argument in arguments))


def test_a_folder_without_photographs_says_what_is_below(folder, tmp_path):
    (tmp_path / "top" / "sub").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"contains no photographs \(\.jpg.*\)$"):
        places("top", recursive=True)
    (tmp_path / "top" / "sub" / "x.jpg").write_bytes(b"")
    with pytest.raises(UsageError, match=r"its subfolders contain 1\. Pass --recursive"):
        places("top")


def test_a_name_that_cannot_be_used_stops_no_other(tmp_path):
    (tmp_path / "two\nlines.jpg").touch()
    for argument in (str(tmp_path), f"{tmp_path}/*.jpg"):
        with pytest.raises(UsageError, match=r"no photograph .*two\\nlines.jpg' holds a control character\. Rename"):
            places(argument)
    (tmp_path / "one.jpg").touch()
    for argument in (str(tmp_path), f"{tmp_path}/*.jpg"):
        found = find_photographs(Storage(), [argument], recursive=False)
        assert [image.place for image in found.images] == ["one.jpg"]
        (told,) = found.passed_over
        assert told.endswith(r"/two\nlines.jpg' holds a control character. Rename the photograph.")
    with pytest.raises(UsageError, match="holds a control character"):
        places(str(tmp_path / "two\nlines.jpg"))


def test_what_a_folder_holds_and_is_not_taken_is_told(folder, tmp_path):
    photographs = tmp_path / ".photos"
    (photographs / "link").symlink_to(tmp_path)
    (photographs / "deep" / "broken.jpg").symlink_to("nowhere")
    (photographs / "notes.lnk").symlink_to("nowhere")
    os.mkfifo(photographs / "pipe.png")
    assert find_photographs(Storage(), [folder], recursive=True).passed_over == (
        f"{folder}/link: a link to a folder; pass its path to include the contents",
        f"{folder}/pipe.png: a pipe or device",
        f"{folder}/deep/broken.jpg: a broken link",
    )
    assert find_photographs(Storage(), [folder], recursive=False).passed_over == (
        f"{folder}/pipe.png: a pipe or device",
        f"{folder} has photographs in subfolders (deep); pass --recursive to include them",
    )
    with pytest.raises(UsageError, match=r"pipe\.png: a pipe or device; expected a file"):
        places(f"{folder}/pipe.png")


@contextmanager
def as_somebody() -> Iterator[None]:
    """As somebody else than root, who may read everything."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("mode", [0o000, 0o444])
def test_a_folder_that_cannot_be_read_is_named_and_stops_no_other(mode):
    with tempfile.TemporaryDirectory() as name:  # in contrast to tmp_path, others than its owner may enter it
        top = Path(name).resolve()
        for path in (top / "a.jpg", top / "shut" / "b.jpg", top / "deep" / "c.jpg"):
            path.parent.mkdir(exist_ok=True)
            path.touch()
        top.chmod(0o755)
        (top / "shut").chmod(mode)
        told = (f"{top}/shut: the folder can't be read",)
        try:
            with as_somebody():
                found = find_photographs(Storage(), [name], recursive=True)
                assert ([image.place for image in found.images], found.unreadable) == (["a.jpg", "deep/c.jpg"], told)
                for pattern in ("**/*.jpg", "*/*.jpg"):
                    found = find_photographs(Storage(), [f"{top}/{pattern}"], recursive=False)
                    assert found.images[-1].place == "deep/c.jpg"
                    assert found.unreadable == told
                assert find_photographs(Storage(), [name], recursive=False).unreadable == ()  # not asked for
                for argument in (f"{top}/shut", f"{top}/shut/*", f"{top}/shut/b.jpg"):
                    with pytest.raises(StorageFaultError, match=r"no photographs found: .*shut: the folder can't be"):
                        find_photographs(Storage(), [argument], recursive=False)
        finally:
            (top / "shut").chmod(0o755)
