import errno
import os
import stat
from pathlib import Path

import pytest

from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import ShortBodyError
from segmint.infra.storage.stores import (
    TEMPORARY_PREFIX,
    LocalStore,
    ObjectInfo,
    ObjectVersion,
    open_file,
    target_of,
)


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
        with pytest.raises(UsageError, match="it or a parent is a file"):
            LocalStore().create(str(path), b"1")


def test_a_failed_write_leaves_no_temporary_file(tmp_path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError):
        LocalStore().put(str(tmp_path / "taken"), b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize(("name", "told"), [("sa_000001-0.tar", "sa_000001-0.tar"), ("ä" * 127, "")])
def test_a_temporary_file_names_its_target_unless_the_name_is_too_long(tmp_path, monkeypatch, name, told) -> None:
    left = []

    def died(temporary: Path, target: Path) -> None:
        left.append(temporary.name)
        assert temporary.read_bytes() == b"1"

    monkeypatch.setattr("segmint.infra.storage.stores.Path.replace", died)
    LocalStore().put(str(tmp_path / name), b"1")
    assert [target_of(each) for each in left] == [told]
    assert left[0].startswith(TEMPORARY_PREFIX)
    assert "." not in left[0].removeprefix(TEMPORARY_PREFIX + told)  # what reads `*.tar` doesn't read it


def test_without_hard_links_a_file_is_put_once_and_bytes_are_refused(tmp_path, monkeypatch) -> None:
    def no_links(*of: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    def disk_full(*of: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("segmint.infra.storage.stores.os.link", no_links)
    (tmp_path / "mine").write_bytes(b"mine")
    with pytest.MonkeyPatch.context() as full:
        full.setattr("segmint.infra.storage.stores.Path.replace", disk_full)
        with pytest.raises(OSError, match="No space left"):
            LocalStore().create_file(str(tmp_path / "a"), tmp_path / "mine")
        assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    LocalStore().create_file(str(tmp_path / "a"), tmp_path / "mine")
    (tmp_path / "other").write_bytes(b"other")
    with pytest.raises(FileExistsError):
        LocalStore().create_file(str(tmp_path / "a"), tmp_path / "other")
    assert (tmp_path / "a").read_bytes() == b"mine"
    with pytest.raises(UsageError, match="has no hard links"):
        LocalStore().create(str(tmp_path / "b"), b"1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "mine", "other"]


def test_local_listing_is_in_the_order_of_whole_names(tmp_path) -> None:
    for name in ("a-b", "a/x", "a.b", "a/é", "b"):
        LocalStore().put(str(tmp_path / name), b"1")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    names = [entry.name for entry in LocalStore().walk(str(tmp_path), recursive=True)]
    assert names == sorted(["a-b", "a/x", "a.b", "a/é", "b"])
    assert isinstance(next(LocalStore().walk(str(tmp_path), recursive=True)), ObjectInfo)


def test_what_is_no_file_is_not_read(tmp_path) -> None:
    """A pipe would be waited for, and a device read, for ever."""
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    store = LocalStore()
    for path in (tmp_path / "pipe.jpg", tmp_path / "zero.jpg", Path("/dev/zero")):
        for read in (
            lambda uri: store.read(uri, None),
            lambda uri: store.read_range(uri, 0, 10, ObjectVersion()),
            store.version,
            open_file,
        ):
            with pytest.raises(FileNotFoundError):
                read(str(path))
    assert list(store.walk(str(tmp_path), recursive=True)) == []


def test_a_file_that_hides_its_size_gives_no_more_than_it_says() -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc, whose files say that they are empty")
    with pytest.raises(ShortBodyError, match="received 1 bytes instead of 0"):
        LocalStore().read("/proc/self/status", 1000)


def test_a_catalogs_link_is_followed_and_a_folders_is_not(tmp_path) -> None:
    """Who may write beside a local catalog may name any file in it anyway; see SECURITY.md."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x.jpg").write_bytes(b"1")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "file.jpg").symlink_to(tmp_path / "outside" / "x.jpg")
    (tmp_path / "photos" / "folder").symlink_to(tmp_path / "outside")
    names = [entry.name for entry in LocalStore().walk(str(tmp_path / "photos"), recursive=True)]
    assert names == ["file.jpg"]
