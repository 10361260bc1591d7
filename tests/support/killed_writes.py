"""Simulates a process that dies after its n-th write to a store: no later write gets through."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import segmint.infra.storage.storage
from segmint.infra.storage.connections import connect

WRITES = frozenset({"create", "create_file", "put", "put_file", "delete", "purge"})


class KilledProcessError(BaseException):
    """The process is dead; nothing catches this."""


class DyingStore:
    """A store that counts what changes it, and dies with the write after the `allowed`-th."""

    def __init__(self, store: Any, budget: "Budget") -> None:
        self._store = store
        self._budget = budget

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._store, name)
        if name not in WRITES:
            return operation

        def counted(*arguments: Any) -> Any:
            self._budget.spend()
            return operation(*arguments)

        return counted


class Budget:
    """The number of writes done, and allowed; None: any number."""

    def __init__(self, allowed: int | None) -> None:
        self.allowed = allowed
        self.spent = 0

    def spend(self) -> None:
        if self.allowed is not None and self.spent >= self.allowed:
            raise KilledProcessError
        self.spent += 1


@contextmanager
def dying_after(writes: int | None) -> Iterator[Budget]:
    """Let `writes` writes through to any store of this process; with None all, counted."""
    budget = Budget(writes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            segmint.infra.storage.storage, "connect", lambda *arguments: DyingStore(connect(*arguments), budget)
        )
        yield budget
