"""Waiting for a store in trouble: an outage of minutes pauses whoever needs the store, and then they go on."""

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from segmint.infra.log import get_logger
from segmint.infra.storage.errors import PassingFaultError, UnavailableError

T = TypeVar("T")

TELL_EVERY_S = 60.0
"""Seconds between two lines about a store that is waited for."""

ROUNDS = 2
"""Rounds of attempts that may fail while the store answers: an outage may end between an attempt and the look."""

BUSY_ROUNDS = 20
"""The same where the store itself says that it has too much to do: some minutes."""


@dataclass
class _Gate:
    """One store, as this process knows it: a single thread asks for it while the others wait."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    given_up: bool = False  # it was waited for in vain, and has not answered since


# The key holds the process id: a lock that is held does not survive a fork.
_gates: dict[tuple[int, str], _Gate] = {}


def wait_out(attempt: Callable[[], T], store: str, answers: Callable[[], bool], outage_s: float) -> T:
    """What `attempt()` gives; where the store is in trouble, waits for it up to `outage_s` seconds and tries again.

    `attempt` has retries of its own, and raises `PassingFaultError` when these are used up. `answers` asks the store,
    which people call `store`, for next to nothing. A fault that stays while the store answers is raised, and so is one
    of a store that was waited for in vain before.
    """
    gate = _gates.setdefault((os.getpid(), store), _Gate())
    rounds, end = 0, 0.0
    while True:
        try:
            result = attempt()
        except PassingFaultError as fault:
            end = end or time.monotonic() + outage_s
            if not answers():
                if not _wait(gate, store, answers, end, str(fault)):
                    raise
                rounds = 0
                continue
            gate.given_up = False
            rounds += 1
            if rounds >= (BUSY_ROUNDS if isinstance(fault, UnavailableError) else ROUNDS) or time.monotonic() > end:
                raise
            time.sleep(min(next(pauses(rounds)), max(0.0, end - time.monotonic())))
        else:
            gate.given_up = False
            return result


def pauses(doubled: int = 0) -> Iterator[float]:
    """Seconds to wait before each look at a store: half a second, then twice as long each time up to ten; jittered."""
    while True:
        yield min(10.0, 0.5 * 2**doubled) * random.uniform(0.8, 1.2)
        doubled = min(doubled + 1, 5)


def _wait(gate: _Gate, store: str, answers: Callable[[], bool], end: float, why: str) -> bool:
    """Whether the store answers before `end`, in the time of `time.monotonic`."""
    if not gate.lock.acquire(timeout=max(0.0, end - time.monotonic())):
        return False
    try:
        if gate.given_up:
            return False
        log = get_logger("storage")
        told = 0.0
        looks = pauses()
        while not answers():
            left = end - time.monotonic()
            if left <= 0:
                gate.given_up = True
                return False
            if not told or time.monotonic() - told >= TELL_EVERY_S:
                log.warning("waiting for a store that does not answer", store=store, up_to_s=round(left), why=why)
                told = time.monotonic()
            time.sleep(min(next(looks), left))
        if told:
            log.info("the store answers again", store=store)
        return True
    finally:
        gate.lock.release()
