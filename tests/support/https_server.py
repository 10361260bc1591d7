"""A real https server on the loopback with its own certificate, and a downloader that may reach it."""

import datetime
import http.server
import ipaddress
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from segmint.infra.https import Downloader

HOST = "photos.example"


@dataclass
class Answer:
    """Response of the server to a path. `length` replaces the real Content-Length."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    failures: int = 0  # requests that get the status 503 first
    says_end: bool = False  # whether TLS's end marker follows


class HttpsServer:
    """The running server, its answers by path, and the number of requests by path."""

    def __init__(self, folder: Path) -> None:
        self.answers: dict[str, Answer] = {}
        self.requests: Counter[str] = Counter()
        self.most_at_once = 0
        self._now = 0
        self._lock = threading.Lock()
        self.hold_s = 0.0
        certificate, key = _certificate(folder)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.context = ssl.create_default_context(cafile=str(certificate))
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with outer._counted(self.path):
                    outer._answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def url(self, path: str, host: str = HOST) -> str:
        """Return the URL of a path."""
        return f"https://{host}:{self.port}{path}"

    def downloader(self, **options: Any) -> Downloader:
        """Return a downloader whose names are all this server's."""
        known: dict[str, Any] = {
            "resolve_host": lambda host, port: ["127.0.0.1"],
            "is_allowed": lambda address: address == "127.0.0.1",
            "context": self.context,
            "waits_s": (0.0, 0.0),
        }
        limits = {"max_bytes": options.pop("max_bytes", 1 << 20), "per_host": options.pop("per_host", 4)}
        return Downloader(**limits, **known | options)

    def stop(self) -> None:
        """Stop the server."""
        self._server.shutdown()
        self._server.server_close()

    @contextmanager
    def _counted(self, path: str) -> Iterator[None]:
        with self._lock:
            self.requests[path] += 1
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        if self.hold_s:
            threading.Event().wait(self.hold_s)
        try:
            yield
        finally:
            with self._lock:
                self._now -= 1

    def _answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        answer = self.answers.get(request.path, Answer(status=404))
        status = 503 if self.requests[request.path] <= answer.failures else answer.status
        request.send_response(status)
        for name, value in answer.headers.items():
            request.send_header(name, value)
        body = answer.body if status == 200 else b""
        if answer.length != -1:
            request.send_header("Content-Length", str(len(body) if answer.length is None else answer.length))
        request.end_headers()
        request.wfile.write(body)
        if answer.says_end:
            request.wfile.flush()
            with suppress(OSError):  # the client doesn't wait for the end
                request.connection.unwrap()


def _certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName(HOST), x509.DNSName(f"*.{HOST}"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    return paths


@contextmanager
def https_server(folder: Path) -> Iterator[HttpsServer]:
    """Run a server."""
    server = HttpsServer(folder)
    try:
        yield server
    finally:
        server.stop()
