"""Local web server on 127.0.0.1 that runs until it is interrupted."""

import signal
import socket
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.applications import Starlette

from segmint.infra.errors import UsageError
from segmint.infra.stopping import release_signals

_HOST = "127.0.0.1"
_LAST_ANSWERS_S = 3


def run_app(app: Starlette, listener: socket.socket, address: str | None = None) -> None:
    """Serve an application on a listening socket until the process receives SIGINT or SIGTERM.

    If `address` is given, opens it in this machine's browser.
    """
    import uvicorn

    if address is not None:
        # Opening some browsers blocks until they are closed, but the server must run in the meantime.
        threading.Thread(target=webbrowser.open, args=[address], daemon=True).start()

    server = uvicorn.Server(
        uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            log_level="warning",
            access_log=False,  # log lines would contain keys
            server_header=False,
            timeout_graceful_shutdown=_LAST_ANSWERS_S,
        )
    )
    with _ended_by_signals():
        server.run(sockets=[listener])


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """End the block quietly on SIGINT and SIGTERM. Every `finally` runs."""
    release_signals()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)


def listen(port: int) -> socket.socket:
    """Listen on a port of 127.0.0.1. Port 0 picks a free port. Raises `UsageError` if the port is in use."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Without this option, a response's body would wait up to 40 ms until the browser has acknowledged the headers.
    # asyncio only sets it for sockets that it creates itself. Accepted connections inherit it from the listener.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        listener.bind((_HOST, port))
    except OSError as error:
        listener.close()
        raise UsageError(f"--port {port}: cannot listen on {_HOST}:{port}: {error.strerror}") from error
    listener.listen()
    return listener
