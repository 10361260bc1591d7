"""Downloads over https from public servers, for `segmint catalog collect`. Builds never use them.

The URLs come from a catalog, so they are untrusted: they must not reach services of the machine's own network. Each
name is resolved here, and the connection goes to the very address that was checked, so a name that resolves to another
address the next time (DNS rebinding) gains nothing. Proxies aren't used.
"""

import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from email.message import Message
from typing import NamedTuple
from urllib.parse import quote, urljoin, urlsplit

from segmint.infra.uris import UriNotAllowedError
from segmint.infra.version import VERSION

_TIMEOUT_S = 30.0  # without any byte
_MOST_S = 600.0  # for one file
_MOST_REDIRECTS = 5
_NOT_PUBLIC = "its host has no public address"
_MOST_FAULTS = 20
"""Number of failed downloads after which a host counts as down, and of failed hosts after which the network does."""

_REDIRECTS = {301, 302, 303, 307, 308}
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_PIECE = 1 << 20
_HEADERS = {"User-Agent": f"segmint/{VERSION}", "Accept-Encoding": "identity", "Connection": "close"}
_SAFE = "/%:@!$&'()*+,;=~?"
_PUBLIC_V6 = ipaddress.ip_network("2000::/3")
_SPECIAL = [
    ipaddress.ip_network(network)
    for network in (
        "192.0.0.0/24",  # protocols, and metadata of Oracle's machines
        "168.63.129.16/32",  # Azure's service for its machines
        "3fff::/20",  # documentation
    )
]
"""Networks that Python, or some of its versions, calls global, although the public Internet doesn't reach them."""

_TRAIN_AI = re.compile(r"(?:^|[,\s])train-ai\s*=\s*n\b", re.IGNORECASE)
_NO_TRAINING = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})


@dataclass(frozen=True)
class Download:
    """Result of a download. Without `data`, `why` is the reason in a few words."""

    data: bytes | None
    why: str = ""
    opted_out: bool = False  # a response forbids training or indexing
    passing: bool = False  # not an answer about this file, so another attempt may succeed
    slowly: bool = False  # such an attempt wouldn't succeed within seconds


class _Target(NamedTuple):
    host: str
    port: int
    path: str  # with the query


@dataclass
class _Host:
    slots: threading.Semaphore
    faults: int = 0  # downloads that failed one after another without an answer about their file


class _NoPublicAddressError(Exception):
    pass


