"""Process that runs a node's detectors on its GPU and searches images for the sandboxed children.

All children of the node share the CUDA context of this process and its copy of the networks. If a search misses its
deadline, the process ends. `DetectorProcess` then starts another one.
"""

import os
import secrets
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

from segmint.infra.device import Compute, apply_compute, device_failure, device_kind, resolve_compute
from segmint.infra.errors import SegmintError, UsageError, last_line
from segmint.infra.stopping import Deadline, was_stopped
from segmint.infra.storage.storage import Storage
from segmint.model.detectors.detection import CandidateDetector, Detection, Detector, Find, lenient
from segmint.operators.child import BareContext, guard_child
from segmint.operators.prepare.deidentify import (
    DeidentifyConfig,
    blames_nothing,
    build_detectors,
    pinned_files,
)
from segmint.operators.prepare.detector_socket import (
    FAILED,
    REFUSED,
    SHORT_OF_MEMORY,
    WAIT_S,
    BadRequestError,
    RemoteDetector,
    Request,
    copied_pixels,
    is_answering,
    is_own,
    listen,
    received_request,
    send_detections,
    send_error,
)

WAITS_S = 12.5 * WAIT_S
"""Time in seconds that a step may spend waiting for replies, in addition to its time limit.

A step needs up to 7 searches for faces, 1 search for plates, and some searches of windows and views in the source.
"""

MOST_DEATHS, DEATHS_WITHIN_S = 5, 600.0
"""Maximum number of deaths of a node's process within this many seconds. After one more, the window ends."""

SEARCH_S = 30.0
START_S = 600.0
_REQUEST_S = 10.0  # time limit for receiving a whole request, and for sending a reply
_END_S = 5.0  # time limit for a dying process to finish
_CONNECTIONS, _BACKLOG = 64, 4096
_AT_ONCE = 4  # number of images in memory, because the CPU resizes some while the GPU searches another
_BROKEN_EXIT = 88


class DetectorsGoneError(SegmintError):
    """Raised when a node's detector process can't start or died too often. The run stops. No image is to blame."""


class DetectorHost(Protocol):
    """Interface of a detector process as `Prepare` needs it: an address and a health check."""

    @property
    def address(self) -> str:
        """Name of the socket that the process listens on."""

    def ready(self) -> None:
        """Start or restart the process if needed, and wait until it listens. Raises `DetectorsGoneError`."""


@dataclass(frozen=True)
class DetectorSettings:
    """Settings of a detector process."""

    deidentify: DeidentifyConfig
    max_pixels: int  # maximum number of pixels in an image
    storage: Storage
    assets: str | None = None  # a folder that mirrors weight files
    detector_sha256: Mapping[str, str] = field(default_factory=dict)  # of detector files, keyed by name in `deidentify`
    numerics: str = ""  # required value of `detector_numerics`; "": any
    search_s: float = SEARCH_S  # time limit for one search


def detector_numerics(device: str) -> str:
    """Return the device and versions that determine the bits of detections, as recorded in a dataset's numerics.

    Raises `UsageError` if this machine doesn't have the device.
    """
    import torch

    try:
        compute = resolve_compute(device, "fp32", 1)
    except UsageError as error:
        raise UsageError(f"deidentify.device: {error}") from error
    kind = device_kind(compute)
    if compute.kind == "cpu":
        return kind
    return f"{kind}, CUDA {torch.version.cuda}"


def require_numerics(device: str, wanted: str) -> None:
    """Raise `UsageError` if this machine's `detector_numerics` differ from `wanted`. An empty `wanted` allows any."""
    here = detector_numerics(device)
    if wanted and here != wanted:
        raise UsageError(
            f"this machine's detections would differ from the dataset's in the last bits: detectors {here!r} instead "
            f"of {wanted!r}. Use the same machines and versions, or set allow_mixed_numerics: true."
        )


def remote_detectors(config: DeidentifyConfig, address: str) -> tuple[RemoteDetector, ...]:
    """Return clients for the requested detectors, faces before plates. The process at `address` runs the detectors.

    This function doesn't start a process or load anything.
    """
    return tuple(
        RemoteDetector(kind, Path(part.detector.partition("#")[0]).name, address)
        for kind, part in config.requested.items()
    )


