"""Stops a process at one of its storage calls: every call of a store, and the steps of a local put, go through a gate.

A gate is called with the call's name, the call itself, and its first argument; what it returns is the call's answer.
"""

import itertools
import os
import pickle
import signal
import stat
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from segmint.infra.storage.connections import connect
from segmint.infra.storage.stores import Store

STORE_CALLS = (
    "read",
    "read_range",
    "create",
    "create_file",
    "put",
    "put_file",
    "walk",
    "version",
    "delete",
    "purge",
    "ping",
)
FILE_CALLS = ("mkdir", "fsync", "link", "replace", "unlink")
"""The steps of a local put and a local delete, besides the writing itself."""

Gate = Callable[[str, Callable[[], Any], Any], Any]


class GatedStore:
    """A store whose calls go through a gate, with the name of the call and the last two parts of its URI."""

    def __init__(self, store: Store, gate: Gate) -> None:
        self._store = store
        self._gate = gate

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._store, name)
        if name not in STORE_CALLS:
            return call

        def gated(uri: str, *arguments: Any, **options: Any) -> Any:
            def made() -> Any:
                answer = call(uri, *arguments, **options)
                return iter(list(answer)) if name == "walk" else answer  # a listing is one call, made now

            return self._gate(f"{name} {'/'.join(uri.split('/')[-2:])}", made, uri)

        return gated


@contextmanager
def gated(gate: Gate, files: bool = False) -> Iterator[None]:
    """Within, every storage call of this process goes through `gate`; with `files` so do the steps of local calls."""
    with ExitStack() as patches:
        patches.enter_context(
            patch("segmint.infra.storage.storage.connect", lambda *at: GatedStore(connect(*at), gate))
        )
        for name in FILE_CALLS if files else ():
            patches.enter_context(patch.object(os, name, _gated_file_call(name, gate)))
        yield


def _gated_file_call(name: str, gate: Gate) -> Callable[..., Any]:
    call = getattr(os, name)

    def gated(*arguments: Any, **options: Any) -> Any:
        if "dir_fd" in options:  # of `shutil.rmtree`: a temporary folder is deleted
            return call(*arguments, **options)
        return gate(name, lambda: call(*arguments, **options), arguments[0])

    return gated


@dataclass(frozen=True)
class CrashPoint:
    """Where a process is stopped: before or after the call number `number` (from 1), or "torn": before it, with the
    file that it was to sync cut in half, as a machine that loses its power leaves it."""

    number: int
    moment: str  # "before", "after" or "torn"

    def __str__(self) -> str:
        return f"{self.moment} call {self.number}"


class CallCounter:
    """A gate that records the names of all calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __call__(self, name: str, call: Callable[[], Any], subject: Any) -> Any:
        is_file = name == "fsync" and stat.S_ISREG(os.fstat(subject).st_mode)
        self.calls.append("fsync of a file" if is_file else name)
        return call()


class StopPoint:
    """A gate that sends a signal to its own process at one point."""

    def __init__(self, point: CrashPoint, how: signal.Signals = signal.SIGKILL) -> None:
        self._point = point
        self._how = how
        self._calls = itertools.count(1)

    def __call__(self, name: str, call: Callable[[], Any], subject: Any) -> Any:
        here = next(self._calls) == self._point.number
        if here and self._point.moment == "torn":
            os.ftruncate(subject, os.fstat(subject).st_size // 2)
        if here and self._point.moment != "after":
            os.kill(os.getpid(), self._how)
        try:
            return call()
        finally:
            if here and self._point.moment == "after":
                os.kill(os.getpid(), self._how)


READS = ("read", "read_range", "walk", "version", "ping")
"""The calls that change no file."""


def points_of(calls: list[str], reads: bool = True) -> list[CrashPoint]:
    """Every point at which an operation that makes these calls can be stopped: after a call is before the next.

    Without `reads`, those before a call that only reads are left out: a death there leaves the same files as one before
    the next call that changes something.
    """
    chosen = (number for number, name in enumerate(calls, 1) if reads or name.partition(" ")[0] not in READS)
    before = [CrashPoint(number, "before") for number in chosen]
    torn = [CrashPoint(number, "torn") for number, name in enumerate(calls, 1) if name == "fsync of a file"]
    return [*before, *torn, CrashPoint(len(calls), "after")]


class ChildFailedError(Exception):
    """A forked child raised; the text is its traceback."""


class CrashingChild:
    """`work()` in a fork of this process, which should have no threads."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._reader)
            _work_and_exit(work, writer)
        os.close(writer)

    def wait_until_stopped(self) -> bool:
        """Wait until the child stops itself (True) or ends (False)."""
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            return True
        self._status = status
        return False

    def go_on(self) -> None:
        """Wake the child up."""
        os.kill(self.pid, signal.SIGCONT)

    def killed(self) -> bool:
        """Wait for the end; True: by SIGKILL, False: by its own end. Raises `ChildFailedError` for an exception."""
        self._read()
        return self._signal == signal.SIGKILL

    def result(self) -> Any:
        """What `work` returned. Raises `ChildFailedError` for an exception or a death."""
        data = self._read()
        if self._signal:
            raise ChildFailedError(f"died of signal {self._signal}")
        return pickle.loads(data)

    def _read(self) -> bytes:
        with open(self._reader, "rb") as stream:
            data = stream.read()
        status = os.waitpid(self.pid, 0)[1]
        self._signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        if not self._signal and os.waitstatus_to_exitcode(status) != 0:
            raise ChildFailedError(data.decode(errors="replace"))
        return data


def _work_and_exit(work: Callable[[], Any], writer: int) -> None:
    status = 1
    try:
        try:
            data = pickle.dumps(work())
            status = 0
        except BaseException:  # noqa: BLE001 (reported to the parent)
            data = traceback.format_exc().encode()
        with open(writer, "wb") as stream:
            stream.write(data)
    finally:
        os._exit(status)
