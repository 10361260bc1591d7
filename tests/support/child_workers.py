"""Workers for `segmint.operators.child.Children` that do what their bytes say; importable in a child process."""

import ctypes
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

from segmint.catalogs.findings import Reason, RejectedError

Worker = Callable[[bytes], object]


def obey(data: bytes) -> object:
    """Do what `data` says."""
    order, _, argument = data.decode().partition(" ")
    if order == "pid":
        return os.getpid()
    if order == "limits":
        return resource.getrlimit(resource.RLIMIT_CORE), resource.getrlimit(resource.RLIMIT_DATA)
    if order == "crash":
        ctypes.string_at(0)
    if order == "crash-once" and not Path(argument).exists():
        Path(argument).touch()
        ctypes.string_at(0)
    if order == "signal":
        signal.signal(int(argument), signal.SIG_DFL)  # nohup ignores SIGHUP
        os.kill(os.getpid(), int(argument))
        time.sleep(60.0)
    if order == "signal-once" and not Path(argument).exists():
        Path(argument).touch()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60.0)
    if order == "print":
        os.write(1, argument.encode())
        os.write(2, argument.encode())
    if order == "exit":
        os._exit(5)
    if order == "sleep":
        time.sleep(float(argument))
    if order == "allocate":
        return len(bytearray(int(argument)))
    if order == "reject":
        raise RejectedError(Reason.CORRUPT, argument)
    if order == "bug":
        raise LookupError(argument)
    return data


def pid(_: bytes) -> int:
    """Return the process that decodes."""
    return os.getpid()


def obedient() -> Worker:
    """A child that is ready at once."""
    return obey


def slow_to_start() -> Worker:
    """A child that takes longer to start than the tests' deadline."""
    time.sleep(2.5)
    return obey


def cannot_start() -> Worker:
    """A child without what it needs."""
    raise FileNotFoundError("weights.pt is nowhere")


def dies_at_start() -> Worker:
    """A child that never comes up."""
    os._exit(9)
