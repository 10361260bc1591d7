"""A fault that `make mutants` plants."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One fault: `old` stands exactly once in `file`, and `new` takes its place."""

    name: str
    file: str
    old: str
    new: str
    tests: str
