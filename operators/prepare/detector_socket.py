"""Protocol between image-decoding children and the detector process: a Unix socket and anonymous shared memory.

A request consists of a header, and the descriptor of a sealed memfd that contains the pixels. A reply consists of a
header, the detector's name, and JSON or a message. Children decode untrusted bytes, so neither side unpickles anything.
Unlike a file, a memfd leaves nothing behind when a process ends, and a container's 64 MB limit for /dev/shm doesn't
apply to it.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import TypeAdapter, ValidationError

from segmint.infra.arrays import Box, Pixels
from segmint.infra.errors import SegmintError
from segmint.model.detectors.detection import Detection, Kind, Quad

WAIT_S = 60.0
"""Time in seconds that a child waits for the reply to one search, including the request's time in the queue."""

FOUND, FAILED, SHORT_OF_MEMORY, REFUSED = range(4)
"""Kinds of replies: detections, an error of the detector, and two errors of the detector process itself."""

_KINDS: tuple[Kind, ...] = ("face", "plate")
_MAGIC = b"sgm1"
_REQUEST = struct.Struct("<4sIIId?")  # magic, index into `_KINDS`, height, width, highest minimum score, is a view
_REPLY = struct.Struct("<4sIII")  # magic, kind of reply, bytes of the detector's name, bytes of the rest
_FOUND = TypeAdapter(list[tuple[float, Box, Quad | None]])
"""Score, box, and corners of each detection in a reply. JSON has all digits of a number, and null for infinity."""
_MOST_FOUND, _MOST_BYTES = 100_000, 1 << 26
_MOST_NAME, _MOST_TEXT = 4096, 2000
_LEAVE_S = 10.0
_PEER = struct.Struct("3i")  # SO_PEERCRED: process, user, group


class DetectorProcessError(SegmintError):
    """Raised when the detector process sends no reply or an invalid one. No image is to blame."""


class BadRequestError(SegmintError):
    """Raised for a malformed request."""


class FailedSearchError(RuntimeError):
    """Raised when a detector raises an exception for an image. The message is the exception's last line."""


@dataclass(frozen=True)
class Request:
    """Kind to search for, and an image, (height, width, 3) uint8 RGB. The descriptor `memory` refers to its pixels.

    If `score` is lower than the detector's own minimum score, it replaces that score. If `is_view`, the image is a view
    of a candidate, for `look`.
    """

    kind: Kind
    height: int
    width: int
    memory: int
    score: float = 1.0
    is_view: bool = False


class RemoteDetector:
    """A `Detector` whose searches run in another process, which listens on the socket `address`."""

    def __init__(self, kind: Kind, name: str, address: str) -> None:
        """`name` is used until the first reply, which states the detector's actual name."""
        self.kind: Kind = kind
        self.name = name
        self.score = 1.0  # the process applies the detector's own minimum score if it is lower
        self._address = address

    def detect(self, image: Pixels) -> list[Detection]:
        """Search `image`, (H, W, 3) uint8 RGB. Detections are in its pixels, sorted by score from best to worst.

        Raises `FailedSearchError` if the detector fails, and `DetectorProcessError` if the process fails.
        """
        return self._search(image, is_view=False)

    def look(self, window: Pixels) -> list[Detection]:
        """Search a view of a candidate with a bundled detector's `look`. Raises the same errors as `detect`."""
        return self._search(window, is_view=True)

    def _search(self, image: Pixels, *, is_view: bool) -> list[Detection]:
        height, width = image.shape[:2]
        try:
            with sealed_memory(image) as memory, connected(self._address, WAIT_S) as connection:
                header = _REQUEST.pack(_MAGIC, _KINDS.index(self.kind), height, width, self.score, is_view)
                socket.send_fds(connection, [header], [memory])
                what, name, rest = _receive_reply(connection)
        except (OSError, EOFError) as error:
            raise DetectorProcessError(
                f"the process that searches images on the GPU didn't reply ({type(error).__name__}: {error}); the "
                "image is searched again"
            ) from error
        self.name = name or self.name
        if what == FOUND:
            return _unpack(rest, self.kind, self.name)
        if what == FAILED:
            raise FailedSearchError(rest.decode(errors="replace"))
        raise DetectorProcessError(f"the process that searches images on the GPU: {rest.decode(errors='replace')}")


@contextlib.contextmanager
def sealed_memory(image: Pixels) -> Iterator[int]:
    """Copy an image's pixels to a memfd, seal it against any change, and yield its descriptor."""
    memory = os.memfd_create("segmint-pixels", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        rest = np.ascontiguousarray(image).data.cast("B")
        while rest:
            rest = rest[os.write(memory, rest) :]
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _seals())
        yield memory
    finally:
        os.close(memory)


def _seals() -> int:
    """Return the seals against shrinking, growing, and writing. They exist only on Linux."""
    return fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


