"""A line for each item, on a terminal above a bar."""

import io

from segmint.pipeline.commands.common.lines import ItemLines


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_lines_have_a_count_and_the_time_left() -> None:
    stream = io.StringIO()
    with ItemLines(3, stream) as lines:
        for name, left in (("a", 240.4), ("b\x1b[2J\u202e", 0), ("c", None)):
            lines.add(name, left)
    assert stream.getvalue() == "[1/3] a; about 4 min left\n[2/3] b\ufffd[2J\ufffd\n[3/3] c\n"


def test_a_single_item_has_neither_count_nor_bar() -> None:
    stream = Terminal()
    with ItemLines(1, stream) as lines:
        lines.add("a", None)
    assert stream.getvalue() == "a\n"


def test_a_terminal_shows_a_bar_below_the_lines_and_none_at_the_end() -> None:
    stream = Terminal()
    with ItemLines(2, stream) as lines:
        lines.add("first [bold]line", 90)
        lines.add("second line", None)
    shown = stream.getvalue()
    assert "first [bold]line\n" in shown
    assert "1/2" in shown
    assert "about 1.5 min left" in shown
    assert "\x1b[2K" in shown.rsplit("2/2", 1)[1]  # the bar's line is erased
