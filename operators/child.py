"""Child processes that decode untrusted bytes, so that a crash, hang, or memory error is traced to its image.

pebble starts and replaces the processes and enforces their deadlines. This module makes sure that a child dies with its
parent, can't exhaust the machine's memory, leaves no core dump (which would contain an image's bytes), and prints
nothing while it processes an image. The time that a child takes to start doesn't count toward an image's time limit.
"""

import contextlib
import ctypes
import importlib.util
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from multiprocessing import popen_spawn_posix, spawn
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, Generic, TypeVar

import pebble

from segmint.catalogs.findings import Reason, RejectedError
from segmint.infra.device import memory_here
from segmint.infra.errors import SegmintError
from segmint.infra.stopping import was_stopped

T = TypeVar("T")
Worker = Callable[[bytes], T]

_OUT_OF_MEMORY_EXIT = 87
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4


class SuspectError(RejectedError):
    """Raised when the child that processes an image dies, hangs, or runs out of memory.

    The image is blamed only if the same happens again in a new child while nothing else is running.
    """


class ChildFaultError(SegmintError):
    """Raised when a child can't start, or dies while it isn't processing an image. No image is to blame."""


class _StoppedChildError(ChildFaultError):
    """Raised when a child receives SIGTERM, SIGINT, or SIGHUP from outside while it is processing an image."""


