"""User-facing errors, each with the command's exit code."""

from collections.abc import Sequence


class SegmintError(Exception):
    """An error that the user must handle; ends a command with exit code 3."""

    exit_code = 3


class UsageError(SegmintError):
    """An invalid argument, configuration, or catalog; nothing was started, and the command ends with exit code 2."""

    exit_code = 2


class UnfinishedError(SegmintError):
    """A run stopped early without losing anything, and the same command resumes it; exit code 3."""


def raise_problems(problems: Sequence[str], shown: int = 10) -> None:
    """Raise `UsageError` with the first `shown` problems, if there are any, and the number of the others."""
    if problems:
        more = [f"and {len(problems) - shown} more"] if len(problems) > shown else []
        raise UsageError("\n  ".join(["nothing was changed:", *problems[:shown], *more]))


def last_line(error: BaseException) -> str:
    """Return an error's last line, which follows any tracebacks that Ray prepends, or its type if it has no message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