class DetectorProcess:
    """Supervisor that starts and restarts a detector process. The process ends along with the owner of this object."""

    def __init__(self, settings: DetectorSettings, address: str | None = None) -> None:
        """Store the settings without starting anything. The default `address` is new and unique."""
        self.address = address or new_address()
        self._settings = settings
        self.process: BaseProcess | None = None
        self._deaths: deque[float] = deque(maxlen=MOST_DEATHS + 1)
        self._lock = threading.Lock()
        # Linux kills a child when the thread that started it ends.
        self._keeper = ThreadPoolExecutor(1, thread_name_prefix="detectors")

    def ready(self) -> None:
        """Start or restart the process if needed, and wait until it listens. Raises `DetectorsGoneError`."""
        with self._lock:
            before, self.process = self.process, None
            if before is not None:
                if self._listens(before):
                    self.process = before
                    return
                self._note_death(before)
            self.process = self._keeper.submit(self._start).result()

    def _listens(self, process: BaseProcess) -> bool:
        """Return whether a process accepts connections. If it doesn't, or is about to exit, kill it."""
        if process.is_alive():
            if is_answering(self.address, _REQUEST_S):
                return True
            process.join(_END_S)
        process.kill()
        process.join()
        return False

    def close(self) -> None:
        """Stop the process. Idempotent."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
        self._keeper.shutdown()

    def _note_death(self, process: BaseProcess) -> None:
        if was_stopped(process.exitcode):
            return
        self._deaths.append(time.monotonic())
        if len(self._deaths) > MOST_DEATHS and self._deaths[-1] - self._deaths[0] < DEATHS_WITHIN_S:
            raise DetectorsGoneError(
                f"the process that searches images for faces and plates (deidentify.device) died {MOST_DEATHS + 1} "
                f"times within {DEATHS_WITHIN_S / 60:g} minutes, most recently {_how(process.exitcode)}. Check the GPU "
                f"and memory of {socket.gethostname()}, then build again."
            )

    def _start(self) -> BaseProcess:
        context = BareContext()
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(self._settings, self.address, sender), daemon=True)
        process.start()
        sender.close()
        try:
            problem = receiver.recv() if receiver.poll(START_S) else f"not ready within {START_S:g} seconds"
        except EOFError:
            process.join()
            problem = f"it ended, {_how(process.exitcode)}"
        finally:
            receiver.close()
        if problem is None:
            return process
        process.kill()
        process.join()
        raise DetectorsGoneError(
            f"the process that searches images for faces and plates (deidentify.device) can't start on "
            f"{socket.gethostname()}: {problem}"
        )


def new_address() -> str:
    """Return a unique name for a socket."""
    return f"segmint-detectors-{secrets.token_hex(8)}"


def _how(exit_code: int | None) -> str:
    if exit_code == -signal.SIGALRM:
        return "because a search took too long"
    if exit_code == _BROKEN_EXIT:
        return "because of a persistent GPU error"
    return f"by {signal.Signals(-exit_code).name}" if exit_code and exit_code < 0 else f"with exit code {exit_code}"


# The code below runs in the process.


def _run(settings: DetectorSettings, address: str, sender: Connection) -> None:
    """Build the detectors, report success or the error to the supervisor, and serve requests."""
    guard_child()
    try:
        detectors = _build(settings)
        listener = listen(address, _BACKLOG)
    except Exception as error:  # noqa: BLE001 - the process that waits for this one reports it
        sender.send(str(error) or type(error).__name__)
        return
    sender.send(None)
    sender.close()
    import torch

    # Each search with a TorchScript file disables this for all threads, then restores it. Keep it disabled throughout.
    with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
        Server(detectors, settings).run(listener)


def _build(settings: DetectorSettings) -> Sequence[Detector]:
    require_numerics(settings.deidentify.device, settings.numerics)
    apply_compute(Compute(settings.deidentify.device, "fp32", 1))
    find = pinned_files(settings.storage, settings.assets, settings.detector_sha256)
    return build_detectors(settings.deidentify, find, threads=1)


class Server:
    """Server that handles each request in a thread and limits the number of concurrent searches."""

    def __init__(self, detectors: Sequence[Detector], settings: DetectorSettings) -> None:
        self._detectors = {detector.kind: detector for detector in detectors}
        self._device = settings.deidentify.device
        self._max_pixels = settings.max_pixels
        self._deadline = Deadline(settings.search_s)
        self._connections = threading.Semaphore(_CONNECTIONS)
        self._turns = threading.Semaphore(_AT_ONCE)

    def run(self, listener: socket.socket) -> None:
        """Serve requests until this process ends."""
        threads = ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="detectors")
        while True:
            self._connections.acquire()
            connection, _ = listener.accept()
            threads.submit(self.serve, connection)

    def serve(self, connection: socket.socket) -> None:
        """Reply to one request and close the connection. A process of another user gets no reply."""
        try:
            with connection:
                connection.settimeout(_REQUEST_S)
                if is_own(connection):
                    self._answer(connection)
        except (OSError, EOFError):
            pass  # the child has ended or doesn't read the reply
        finally:
            self._connections.release()

    def _answer(self, connection: socket.socket) -> None:
        name = ""
        try:
            with received_request(connection, self._max_pixels) as request:
                detector = self._detectors.get(request.kind)
                if detector is None:
                    raise BadRequestError(f"there is no detector of {request.kind}s")
                name = detector.name
                with self._turns:
                    found = self.search(detector, request)
        except BadRequestError as error:
            send_error(connection, REFUSED, name, str(error))
        except (OSError, EOFError):
            raise
        except Exception as error:  # noqa: BLE001 - a detector's file is somebody's code, and raises anything
            if blames_nothing(error):
                text = "not enough memory on the GPU or machine for a search, or a package is missing"
                send_error(connection, SHORT_OF_MEMORY, name, text)
            else:
                if device_failure(self._device) is not None:
                    os._exit(_BROKEN_EXIT)
                send_error(connection, FAILED, name, last_line(error))
        else:
            send_detections(connection, name, found)

    def search(self, detector: Detector, request: Request) -> Sequence[Detection]:
        image = copied_pixels(request)
        search: Find
        if not request.is_view:
            search = lenient(detector, request.score).detect
        elif isinstance(detector, CandidateDetector):
            search = detector.look
        else:
            raise BadRequestError(f"the {detector.kind} detector {detector.name} can't search views of candidates")
        with self._deadline.running():
            try:
                return search(image)
            except Exception as error:
                if not self._device.startswith("cuda") or not blames_nothing(error):
                    raise
            import torch

            torch.cuda.empty_cache()  # frees the memory that torch caches
            return search(image)
