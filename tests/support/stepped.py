"""Work in threads that make one storage call at a time, on command: any interleaving, and reproducible."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from tests.support.crashing_store import gated

_PATIENCE_S = 60
_LOOK = ("read commits/", "read reservations/", "delete ", "purge ")

_of_thread = threading.local()


class KilledThreadError(BaseException):
    """Ends the work of a thread as a death would: no handler for errors sees it."""


class SteppedThreads:
    """`work()` in a thread, which waits before each of its storage calls. Use within `stepping`."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._may_go = threading.Semaphore(0)
        self._waits = threading.Semaphore(0)
        self._killed = False
        self.error: BaseException | None = None
        self.result: Any = None  # of `work`, once it is done
        self.next_call = ""  # the call that it waits before; empty once the work is done
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._thread.start()
        self._wait()

    @property
    def done(self) -> bool:
        return not self.next_call

    def step(self) -> None:
        """Make the call that it waits before, and go on to the next."""
        self._may_go.release()
        self._wait()

    def look_and_delete(self, folder: str, most: int | None = None) -> bool:
        """If it is about to look what is named in the dataset in `folder`, and deletes the rest, go on until it has.

        That is: at a shard's reservations, or at the manifest. With `most` at most so many calls; return whether it was
        stopped by that.
        """
        if not self.next_call.endswith(("/reservations", f"/{folder}")):
            return False
        looks = (*_LOOK, f"read {folder}/dataset")
        while self.next_call.endswith(("/reservations", "/commits", f"/{folder}")) or self.next_call.startswith(looks):
            if most == 0:
                return True
            most = None if most is None else most - 1
            self.step()
        return False

    def finish(self) -> None:
        """Make all calls that are left."""
        while not self.done:
            self.step()

    def kill(self) -> None:
        """End it before its next call."""
        self._killed = True
        if not self.done:
            self.step()

    def _main(self) -> None:
        _of_thread.gate = self._gate
        try:
            self.result = self._work()
        except KilledThreadError:
            pass
        except BaseException as error:  # noqa: BLE001 (raised in the thread that steps it)
            self.error = error
        finally:
            self.next_call = ""
            self._waits.release()

    def _gate(self, name: str, call: Callable[[], Any], subject: Any) -> Any:
        self.next_call = name
        self._waits.release()
        self._may_go.acquire()
        if self._killed:
            raise KilledThreadError
        return call()

    def _wait(self) -> None:
        if not self._waits.acquire(timeout=_PATIENCE_S):
            raise TimeoutError("a stepped thread neither came to a storage call nor to its end")


class InlinePool(ThreadPoolExecutor):
    """A pool that calls at once, in its own thread, what a `SteppedThreads` thread submits."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        if getattr(_of_thread, "gate", None) is None:
            return super().submit(function, *arguments, **options)
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments, **options))
        except Exception as error:  # noqa: BLE001 (raised where the result is read; a `KilledThreadError` is not caught)
            future.set_exception(error)
        return future


@contextmanager
def stepping(made: Callable[[str], object] = lambda _: None) -> Iterator[None]:
    """Within, the storage calls of `SteppedThreads` threads wait for their steps; all others are made at once.

    `made` is called with the name of each call once it was made.
    """

    def by_thread(name: str, call: Callable[[], Any], subject: Any) -> Any:
        gate = getattr(_of_thread, "gate", None)
        answer = call() if gate is None else gate(name, call, subject)
        made(name)
        return answer

    with gated(by_thread), patch("segmint.infra.stopping.ThreadPoolExecutor", InlinePool):
        yield
