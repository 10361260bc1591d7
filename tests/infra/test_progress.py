import io
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from segmint.infra import log
from segmint.infra import progress as progress_module
from segmint.infra.progress import Bars, Progress, enable_bars, track
from segmint.infra.ray_session import without_native_output
from segmint.infra.wording import fit


def test_plain_lines_are_few_and_end_with_the_last_state() -> None:
    stream = io.StringIO()
    with Progress(stream, interval_s=1000) as progress:
        progress.stage("prepare", total=200)
        for done in range(1, 101):
            progress.update("prepare", done)
        progress.update("segment", 7)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("prepare 100/200 (50.0%, ")
    assert lines[0].partition(";")[0].endswith("/s, 1 s left)")
    assert "; segment 7 (" in lines[0]


def test_plain_lines_come_at_the_interval_and_only_for_what_moved() -> None:
    stream = io.StringIO()
    with Progress(stream, interval_s=0) as progress:
        progress.stage("a", total=2)
        progress.stage("b", total=0)
        progress.update("a", 1)
        progress.update("a", 2)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("a 1/2 (50.0%")
    assert "; b 0/0 (100.0%" in lines[0]
    assert lines[1].startswith("a 2/2 (100.0%")
    assert "b" not in lines[1]


def test_a_line_says_what_is_waited_for_if_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    with Progress(stream, interval_s=1000) as progress:
        progress.stage("prepare", total=2)
        progress.stage("segment", total=2)
        progress.wait()
        assert stream.getvalue() == ""
        monkeypatch.setattr(progress_module, "LONGEST_SILENCE_S", 0.0)
        progress.wait()
        progress.update("prepare", 2)
        progress.wait()
        progress.update("segment", 2)
        progress.wait()
    unmoved = "segment 0/2 (0.0%, 0/s): no change for 1 s"
    first, second, third = stream.getvalue().splitlines()[:3]
    assert first == f"waiting for prepare 0/2 (0.0%, 0/s); {unmoved}"
    assert second == f"waiting for {unmoved}"
    assert third == "waiting for the last shards: no change for 1 s"
    terminal = Terminal()
    with Progress(terminal, bars=True) as progress:
        progress.wait()
    assert "waiting" not in terminal.getvalue()


def test_a_terminal_gets_bars() -> None:
    stream = io.StringIO()
    with Progress(stream, bars=True) as progress:
        progress.update("segment", 1)
        progress.stage("segment", total=4)
        progress.update("segment", 3)
    text = stream.getvalue()
    assert "segment" in text
    assert "3/4" in text
    assert "\x1b[" in text


def test_a_line_goes_above_the_bars_and_is_no_markup() -> None:
    for bars in (True, False):
        stream = io.StringIO()
        with Progress(stream, bars=bars) as progress:
            progress.update("segment", 1)
            progress.line("[bold]a:car:line")
        assert "[bold]a:car:line\n" in stream.getvalue()


def test_results_for_a_file_are_not_printed_above_the_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    results = io.StringIO()
    monkeypatch.setattr(sys, "stdout", results)
    with Progress(Terminal(), bars=True):
        print("a result")
    assert results.getvalue() == "a result\n"


def test_threads_may_update_at_once() -> None:
    stream = io.StringIO()
    with Progress(stream, interval_s=1000) as progress:
        workers = [
            threading.Thread(target=lambda name=name: [progress.update(name, n) for n in range(500)]) for name in "abcd"
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert all(f"{name} 499" in stream.getvalue() for name in "abcd")


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bars of commands appear after a tenth of a second."""
    monkeypatch.setattr(progress_module, "BAR_AFTER_S", 0.1)
    monkeypatch.setattr(progress_module.Bars, "enabled", False)


def tracked(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, wait_s: float = 0.5) -> str:
    """Return what the stream shows of three items. The first one takes long."""

    def items() -> Iterator[int]:
        time.sleep(wait_s)
        yield from range(3)

    monkeypatch.setattr(sys, "stderr", stream)
    assert list(track(items(), "shards", 3)) == [0, 1, 2]
    assert progress_module.Bars.holder is None
    return stream.getvalue()


@pytest.mark.usefixtures("soon")
def test_a_command_shows_a_bar_on_a_terminal_and_nothing_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracked(monkeypatch, Terminal()) == ""  # a program that uses segmint as a library
    enable_bars()
    assert tracked(monkeypatch, io.StringIO()) == ""
    shown = tracked(monkeypatch, Terminal())
    assert "shards" in shown
    assert "0/3" in shown
    assert "3/3" in shown
    monkeypatch.setattr(progress_module, "BAR_AFTER_S", 60.0)
    assert tracked(monkeypatch, Terminal(), wait_s=0) == ""


@pytest.mark.usefixtures("soon")
def test_there_is_only_one_bar_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    enable_bars()
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress(stream, bars=True):
        assert list(track(iter([time.sleep(0.3)]), "inner", 1)) == [None]
    assert "inner" not in stream.getvalue()
    for _ in track(range(2), "outer", 2):
        list(track((time.sleep(0.2) for _ in range(2)), "inner", 2))
    assert "outer" in stream.getvalue()
    assert "inner" not in stream.getvalue()
    outer = track(range(2), "first", 2)
    next(outer)
    with Progress(stream, bars=True) as progress:
        time.sleep(0.3)
        progress.update("second", 1)
    assert list(outer) == [1]
    assert "first" not in stream.getvalue()
    assert "second" in stream.getvalue()


@pytest.mark.usefixtures("soon")
def test_an_abandoned_bar_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    enable_bars()
    monkeypatch.setattr(sys, "stderr", Terminal())
    items = track(range(3), "shards", 3)
    next(items)
    assert progress_module.Bars.holder is not None
    items.close()  # type: ignore[attr-defined]
    assert progress_module.Bars.holder is None


def test_closed_standard_streams_are_no_terminals(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Bars, "enabled", True)
    closed = io.StringIO()
    closed.close()
    for stream in (None, closed):
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(sys, "stdout", stream)
        assert list(track(range(3), "rows")) == [0, 1, 2]
        with Progress() as progress:
            progress.update("rows", 1)
            progress.line("a line")
        with Progress(stream=io.StringIO(), bars=True) as progress:
            progress.update("rows", 1)
        log.configure()
        log.get_logger("build").warning("a line of the log")
        assert fit("a text " * 30, sys.stderr) == "a text " * 30
        with without_native_output():
            pass
    assert capfd.readouterr() == ("", "")
    log.configure()
