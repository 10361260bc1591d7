"""The errors that reach a person, each with the exit code of the command that it ends."""


class SegmintError(Exception):
    """Something went wrong that a person has to know about; ends a command with exit code 3."""

    exit_code = 3


class UsageError(SegmintError):
    """A wrong argument, configuration or catalog: nothing was started; ends a command with exit code 2."""

    exit_code = 2


class UnfinishedError(SegmintError):
    """A run stopped before its end, lost nothing, and can be resumed by the same command; exit code 3."""
