"""Waiting for a store that is down, so that an outage of minutes only pauses the threads that need the store."""

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
"""Seconds between log messages about a store that is down."""

ROUNDS = 2
"""Maximum number of rounds that may fail while the store responds. More than one is allowed because an outage may end
between a failed attempt and the check."""

BUSY_ROUNDS = 20
"""Maximum number of rounds that may fail while the store reports that it's overloaded. They take several minutes."""


@dataclass
class _StoreGate:
    """State of one store in this process. While one thread checks the store, the others wait."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    given_up: bool = False  # an earlier wait timed out, and the store hasn't responded since


# A lock that is held during a fork stays locked in the child, so each process needs its own gates.
_gates: dict[tuple[int, str], _StoreGate] = {}


def wait_out(attempt: Callable[[], T], store: str, answers: Callable[[], bool], outage_s: float) -> T:
    """Call `attempt` until it succeeds, and wait up to `outage_s` seconds while the store is down.

    `attempt` makes its own retries and raises `PassingFaultError` when they are exhausted. `answers` checks the store
    with a minimal request. `store` is the store's name in log messages. The fault is raised if it persists although the
    store responds, if the wait times out, or if an earlier wait already gave up on this store.
    """
    gate = _gates.setdefault((os.getpid(), store), _StoreGate())
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
    """Yield the seconds to wait before each check: from half a second, doubling up to ten seconds, with jitter."""
    while True:
        yield min(10.0, 0.5 * 2**doubled) * random.uniform(0.8, 1.2)
        doubled = min(doubled + 1, 5)


def _wait(gate: _StoreGate, store: str, answers: Callable[[], bool], end: float, why: str) -> bool:
    """Wait until the store responds. Return False if it hasn't by `end`, a time of `time.monotonic`."""
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
