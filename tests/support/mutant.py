"""A fault that `make mutants` plants."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One fault: `old` occurs exactly once in `file`, and is replaced by `new`."""

    name: str
    file: str
    old: str
    new: str
    tests: str
