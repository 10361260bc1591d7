import io
import threading

from segmint.infra.progress import Progress


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
            progress.line("[bold]a line")
        assert "[bold]a line\n" in stream.getvalue()


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
