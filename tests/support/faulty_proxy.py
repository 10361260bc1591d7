"""A proxy in front of an HTTP server that fails on demand: loses answers, cuts and stalls bodies, lies, is down."""

import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

LOSE_ANSWER = b"lose"  # the server does the work, the client never hears of it
CUT_BODY = b"cut"  # the head announces the whole body, half of it comes
RESET_BODY = b"reset"  # half of the body comes, then the connection is reset
STALL_BODY = b"stall"  # half of the body comes, then nothing for as long as the client waits
DRIP_BODY = b"drip"  # half of the body comes, then a byte every tenth of a second
SHORT_LENGTH = b"short"  # the head announces half of the body, and half comes: a whole answer, but for its end
LONG_LENGTH = b"long"  # the head announces a hundred bytes more than there are
STALL_REQUEST = b"deaf"  # the body of the request is never read
REFUSE = b"refuse"  # the connection is reset before anything is read

_NO_LINGER = struct.pack("ii", 1, 0)


class FaultyProxy:
    """Forwards requests to a port of 127.0.0.1.

    `plan` holds (method, fault), each used once, in order. What `policy`, given the method and the target of a request,
    answers is the fault of all others; none is b"". A fault is one of the above, or whole bytes of an HTTP answer to
    give without asking the server.
    """

    def __init__(self, upstream_port: int) -> None:
        self._upstream_port = upstream_port
        listener = socket.create_server(("127.0.0.1", 0))
        self._listener: socket.socket | None = listener
        self._port = listener.getsockname()[1]
        self._closed = False
        self._clients: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.plan: list[tuple[str, bytes]] = []
        self.policy: Callable[[str, str], bytes] = lambda method, target: b""
        self.requests: list[str] = []
        self._listen(listener)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def close(self) -> None:
        """Go down permanently."""
        self._closed = True
        self.go_down()

    def go_down(self) -> None:
        """Refuse connections, and reset open ones."""
        with self._lock:
            listener, self._listener = self._listener, None
            clients, self._clients = self._clients, set()
        if listener is not None:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            listener.close()
        for client in clients:
            with suppress(OSError):
                _reset_at_close(client)
                client.shutdown(socket.SHUT_RDWR)  # wakes the thread that serves it

    def come_up(self) -> None:
        """Take connections again, at the same port."""
        with self._lock:
            if self._closed or self._listener is not None:
                return
            self._listener = socket.create_server(("127.0.0.1", self._port))
        self._listen(self._listener)

    def be_out_for(self, seconds: float) -> None:
        """Go down now, and come up after `seconds`."""
        self.go_down()
        timer = threading.Timer(seconds, self.come_up)
        timer.daemon = True
        timer.start()

    def _listen(self, listener: socket.socket) -> None:
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with self._lock:
                self._clients.add(client)
            threading.Thread(target=self._serve_one, args=(client,), daemon=True).start()

    def _serve_one(self, client: socket.socket) -> None:
        try:
            with suppress(OSError):
                self._serve(client)
        finally:
            with self._lock:
                self._clients.discard(client)
            client.close()

    def _serve(self, client: socket.socket) -> None:
        with client.makefile("rb") as stream:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                line = stream.readline()
                if not line:
                    return
                head += line
            method, target, *_ = head.decode("latin-1").split(" ")
            fault = self._fault(method, target)
            if fault == REFUSE:
                _reset_at_close(client)
                return
            if b"100-continue" in head.lower():
                client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            if fault == STALL_REQUEST:
                _hold(client, drip=False)
                return
            length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
            body = stream.read(int(length.group(1))) if length else b""
            if fault.startswith(b"HTTP/"):
                client.sendall(fault.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if method == "HEAD" else fault)
                return
            answer = self._ask(re.sub(rb"(?i)\r\n(expect|connection):[^\r]*", b"", head), body)
            if fault != LOSE_ANSWER:
                _spoil(client, answer, fault)

    def _fault(self, method: str, target: str) -> bytes:
        with self._lock:
            self.requests.append(method)
            if self.plan and self.plan[0][0] == method:
                return self.plan.pop(0)[1]
        return self.policy(method, target)

    def _ask(self, head: bytes, body: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self._upstream_port)) as server:
            server.sendall(head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1) + body)
            return b"".join(iter(lambda: server.recv(1 << 16), b""))


def _spoil(client: socket.socket, answer: bytes, fault: bytes) -> None:
    start = answer.index(b"\r\n\r\n") + 4
    half = start + (len(answer) - start) // 2
    if fault == SHORT_LENGTH:
        answer = _announce(answer[:start], half - start) + answer[start:half]
    elif fault == LONG_LENGTH:
        answer = _announce(answer[:start], len(answer) - start + 100) + answer[start:]
    client.sendall(answer[:half] if fault in (CUT_BODY, RESET_BODY, STALL_BODY, DRIP_BODY) else answer)
    if fault == RESET_BODY:
        _reset_at_close(client)
    elif fault in (STALL_BODY, DRIP_BODY):
        _hold(client, drip=fault == DRIP_BODY)


def _announce(head: bytes, length: int) -> bytes:
    return re.sub(rb"(?i)(content-length: )\d+", rb"\g<1>%d" % length, head)


def _hold(client: socket.socket, *, drip: bool) -> None:
    """Keep the connection until the client gives up, a minute at most."""
    client.settimeout(0.1)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            if client.recv(1, socket.MSG_PEEK) == b"":
                return
            time.sleep(0.1)  # what the client sends stays unread
        except TimeoutError:
            pass
        if drip:
            client.sendall(b".")


def _reset_at_close(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)


@contextmanager
def faulty_proxy(upstream_port: int) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(upstream_port)
    try:
        yield proxy
    finally:
        proxy.close()


def answer(status: int, code: str) -> bytes:
    """An S3 error as bytes on the wire."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>as planned</Message></Error>".encode()
    head = f"HTTP/1.1 {status} Planned\r\nContent-Length: {len(body)}\r\nContent-Type: application/xml\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + body
