"""A small S3 server in a thread, whose answers a test can replace: other versions, pages, heads, and refusals."""

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape

MODIFIED = "Tue, 03 Feb 2026 04:05:06 GMT"
BUCKET = "acme"


class Request(NamedTuple):
    """A request for an object of the bucket, or for the bucket, whose key is empty."""

    method: str
    key: str
    query: Mapping[str, str]
    headers: Mapping[str, str]  # the names are in lower case


@dataclass
class Answer:
    """An answer. `length` is what Content-Length says, or None to leave it out and send the body in chunks."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = -1  # -1: the length of the body


class TinyS3:
    """Objects of one bucket. `policy` may replace the answer to a request; it gets the one that S3 would give."""

    def __init__(self) -> None:
        self.reset()
        handler = type("Handler", (_Handler,), {"store": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def reset(self) -> None:
        """Forget the objects, the requests, and the policy. The clients of this server can stay."""
        self.objects: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self._parts: dict[str, bytes] = {}
        self.policy: Callable[[Request, Answer], Answer] = lambda request, answer: answer

    @property
    def options(self) -> dict[str, dict[str, Any]]:
        """Storage options that lead every s3:// URI here, without credentials."""
        port = self._server.server_address[1]
        return {"s3://": {"endpoint_url": f"http://127.0.0.1:{port}", "anon": True, "region": "us-east-1"}}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: Request, body: bytes) -> Answer:
        self.requests.append(request)
        return self.policy(request, self.usual(request, body))

    def usual(self, request: Request, body: bytes) -> Answer:
        """Return the answer that S3 would give."""
        if not request.key:
            keys = [key for key in sorted(self.objects) if key.startswith(request.query.get("prefix", ""))]
            return listing(keys, sizes={key: len(self.objects[key]) for key in keys})
        if request.method == "POST":  # a multipart upload begins or ends
            if "uploadId" not in request.query:
                return Answer(200, b"<R><UploadId>1</UploadId></R>")
            parts = [self._parts.pop(name) for name in sorted(self._parts, key=int)]
            self.objects[request.key] = b"".join(parts)
            return Answer(200, b"<R></R>")
        if request.method == "PUT":
            if "partNumber" in request.query:
                self._parts[request.query["partNumber"]] = body
            else:
                self.objects[request.key] = body
            return Answer(200, headers={"ETag": f'"{hashlib.md5(body).hexdigest()}"'})
        if request.method == "DELETE":
            self.objects.pop(request.key, None)
            return Answer(204)
        if request.key not in self.objects:
            return refusal(404, "NoSuchKey")
        data = self.objects[request.key]
        etag = f'"{hashlib.md5(data).hexdigest()}"'
        if request.headers.get("if-match", etag) != etag:
            return refusal(412, "PreconditionFailed")
        headers = {"ETag": etag, "Last-Modified": MODIFIED}
        if "range" not in request.headers:
            return Answer(200, data, headers)
        first, _, last = request.headers["range"].removeprefix("bytes=").partition("-")
        if int(first) >= len(data):
            return refusal(416, "InvalidRange")
        piece = data[int(first) : int(last) + 1]
        end = int(first) + len(piece) - 1
        return Answer(206, piece, headers | {"Content-Range": f"bytes {first}-{end}/{len(data)}"})


def refusal(status: int, code: str) -> Answer:
    """An error of S3."""
    return Answer(
        status, f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>as planned</Message></Error>".encode()
    )


def listing(
    keys: list[str],
    token: str | None = None,
    *,
    truncated: bool = False,
    folders: tuple[str, ...] = (),
    sizes: Mapping[str, int] = MappingProxyType({}),
) -> Answer:
    """A page of a listing. Objects without a size have one byte."""
    modified = "<LastModified>2026-02-03T04:05:06.000Z</LastModified>"
    entries = "".join(
        f"<Contents><Key>{escape(key)}</Key><Size>{sizes.get(key, 1)}</Size>{modified}</Contents>" for key in keys
    )
    entries += "".join(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in folders)
    if token is not None:
        entries += f"<NextContinuationToken>{token}</NextContinuationToken>"
    text = f"<ListBucketResult><IsTruncated>{str(truncated).lower()}</IsTruncated>{entries}</ListBucketResult>"
    return Answer(200, text.encode())


class _Handler(BaseHTTPRequestHandler):
    store: TinyS3
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = urlsplit(self.path)
        key = unquote(parts.path).removeprefix(f"/{BUCKET}").removeprefix("/")
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, key, dict(parse_qsl(parts.query, keep_blank_values=True)), headers)
        answer = self.store.answer(request, body)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        body = b"" if self.command == "HEAD" else answer.body
        if answer.length is None:
            self.send_header("Transfer-Encoding", "chunked")
            body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in _pieces(body)) + b"0\r\n\r\n"
        else:
            self.send_header("Content-Length", str(len(answer.body) if answer.length < 0 else answer.length))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def _pieces(body: bytes) -> list[bytes]:
    return [body[start : start + 1000] for start in range(0, len(body), 1000)]


@contextmanager
def tiny_s3() -> Iterator[TinyS3]:
    """Run a server until the block ends."""
    server = TinyS3()
    try:
        yield server
    finally:
        server.close()
