"""Typed confirmation before something is removed for good."""

import sys
from typing import Protocol

import typer

from segmint.infra.errors import UsageError
from segmint.pipeline.commands.common.console import print_message


class RemovalPrompt(Protocol):
    """What a command would remove."""

    @property
    def name(self) -> str:
        """The dataset's name."""

    @property
    def rows(self) -> int:
        """The number of rows or images."""

    def lines(self) -> list[str]:
        """The list as text."""


def require_terminal(command: str) -> None:
    """Raise `UsageError` if nobody can be asked."""
    if not sys.stdin.isatty():
        raise UsageError(
            f"{command} removes for good and asks first, and this is no terminal: look at the list with --dry-run, "
            "then give --yes"
        )


def confirm(removal: RemovalPrompt) -> None:
    """Show what would be removed and wait for its number or the dataset's name; raises `UsageError` for other words.

    Nothing is asked where there is nothing to remove.
    """
    if removal.rows == 0:
        return
    for line in removal.lines():
        print_message(line)
    expected = {str(removal.rows), f"{removal.rows:,}", removal.name}
    typed = typer.prompt(f"Type {removal.rows} or {removal.name} to go on", err=True, default="", show_default=False)
    if typed.strip() not in expected:
        raise UsageError(
            f"not confirmed: {typed.strip()!r} is neither {removal.rows} nor {removal.name}. Nothing was changed"
        )
