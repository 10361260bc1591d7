"""Child processes for foreign bytes: one may die, hang or run out of memory, and its image is known.

pebble keeps the processes, their deadlines and their replacements. This file adds what it lacks here: a
child that dies with its parent, that cannot eat the machine's memory, that leaves no core dump (an image's
bytes) on a disk, and whose start never counts as an image's time.
"""

import contextlib
import ctypes
import multiprocessing
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from multiprocessing import popen_spawn_posix, spawn
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, Generic, TypeVar

import pebble

from segmint.catalogs.reasons import Reason, RejectedError
from segmint.infra.errors import SegmintError

T = TypeVar("T")
Worker = Callable[[bytes], T]

_OUT_OF_MEMORY_EXIT = 87
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4


class SuspectError(RejectedError):
    """The child that had this image died, hung or ran out of memory.

    A verdict only if it happens again with nothing else running, in a fresh child.
    """


class ChildFaultError(SegmintError):
    """The child cannot be started, or died while it had no image: no image's fault."""


class Children(Generic[T]):
    """Processes that build a worker once, by `factory`, and then apply it to one image's bytes at a time.

    `factory` and what it returns stay in the child; `factory` must be importable there, and be picklable.
    `timeout_s` is for one image and starts when a child takes it. `memory_limit` in bytes is what an image
    may take on top of a child that is ready (Linux; None: no limit). After `max_tasks` images a child is
    replaced, which bounds what a leak in a decoder can grow to. Children start at once, beside the caller.
    """

    def __init__(
        self,
        factory: Callable[[], Worker[T]],
        *,
        timeout_s: float,
        processes: int = 1,
        memory_limit: int | None = None,
        max_tasks: int = 1000,
    ) -> None:
        self._arguments = (factory, memory_limit)
        self._timeout_s = timeout_s
        self._processes = processes
        self._max_tasks = max_tasks
        self._slots = threading.Semaphore(processes)
        self._alone = threading.Lock()
        self._restart_lock = threading.Lock()
        self._closed = False
        # Linux kills a child when the *thread* that started it ends, so that thread must live as long as the
        # pool.
        self._keeper = ThreadPoolExecutor(1, thread_name_prefix="children")
        self._pool = self._keeper.submit(self._start).result()

    def run(self, data: bytes) -> T:
        """The worker's answer for one image; waits until a child is free. Safe to call from many threads.

        An image whose child died is tried once more, alone. Raises what the worker raises; `SuspectError`
        with `killed_worker`, `timed_out` or `out_of_memory` when both tries ended so; `ChildFaultError`.
        """
        try:
            with self._slots:
                return self._run(data)
        except SuspectError:
            with self._all_slots():
                return self._run(data)

    def wait_until_ready(self) -> None:
        """Returns when a child has built its worker; where it could not, the first image's answer says so."""
        with contextlib.suppress(pebble.ProcessExpired, BrokenExecutor):
            self._living_pool().schedule(os.getpid).result()

    def close(self) -> None:
        """Ends the children; an image in work is lost. May be called again."""
        if self._closed:
            return
        self._closed = True
        self._pool.stop()
        self._pool.join()
        self._keeper.shutdown()

    def __enter__(self) -> "Children[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _all_slots(self) -> Iterator[None]:
        with self._alone:
            for _ in range(self._processes):
                self._slots.acquire()
            try:
                yield
            finally:
                self._slots.release(self._processes)

    def _run(self, data: bytes) -> T:
        try:
            future = self._living_pool().schedule(_work, args=(data,), timeout=self._timeout_s)
            answer: T = future.result()
        except pebble.ProcessExpired as error:
            raise _suspect(error.exitcode) from None
        except TimeoutError as error:
            if not _is_deadline(error):
                raise
            limit = f"ingest.timeout_s = {self._timeout_s:g} seconds"
            raise SuspectError(Reason.TIMED_OUT, f"not done within {limit}, twice") from None
        except BrokenExecutor as error:
            raise ChildFaultError(
                "the process that decodes images died before it took one: is there memory for it, and can it "
                "import what this process imports?"
            ) from error
        return answer

    def _living_pool(self) -> pebble.ProcessPool:
        """The pool, made anew when a child that had no image was killed and took the pool along."""
        with self._restart_lock:
            if not self._pool.active:
                with contextlib.suppress(Exception):
                    self._pool.stop()
                    self._pool.join()
                self._pool = self._keeper.submit(self._start).result()
            return self._pool

    def _start(self) -> pebble.ProcessPool:
        pool = pebble.ProcessPool(
            max_workers=self._processes,
            max_tasks=self._max_tasks,
            initializer=_begin,
            initargs=self._arguments,
            context=_BareContext(),
        )
        pool.schedule(os.getpid)  # a pool starts no process before its first task
        return pool