@contextlib.contextmanager
def connected(address: str, wait_s: float) -> Iterator[socket.socket]:
    """Connect to a socket of the same user in Linux's abstract namespace, where sockets aren't files."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(wait_s)
        connection.connect(f"\0{address}")
        if not is_own(connection):
            raise PermissionError(f"another user is listening on the socket {address}")
        yield connection


def is_answering(address: str, wait_s: float) -> bool:
    """Return whether a process replies at an address, or is just too busy to reply within `wait_s` seconds."""
    try:
        with connected(address, wait_s) as connection:
            invalid = _REQUEST.pack(_MAGIC, len(_KINDS), 0, 0, 0.0, False)
            connection.sendall(invalid)  # the process rejects it
            _receive_reply(connection)
    except (BlockingIOError, TimeoutError):
        return True
    except (OSError, EOFError):
        return False
    return True


def listen(address: str, backlog: int) -> socket.socket:
    """Listen at an address for `connected`. If a process that is ending still uses it, wait up to `_LEAVE_S`."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    last_try = time.monotonic() + _LEAVE_S
    while True:
        try:
            listener.bind(f"\0{address}")
            listener.listen(backlog)
            return listener
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > last_try:
                raise
        time.sleep(0.1)


def is_own(connection: socket.socket) -> bool:
    """Return whether the process at the other end runs as this user."""
    _, user, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return bool(user == os.getuid())


@contextlib.contextmanager
def received_request(connection: socket.socket, max_pixels: int) -> Iterator[Request]:
    """Yield a request of at most `max_pixels` and close its memory afterward. Raise `BadRequestError` if invalid."""
    header, memories, _, _ = socket.recv_fds(connection, _REQUEST.size, 1)
    try:
        header += _receive(connection, _REQUEST.size - len(header))
        magic, kind, height, width, score, is_view = _REQUEST.unpack(header)
        if magic != _MAGIC or kind >= len(_KINDS) or len(memories) != 1:
            raise BadRequestError("expected a header and one descriptor")
        if not 0 < height * width <= max_pixels:
            raise BadRequestError(f"expected 1 to {max_pixels:,} pixels, got {height} x {width}")
        if not 0 < score <= 1:  # NaN, too
            raise BadRequestError(f"expected a score over 0 and up to 1, got {score}")
        _check_memory(memories[0], height * width * 3)
        yield Request(_KINDS[kind], height, width, memories[0], score, is_view)
    finally:
        for memory in memories:
            os.close(memory)


def _check_memory(memory: int, size: int) -> None:
    """Raise `BadRequestError` unless `memory` is sealed and has exactly `size` bytes. Reading it can't block then."""
    found = os.fstat(memory)
    try:
        seals = fcntl.fcntl(memory, fcntl.F_GET_SEALS)
    except OSError:
        seals = 0
    if not stat.S_ISREG(found.st_mode) or seals & _seals() != _seals() or found.st_size != size:
        raise BadRequestError(f"expected sealed memory of {size:,} bytes, got {found.st_size:,} with seals {seals:#x}")


def copied_pixels(request: Request) -> Pixels:
    """Copy a request's image to this process's memory."""
    with mmap.mmap(request.memory, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as pixels:
        return np.frombuffer(pixels, np.uint8).reshape(request.height, request.width, 3).copy()


def send_detections(connection: socket.socket, name: str, found: Sequence[Detection]) -> None:
    """Send a detector's name and its detections."""
    rows = [(each.score, each.box, each.quad) for each in found[:_MOST_FOUND]]
    _send(connection, FOUND, name, _FOUND.dump_json(rows))


def send_error(connection: socket.socket, what: int, name: str, text: str) -> None:
    """Send an error of kind `FAILED`, `SHORT_OF_MEMORY`, or `REFUSED`."""
    _send(connection, what, name, text[:_MOST_TEXT].encode(errors="replace"))


def _send(connection: socket.socket, what: int, name: str, rest: bytes) -> None:
    called = name.encode(errors="replace")[:_MOST_NAME]
    connection.sendall(_REPLY.pack(_MAGIC, what, len(called), len(rest)) + called + rest)


def _receive_reply(connection: socket.socket) -> tuple[int, str, bytes]:
    """Return a reply's kind, the detector's name, and the remaining bytes."""
    magic, what, name, rest = _REPLY.unpack(_receive(connection, _REPLY.size))
    if magic != _MAGIC or name > _MOST_NAME or rest > _MOST_BYTES:
        raise EOFError("the reply has an unexpected format")
    return what, _receive(connection, name).decode(errors="replace"), _receive(connection, rest)


def _receive(connection: socket.socket, size: int) -> bytes:
    """Read exactly `size` bytes. Raise `EOFError` if the peer closes the connection before that."""
    data = bytearray()
    while len(data) < size:
        piece = connection.recv(min(size - len(data), 1 << 16))
        if not piece:
            raise EOFError("it closed the connection")
        data += piece
    return bytes(data)


def _unpack(data: bytes, kind: Kind, name: str) -> list[Detection]:
    try:
        found = _FOUND.validate_json(data)
    except ValidationError as error:
        raise DetectorProcessError("the process that searches images on the GPU: a detection isn't finite") from error
    return [Detection(kind, score, box, quad, name) for score, box, quad in found]
