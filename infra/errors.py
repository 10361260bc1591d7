"""The errors that a user sees, each with the exit code of the command."""

from collections.abc import Sequence


class SegmintError(Exception):
    """An error that the user has to know about; ends a command with exit code 3."""

    exit_code = 3


class UsageError(SegmintError):
    """A wrong argument, configuration or catalog: nothing was started; ends a command with exit code 2."""

    exit_code = 2


class UnfinishedError(SegmintError):
    """A run stopped early, lost nothing, and can be resumed with the same command; exit code 3."""


def raise_problems(problems: Sequence[str], shown: int = 10) -> None:
    """Raise `UsageError` with the first of these problems, if there are any, and the number of the others."""
    if problems:
        more = [f"and {len(problems) - shown} more"] if len(problems) > shown else []
        raise UsageError("\n  ".join(["nothing was changed:", *problems[:shown], *more]))


def last_line(error: BaseException) -> str:
    """The line that says what went wrong, without the tracebacks that Ray puts before it; the type if there is none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
