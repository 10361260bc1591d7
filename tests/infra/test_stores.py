import os
import stat

import pytest

from infra.errors import UsageError
from infra.stores import LocalStore, ObjectInfo


def test_local_files_have_the_usual_mode_and_leave_nothing_behind(tmp_path) -> None:
    store = LocalStore()
    old = os.umask(0o027)
    try:
        store.create(str(tmp_path / "deep" / "er" / "a"), b"1")
        store.put(str(tmp_path / "deep" / "er" / "b"), b"2")
    finally:
        os.umask(old)
    folder = tmp_path / "deep" / "er"
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o640}


def test_a_file_where_a_folder_should_be_is_named(tmp_path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file" / "x", tmp_path / "file" / "y" / "x"):
        with pytest.raises(UsageError, match="a file stands there"):
            LocalStore().create(str(path), b"1")


def test_a_failed_write_leaves_no_temporary_file(tmp_path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError):
        LocalStore().put(str(tmp_path / "taken"), b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_local_listing_is_in_the_order_of_whole_names(tmp_path) -> None:
    for name in ("a-b", "a/x", "a.b", "a/é", "b"):
        LocalStore().put(str(tmp_path / name), b"1")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    names = [entry.name for entry in LocalStore().walk(str(tmp_path), recursive=True)]
    assert names == sorted(["a-b", "a/x", "a.b", "a/é", "b"])
    assert isinstance(next(LocalStore().walk(str(tmp_path), recursive=True)), ObjectInfo)