def resolve(host: str, port: int) -> list[str]:
    """Return the IP addresses of a host, in the order of preference. Raises `OSError` if there are none."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


def is_public(address: str) -> bool:
    """Return whether an IP address belongs to the public Internet.

    Addresses that contain an IPv4 address, such as 6to4 and NAT64, don't count, because they could lead to a private
    one.
    """
    ip = ipaddress.ip_address(address)
    if any(ip in network for network in _SPECIAL):
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        return ip.is_global and ip in _PUBLIC_V6 and ip.sixtofour is None
    return ip.is_global and not ip.is_multicast


def is_opt_out(headers: Message) -> bool:
    """Return whether a response's headers forbid training: `tdm-reservation`, `Content-Usage`, or `X-Robots-Tag`.

    Words of `X-Robots-Tag` count regardless of the crawler that they name. `Content-Usage` is a draft of IETF's AIPREF.
    """
    words = {word for value in headers.get_all("X-Robots-Tag", []) for word in re.split(r"[,;:\s]+", value.lower())}
    values = ",".join(headers.get_all("tdm-reservation", []))  # proxies join repeated headers in this way
    reserved = any(value.strip(' \t"') == "1" for value in values.split(","))
    usage = _TRAIN_AI.search(",".join(headers.get_all("Content-Usage", [])))
    return reserved or usage is not None or not words.isdisjoint(_NO_TRAINING)


class Downloader:
    """Downloader of files up to `max_bytes`, with at most `per_host` connections to a host. It is thread-safe.

    `resolve_host`, `is_allowed`, and `context` replace the resolver, the check of addresses, and the trusted
    certificates. `waits_s` are the waits before further attempts, in seconds.
    """

    def __init__(
        self,
        max_bytes: int,
        per_host: int,
        *,
        resolve_host: Callable[[str, int], Sequence[str]] = resolve,
        is_allowed: Callable[[str], bool] = is_public,
        context: ssl.SSLContext | None = None,
        waits_s: Sequence[float] = (1.0, 10.0),
    ) -> None:
        self._max_bytes = max_bytes
        self._per_host = per_host
        self._hosts: dict[str, _Host] = {}
        self._answered = False
        self._resolve = resolve_host
        self._is_allowed = is_allowed
        self._context = context or ssl.create_default_context()
        self._waits_s = waits_s

    def get(self, url: str) -> Download:
        """Download a file. A fault that may go away is retried. Never raises an error about the URL or its server.

        Redirects are followed on the same host and port only. If a response opts out, its content isn't read. After
        `_MOST_FAULTS` downloads from a host have failed one after another without an answer about their file, no more
        are tried.
        """
        try:
            first = _target(url)
        except UriNotAllowedError as error:
            return Download(None, str(error))
        host = self._hosts.setdefault(first.host, _Host(threading.Semaphore(self._per_host)))
        with host.slots:
            if host.faults >= _MOST_FAULTS:
                return Download(None, "not tried, because other downloads from its host failed", passing=True)
            found = self._attempt(first)
            for wait in self._waits_s:
                if not found.passing or found.slowly:
                    break
                time.sleep(wait)
                found = self._attempt(first)
            if found.passing:
                host.faults += 1
            else:
                host.faults, self._answered = 0, True
        return found

    def is_offline(self) -> bool:
        """Return whether downloads from many hosts have failed, and none has answered yet."""
        return not self._answered and sum(host.faults > 0 for host in list(self._hosts.values())) >= _MOST_FAULTS

    def _attempt(self, target: _Target) -> Download:
        try:
            return self._follow(target)
        except UriNotAllowedError as error:
            return Download(None, str(error))
        except ssl.SSLCertVerificationError:
            return Download(None, "the server's certificate isn't valid", passing=True, slowly=True)
        except _NoPublicAddressError as error:  # the name's addresses may change
            return Download(None, str(error), passing=True, slowly=True)
        except socket.gaierror as error:
            return Download(None, "its host has no address", passing=True, slowly=error.errno != socket.EAI_AGAIN)
        except (OSError, http.client.HTTPException) as error:
            return Download(None, f"no complete response ({type(error).__name__})", passing=True)

    def _follow(self, target: _Target) -> Download:
        for _ in range(_MOST_REDIRECTS + 1):
            address = self._address(target)
            connection = _PinnedConnection(target.host, target.port, address, self._context)
            with closing(connection):
                connection.connect()
                watch = threading.Timer(_MOST_S, connection.abort)  # a server may send a byte every few seconds
                watch.start()
                try:
                    connection.request("GET", target.path, headers=_HEADERS)
                    response = connection.getresponse()
                    if is_opt_out(response.headers):
                        return Download(None, "its server opts out", opted_out=True)
                    if response.headers.defects:  # the headers after a malformed line are lost, such as an opt-out
                        return Download(None, "malformed headers")
                    if response.status not in _REDIRECTS:
                        return self._content(response)
                    target = _redirected(target, response.headers.get("Location", ""))
                finally:
                    watch.cancel()
        return Download(None, f"more than {_MOST_REDIRECTS} redirects")

    def _address(self, target: _Target) -> str:
        addresses = self._resolve(target.host, target.port)
        for address in addresses:
            if self._is_allowed(address):
                return address
        if target.host in addresses:
            raise UriNotAllowedError(_NOT_PUBLIC)
        raise _NoPublicAddressError(_NOT_PUBLIC)

    def _content(self, response: http.client.HTTPResponse) -> Download:
        if response.status != http.client.OK:
            return Download(None, f"status {response.status}", passing=response.status in _PASSING)
        headers = response.headers
        encodings = headers.get_all("Content-Encoding", []) + headers.get_all("Transfer-Encoding", [])
        if any(encoding.strip().lower() not in ("identity", "chunked") for encoding in encodings):
            return Download(None, "an encoded response")
        pieces, left = [], self._max_bytes
        while piece := response.read(min(_PIECE, left + 1)):
            left -= len(piece)
            if left < 0:
                return Download(None, f"over {self._max_bytes:,} bytes")
            pieces.append(piece)
        if response.length:
            return Download(None, "no complete response (IncompleteRead)", passing=True)
        return Download(b"".join(pieces)) if pieces else Download(None, "an empty response")


class _Response(http.client.HTTPResponse):
    """Response that refuses chunks of a negative size, for which Python reads everything that the server sends."""

    def _safe_read(self, amt: int) -> bytes:
        if amt < 0:
            raise http.client.HTTPException("a chunk of a negative size")
        data: bytes = super()._safe_read(amt)  # type: ignore[misc]
        return data


class _PinnedConnection(http.client.HTTPSConnection):
    """Connection to a host at one address, which isn't resolved again."""

    response_class = _Response

    def __init__(self, host: str, port: int, address: str, context: ssl.SSLContext) -> None:
        super().__init__(host, port, timeout=_TIMEOUT_S, context=context)
        self._address = address
        self._tls = context

    def connect(self) -> None:
        """Connect to the address, and verify the host's certificate."""
        raw = socket.create_connection((self._address, self.port), _TIMEOUT_S)
        # Without an end marker, a body that was cut off would look complete.
        self.sock = self._tls.wrap_socket(raw, server_hostname=self.host, suppress_ragged_eofs=False)

    def abort(self) -> None:
        """Make a pending read fail."""
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)


def _target(url: str) -> _Target:
    """Parse a URL. Raises `UriNotAllowedError` with the reason why it isn't downloaded, which doesn't quote it."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").encode("idna").decode(), parts.port or 443
        host.encode("idna")  # sockets do this again, and IDNA turns some characters into dots
    except ValueError as error:
        raise UriNotAllowedError("its URL isn't valid") from error
    if parts.scheme.lower() != "https":
        raise UriNotAllowedError("not an https URL")
    if "@" in parts.netloc:
        raise UriNotAllowedError("its URL contains a user name or password")
    if not host:
        raise UriNotAllowedError("its URL has no host")
    path = quote(parts.path or "/", safe=_SAFE)
    return _Target(host, port, f"{path}?{quote(parts.query, safe=_SAFE)}" if parts.query else path)


def _redirected(target: _Target, location: str) -> _Target:
    here = f"[{target.host}]" if ":" in target.host else target.host
    try:
        url = urljoin(f"https://{here}:{target.port}{target.path}", location)
    except ValueError as error:
        raise UriNotAllowedError("a redirect to an invalid URL") from error
    new = _target(url)
    if new[:2] != target[:2]:
        raise UriNotAllowedError("a redirect to another host")
    return new