class Children(contextlib.AbstractContextManager["Children[T]"], Generic[T]):
    """Pool of processes. Each builds a worker once, with `factory`, and then applies it to one image's bytes at a time.

    - `factory` must be picklable and importable in the child. Its result stays there.
    - `timeout_s` is the time limit for one image. It starts when a child takes the image.
    - `more_s` extends this limit for a worker that sets a `Deadline` for each of its steps.
    - `memory_limit` is the number of bytes that an image may use on top of an idle child's memory. It is capped at half
      of the memory of the machine or cgroup. It applies only on Linux. None means no limit.
    - `max_tasks` is the number of images after which a child is replaced, which limits the effect of leaks in decoders.

    Children start immediately, in the background.
    """

    def __init__(
        self,
        factory: Callable[[], Worker[T]],
        *,
        timeout_s: float,
        processes: int = 1,
        memory_limit: int | None = None,
        max_tasks: int = 1000,
        more_s: float = 0.0,
    ) -> None:
        if importlib.util.find_spec("resource") is None:  # Windows
            raise ChildFaultError(
                "a HEIC is decoded in a child process, which needs Linux or macOS. Convert it to JPEG or PNG."
            )
        self._arguments = (factory, None if memory_limit is None else min(memory_limit, memory_here() // 2))
        self.timeout_s = timeout_s
        self._more_s = more_s
        self._processes = processes
        self._max_tasks = max_tasks
        self._slots = threading.Semaphore(processes)
        self._alone = threading.Lock()
        self._restart_lock = threading.Lock()
        self._closed = False
        # Linux kills a child when the *thread* that started it ends, so this thread must live as long as the pool.
        self._keeper = ThreadPoolExecutor(1, thread_name_prefix="children")
        self._pool = self._keeper.submit(self._start).result()

    def run(self, data: bytes) -> T:
        """Apply the worker to one image and return its result; wait until a child is free. Thread-safe.

        If the child dies, the image is retried once, while nothing else is running. The worker's errors propagate.
        Raises `SuspectError` (`killed_worker`, `timed_out`, or `out_of_memory`) if the retry fails too. Raises
        `ChildFaultError` if the image isn't at fault, for example if the child was killed by a signal that stops
        processes.
        """
        try:
            with self._slots:
                return self._run(data)
        except (SuspectError, _StoppedChildError):
            with self._all_slots():
                return self._run(data)

    def wait_until_ready(self) -> None:
        """Wait until a child has built its worker. If that fails, `run` raises the error for the first image."""
        with contextlib.suppress(pebble.ProcessExpired, BrokenExecutor):
            self._living_pool().schedule(os.getpid).result()

    def close(self) -> None:
        """Stop the children and abandon images in progress. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._pool.stop()
        self._pool.join()
        self._keeper.shutdown()

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
            future = self._living_pool().schedule(_work, args=(data,), timeout=self.timeout_s + self._more_s)
            answer: T = future.result()
        except pebble.ProcessExpired as error:
            if error.exitcode == -signal.SIGALRM:
                raise self._late() from None
            if was_stopped(error.exitcode):
                raise _StoppedChildError("the process that decodes images was stopped by a signal") from None
            raise _suspect(error.exitcode) from None
        except TimeoutError as error:
            if error.args[:1] != ("Task timeout",):  # the worker's own error, not pebble's for the task
                raise
            raise self._late() from None
        except BrokenExecutor as error:
            raise ChildFaultError(
                "the process that decodes images died before it took one. Check that there is enough memory, and that "
                "it can import what this process imports."
            ) from error
        return answer

    def _late(self) -> SuspectError:
        limit = f"ingest.timeout_s = {self.timeout_s:g} seconds"
        return SuspectError(Reason.TIMED_OUT, f"took longer than {limit} allows, twice")

    def _living_pool(self) -> pebble.ProcessPool:
        """Return the pool. If the death of an idle child has broken the pool, restart it first."""
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
            context=BareContext(),
        )
        pool.schedule(os.getpid)  # a pool starts no process before its first task
        return pool


def _suspect(exit_code: int | None) -> SuspectError:
    if exit_code == _OUT_OF_MEMORY_EXIT:
        return SuspectError(Reason.OUT_OF_MEMORY, "needs more memory than the process that decodes images may take")
    if exit_code is not None and exit_code < 0:
        how = signal.Signals(-exit_code).name
    else:
        how = f"exit code {exit_code}"
    return SuspectError(Reason.KILLED_WORKER, f"the process that decoded it died, twice ({how})")


class _BarePopen(popen_spawn_posix.Popen):
    """A child that doesn't import its parent's main module.

    In a Ray worker, the main module is Ray's, and elsewhere it is the user's script. Neither must run in the child.
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


class BareContext(SpawnContext):
    """Multiprocessing context whose processes don't import this process's main module."""

    Process = _BareProcess


def forbid_core_dumps() -> None:
    """Disable core dumps for this process and its future children."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))


# The code below runs in the child.

_worker: Worker[Any] | None = None
_start_error: str | None = None


def _begin(factory: Callable[[], Worker[Any]], memory_limit: int | None) -> None:
    """Prepare the child: make it die with its parent, build the worker, limit memory, and silence decoders."""
    import resource

    global _worker, _start_error
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # pebble's handler would exit with an exit code instead
    guard_child()
    try:
        _worker = factory()
        if memory_limit is not None and sys.platform == "linux":
            limit = _data_bytes() + memory_limit
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        _silence()
    except Exception as error:  # noqa: BLE001 - `_work` reports it with the first image; raised here, it would be lost
        _start_error = f"{type(error).__name__}: {error}"


def _work(data: bytes) -> Any:
    """Apply the worker to one image. If memory runs out, end the process, because its state is unreliable then."""
    if _worker is None:
        raise ChildFaultError(f"the process that decodes images can't start: {_start_error}")
    try:
        return _worker(data)
    except Exception as error:
        if is_out_of_memory(error):
            os._exit(_OUT_OF_MEMORY_EXIT)
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of Python, NumPy, Pillow, torch, ONNX, or OpenCV means that an allocation failed."""
    text = str(error)
    return isinstance(error, MemoryError) or any(
        words in text for words in ("can't allocate memory", "std::bad_alloc", "bad allocation", "Insufficient memory")
    )


def lacks_memory(error: BaseException) -> bool:
    """Return whether an error means that an allocation failed, on a GPU, too."""
    return is_out_of_memory(error) or "out of memory" in str(error)


def _silence() -> None:
    """Discard this process's output, because libtiff prints a line per damaged row of pixels, up to millions."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)


def guard_child() -> None:
    """Make this process die with its parent and leave no core dump, because a core dump would contain an image."""
    import resource

    _die_with_parent()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _die_with_parent() -> None:
    """Make the kernel kill this process when its parent dies, and mark the process as not dumpable (Linux)."""
    parent = multiprocessing.parent_process()
    if sys.platform != "linux" or parent is None:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    libc.prctl(_PR_SET_DUMPABLE, 0)
    if os.getppid() != parent.pid:  # the parent died before the line above
        os._exit(1)


def _data_bytes() -> int:
    """Return the number of bytes of this process that count toward RLIMIT_DATA (proc_pid_status(5), VmData)."""
    with open("/proc/self/status") as status:  # noqa: PTH123 - a Path adds nothing
        for line in status:
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmData")
