"""Waiting for a store: one thread asks for all, an end after the time given, and no waiting for what cannot pass."""

import itertools
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from segmint.infra.storage import errors
from segmint.infra.storage.errors import (
    BUSY_ROUNDS,
    ROUNDS,
    AccessRefusedError,
    PassingFaultError,
    StorageFaultError,
    UnavailableError,
    pauses,
    wait_out,
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "pauses", lambda doubled=0: itertools.repeat(0.002))


@pytest.fixture
def store() -> str:
    """A name that no other test has waited for."""
    return f"s3://{uuid.uuid4().hex}"


class UnsteadyStore:
    """Answers after so many looks, and fails each use before that, and `persistent` uses after it."""

    def __init__(self, looks: int, persistent: int = 0, fault: type[StorageFaultError] = PassingFaultError) -> None:
        self.looks, self.persistent, self.fault = looks, persistent, fault
        self.looked = self.used = 0
        self._lock = threading.Lock()

    def answers(self) -> bool:
        with self._lock:
            self.looked += 1
            return self.looked > self.looks

    def use(self) -> str:
        with self._lock:
            self.used += 1
            if self.looked <= self.looks:
                raise self.fault("it is out")
            if self.persistent:
                self.persistent -= 1
                raise self.fault("it is odd")
            return "done"


def test_an_outage_is_waited_for_and_logged_once(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    world = UnsteadyStore(looks=5)
    assert wait_out(world.use, store, world.answers, outage_s=60) == "done"
    assert (world.used, world.looked) == (2, 6)
    printed = capsys.readouterr().err
    assert (printed.count("waiting for a store"), printed.count("answers again")) == (1, 1)
    assert store in printed
    assert "it is out" in printed


def test_threads_wait_together(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    world = UnsteadyStore(looks=40)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: wait_out(world.use, store, world.answers, 60), range(8))) == ["done"] * 8
    assert capsys.readouterr().err.count("waiting for a store") == 1


def test_one_more_round_is_for_outages_that_end_before_the_look(store: str) -> None:
    world = UnsteadyStore(looks=0, persistent=ROUNDS - 1)
    world.looked = 1
    assert wait_out(world.use, store, lambda: True, 60) == "done"
    world = UnsteadyStore(looks=0, persistent=99)
    with pytest.raises(PassingFaultError, match="odd"):
        wait_out(world.use, store, world.answers, 60)
    assert world.used == ROUNDS


def test_a_store_with_too_much_to_do_is_given_time(store: str) -> None:
    world = UnsteadyStore(looks=0, persistent=BUSY_ROUNDS - 2, fault=UnavailableError)
    assert wait_out(world.use, store, world.answers, 60) == "done"


def test_a_wait_has_an_end_and_the_next_one_is_short_until_the_store_answers(store: str) -> None:
    world = UnsteadyStore(looks=10**9)
    with pytest.raises(PassingFaultError, match="it is out"):
        wait_out(world.use, store, world.answers, outage_s=0.05)
    before = world.looked
    with pytest.raises(PassingFaultError):
        wait_out(world.use, store, world.answers, outage_s=60)
    assert world.looked == before + 1
    assert wait_out(lambda: "done", store, lambda: True, outage_s=60) == "done"
    again = UnsteadyStore(looks=5)
    assert wait_out(again.use, store, again.answers, outage_s=60) == "done", "it is waited for as before"


@pytest.mark.parametrize("kind", [AccessRefusedError, StorageFaultError, ValueError])
def test_what_cannot_pass_is_raised_at_once(store: str, kind: Callable[[str], Exception]) -> None:
    looked: list[None] = []

    def use() -> str:
        raise kind("no")

    with pytest.raises(Exception, match="no"):
        wait_out(use, store, lambda: not looked.append(None), outage_s=60)
    assert looked == []


def test_pauses_grow_to_ten_seconds() -> None:
    found = list(itertools.islice(pauses(), 8))
    assert all(
        low <= pause <= high for pause, low, high in zip(found[:3], (0.4, 0.8, 1.6), (0.6, 1.2, 2.4), strict=True)
    )
    assert all(8 <= pause <= 12 for pause in found[5:])
