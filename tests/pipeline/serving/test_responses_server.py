"""The socket that every page's server listens on."""

import socket

from segmint.pipeline.serving.responses import listen


def test_no_answer_waits_until_its_headers_are_confirmed() -> None:
    with listen(0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