def _is_deadline(error: TimeoutError) -> bool:
    """Whether this is pebble's word on a task, and not a time-out that the worker raised itself."""
    return bool(error.args) and error.args[0] == "Task timeout"


def _suspect(exit_code: int | None) -> SuspectError:
    if exit_code == _OUT_OF_MEMORY_EXIT:
        return SuspectError(Reason.OUT_OF_MEMORY, "needs more memory than the process that decodes images may take")
    if exit_code is not None and exit_code < 0:
        how = signal.Signals(-exit_code).name
    else:
        how = f"exit code {exit_code}"
    return SuspectError(Reason.KILLED_WORKER, f"the process that decoded it died, twice ({how})")


class _BarePopen(popen_spawn_posix.Popen):
    """Starts a child that does not run its parent's main module again.

    In a Ray worker that module is Ray's, in a person's script it is the script: neither has a business there.
    """

    _one_at_a_time = threading.Lock()

    def _launch(self, process_obj: Any) -> None:
        prepare = spawn.get_preparation_data

        def without_main(name: str) -> dict[str, Any]:
            data: dict[str, Any] = dict(prepare(name))
            return {key: value for key, value in data.items() if not key.startswith("init_main_")}

        with self._one_at_a_time:
            spawn.get_preparation_data = without_main
            try:
                super()._launch(process_obj)  # type: ignore[misc]
            finally:
                spawn.get_preparation_data = prepare


class _BareProcess(SpawnProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        return _BarePopen(process_obj)


class _BareContext(SpawnContext):
    Process = _BareProcess


def forbid_core_dumps() -> None:
    """No crash of this process, or of one that it starts from now on, writes its memory to a disk."""
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))


# What follows runs in the child.

_worker: Worker[Any] | None = None
_start_error: str | None = None


def _begin(factory: Callable[[], Worker[Any]], memory_limit: int | None) -> None:
    """Readies the child: ties its life to its parent's, builds the worker, then sets the memory limit."""
    global _worker, _start_error
    _die_with_parent()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        _worker = factory()
        if memory_limit is not None and sys.platform == "linux":
            limit = _data_bytes() + memory_limit
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    except Exception as error:  # noqa: BLE001 - the first image's answer tells it; here nobody would hear
        _start_error = f"{type(error).__name__}: {error}"


def _work(data: bytes) -> Any:
    """Applies the worker to one image; ends the process when memory runs out: little is sure after that."""
    if _worker is None:
        raise ChildFaultError(f"the process that decodes images cannot start: {_start_error}")
    try:
        return _worker(data)
    except Exception as error:
        if is_out_of_memory(error):
            os._exit(_OUT_OF_MEMORY_EXIT)
        raise


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed, in the words of Python, NumPy and Pillow, torch, ONNX or OpenCV."""
    text = str(error)
    return isinstance(error, MemoryError) or any(
        words in text for words in ("can't allocate memory", "std::bad_alloc", "bad allocation", "Insufficient memory")
    )


def _die_with_parent() -> None:
    """Has the kernel kill this process when its parent dies, and forbids core dumps (Linux)."""
    parent = multiprocessing.parent_process()
    if sys.platform != "linux" or parent is None:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    libc.prctl(_PR_SET_DUMPABLE, 0)
    if os.getppid() != parent.pid:  # it died before the line above
        os._exit(1)


def _data_bytes() -> int:
    """Bytes of this process that RLIMIT_DATA counts (proc_pid_status(5), VmData)."""
    with open("/proc/self/status") as status:  # noqa: PTH123 - a Path has nothing to add
        for line in status:
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status names no VmData")
