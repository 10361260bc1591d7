"""User-facing errors, each with the command's exit code."""

from collections.abc import Sequence

_SHOWN = 10


class SegmintError(Exception):
    """Error that the user must handle. It ends the command with exit code 3."""

    exit_code = 3


class UsageError(SegmintError):
    """Raised for an invalid argument, configuration, or catalog, before any work starts. The exit code is 2."""

    exit_code = 2


class UnfinishedError(SegmintError):
    """Raised when a run stops early without losing anything. The same command resumes it. The exit code is 3."""


def raise_problems(problems: Sequence[str]) -> None:
    """Raise `UsageError` if there are problems. The message lists the first ten and counts the rest."""
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise UsageError("\n  ".join(["nothing was changed:", *problems[:_SHOWN], *more]))


def last_line(error: BaseException) -> str:
    """Return the last line of an error's message, because Ray puts tracebacks before it.

    If the message is empty, return the error's type.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
