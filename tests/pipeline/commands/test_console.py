"""Lines that commands print: at most 80 columns on a terminal, and whole where they are JSON or commands."""

import io
import sys
import time
from collections.abc import Iterator

import click
import pytest
import typer.main
from typer.testing import CliRunner

from segmint.infra import progress
from segmint.infra.errors import UsageError
from segmint.pipeline.commands.cli import PANELS, app
from segmint.pipeline.commands.console import guarded, print_line, print_message, print_next, print_whole

GROUPS = ("catalog", "assets", "study", "evaluate")


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def words_of_commands() -> list[list[str]]:
    """Words of all commands, with those of groups."""
    group = typer.main.get_command(app)
    words: list[list[str]] = [[]]
    for name in (name for panel in PANELS.values() for name in panel):
        words.append([name])
        command = group.get_command(click.Context(group), name)  # type: ignore[attr-defined]
        words += [[name, below] for below in getattr(command, "commands", ())]
    return words


def test_every_help_has_at_most_80_columns() -> None:
    all_words = words_of_commands()
    assert {words[0] for words in all_words if len(words) == 2} == set(GROUPS)
    for words in all_words:
        done = CliRunner().invoke(app, [*words, "--help"])
        assert done.exit_code == 0, done.output
        wide = [line for line in done.output.splitlines() if len(line) > 80 and " " in line.strip()]
        assert not wide, (words, wide)


def test_messages_and_results_fit_a_terminal_but_commands_and_json_stay_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("COLUMNS", "120")
    print_line("word " * 30)
    print_message("error: " + "word " * 30)
    assert max(map(len, [*out.getvalue().splitlines(), *err.getvalue().splitlines()])) <= 80
    print_whole("x " * 60)
    assert out.getvalue().splitlines()[-1] == "x " * 60
    print_next(False, "audit", "a folder" * 12)
    assert err.getvalue().splitlines()[-1] == f"next: segmint audit '{'a folder' * 12}'"


def test_a_bar_ends_before_the_message_of_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the exception refers to a frame that refers to the bar's iterator."""
    err = Terminal()
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr(progress, "BAR_AFTER_S", 0.05)
    monkeypatch.setattr(progress.Bars, "enabled", False)

    def consume(items: Iterator[int]) -> None:
        for _ in items:
            time.sleep(0.3)
            raise UsageError("the disk is full")

    with pytest.raises(typer.Exit):
        guarded(lambda: consume(progress.track(range(3), "shards", 3)))()
    bar, _, after = err.getvalue().partition("error: the disk is full")
    assert "shards" in bar
    assert after == "\n"
