"""The private folder of a local Ray, and folders that killed processes left."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from segmint.infra import ray_session
from segmint.infra.ray_session import PREFIX, private_folder
from segmint.infra.scratch import sweep

OLD = time.time() - 3600


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's folder for temporary files."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(ray_session, "LONGEST_PARENT", 1000)
    return tmp_path


def test_nobody_else_may_enter_and_nothing_is_left(parent: Path) -> None:
    before = os.umask(0)
    try:
        with private_folder() as folder:
            assert folder is not None
            assert folder.parent.parent == parent
            assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
            folder.chmod(0o777)  # as Ray does
            (folder / "session").mkdir()
            (folder / "session" / "log").write_text("x")
    finally:
        os.umask(before)
    assert list(parent.iterdir()) == []


def test_a_long_path_is_not_used_since_sockets_have_short_ones(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_session, "LONGEST_PARENT", 18)
    with private_folder() as folder:
        assert folder is not None
        assert folder.parent.parent == Path("/tmp")


def test_a_folder_that_the_user_names_is_left_to_ray(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(parent / "mine"))
    with private_folder() as folder:
        assert folder is None
    assert list(parent.iterdir()) == []


HOLDER = """
import sys, tempfile
from segmint.infra import ray_session
tempfile.tempdir, ray_session.LONGEST_PARENT = sys.argv[1], 1000
with ray_session.private_folder() as folder:
    print(folder.parent, flush=True)
    sys.stdin.read()
"""


def test_a_killed_process_s_folder_is_deleted_by_the_next_and_a_living_one_s_is_not(parent: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(parent)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as killed, subprocess.Popen(command, **pipes) as living:  # type: ignore[call-overload]
        left, kept = (Path(process.stdout.readline().strip()) for process in (killed, living))
        (left / "session").mkdir()
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        for folder in (left, kept):
            os.utime(folder, (OLD, OLD))
        young = parent / f"{PREFIX}young"
        young.mkdir()
        with private_folder():
            assert not left.exists()
            assert kept.exists()
            assert young.exists()
        living.communicate("")
    assert not kept.exists()


def test_a_link_is_not_followed(parent: Path) -> None:
    other = parent / "other"
    other.mkdir()
    (other / "file").write_text("x")
    os.utime(other, (OLD, OLD))
    (parent / f"{PREFIX}link").symlink_to(other)
    (parent / f"{PREFIX}file").write_text("x")
    sweep(parent, PREFIX)
    assert (other / "file").exists()
