"""A proxy in front of an HTTP server that misbehaves as told: loses answers, cuts bodies, answers for the server."""

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

LOSE_ANSWER = b"lose"  # the server does the work, the client never hears of it
CUT_BODY = b"cut"  # the head announces the whole body, half of it comes


class FaultyProxy:
    """Forwards requests to a port of 127.0.0.1; `plan` holds (method, fault), each used once, in order.

    A fault is `LOSE_ANSWER`, `CUT_BODY`, or whole bytes of an HTTP answer to give without asking the server.
    """

    def __init__(self, upstream_port: int) -> None:
        self._upstream_port = upstream_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.plan: list[tuple[str, bytes]] = []
        self.requests: list[str] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, client.makefile("rb") as stream:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                line = stream.readline()
                if not line:
                    return
                head += line
            if b"100-continue" in head.lower():
                client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            body = stream.read(int(length.group(1))) if length else b""
            method = head.split(b" ", 1)[0].decode()
            self.requests.append(method)
            fault = self.plan.pop(0)[1] if self.plan and self.plan[0][0] == method else b""
            if fault.startswith(b"HTTP/"):
                client.sendall(fault)
                return
            answer = self._ask(re.sub(rb"(?i)\r\n(expect|connection):[^\r]*", b"", head), body)
            if fault == LOSE_ANSWER:
                return
            if fault == CUT_BODY:
                start = answer.index(b"\r\n\r\n") + 4
                answer = answer[: start + (len(answer) - start) // 2]
            client.sendall(answer)

    def _ask(self, head: bytes, body: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self._upstream_port)) as server:
            server.sendall(head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1) + body)
            return b"".join(iter(lambda: server.recv(1 << 16), b""))


@contextmanager
def faulty_proxy(upstream_port: int) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(upstream_port)
    try:
        yield proxy
    finally:
        proxy.close()


def answer(status: int, code: str) -> bytes:
    """An S3 error as bytes on the wire."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>as told</Message></Error>".encode()
    head = f"HTTP/1.1 {status} Told\r\nContent-Length: {len(body)}\r\nContent-Type: application/xml\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + body
