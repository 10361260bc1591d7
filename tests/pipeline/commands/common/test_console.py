"""Lines that commands print: at most 80 columns on a terminal, and whole where they are JSON or commands."""

import io
import sys

import click
import pytest
import typer.main
from typer.testing import CliRunner

from segmint.pipeline.commands.cli import PANELS, app
from segmint.pipeline.commands.common.console import print_line, print_message, print_next, print_whole

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
