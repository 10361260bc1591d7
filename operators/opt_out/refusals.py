"""Refusal lists: SHA-256 sums, URLs, and domains of images that a build must not use.

A list is a text file with one entry per line: a SHA-256 sum, as `sha256sum` prints it, with or without a file name; a
URL with its scheme; or a domain, which includes its subdomains. Blank lines and lines that start with # don't count.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location

DETAIL = "a refusal list names its bytes, its URL, or its domain"
"""Detail of each refused row. It doesn't say which list or entry, because lists may be confidential."""

_SHA256 = re.compile(r"([0-9a-fA-F]{64})(?:\s.*)?", re.ASCII)
_DOMAIN = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?\.)+[a-z0-9-]*[a-z0-9]", re.ASCII)
_SHOWN = 80  # maximum length of a line in an error


@dataclass(frozen=True, eq=False)
class RefusalLists:
    """Entries of all refusal lists, as sorted hashes of 32 bytes, (E,) S32."""

    entries: NDArray[np.bytes_]

    def refuses(self, urls: Iterable[str | None], sha256: str | None) -> bool:
        """Return whether the lists name one of an image's URLs, one of their domains, or the SHA-256 of its bytes."""
        if not len(self.entries):
            return False
        keys = [key for url in urls if url is not None for key in _keys_of_url(url)]
        if sha256 is not None:
            keys.append(bytes.fromhex(sha256))
        wanted = np.array(keys, "S32")
        places = np.minimum(np.searchsorted(self.entries, wanted), len(self.entries) - 1)
        return bool((self.entries[places] == wanted).any())


NO_LISTS = RefusalLists(np.empty(0, "S32"))
"""Lists of a build without `license.refuse`."""


def read_refusal_lists(files: Iterable[Location]) -> RefusalLists:
    """Read refusal lists.

    Raises `UsageError` if a file doesn't exist, isn't UTF-8 text, or contains no entry, or if a line is something else.
    """
    keys = [key for file in files for key in _read(file)]
    return RefusalLists(np.unique(np.array(keys, "S32"))) if keys else NO_LISTS


def _read(file: Location) -> list[bytes]:
    try:
        text = file.read().decode("utf-8-sig")
    except NotFoundError as error:
        raise UsageError(f"license.refuse: {file} doesn't exist") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"license.refuse: {file} isn't UTF-8 text") from error
    keys = []
    for number, line in enumerate(text.split("\n"), 1):
        entry = line.strip()
        if entry and not entry.startswith("#"):
            key = _key_of_entry(entry)
            if key is None:
                raise UsageError(
                    f"license.refuse: line {number} of {file} is {entry[:_SHOWN]!r}: expected a SHA-256 sum of 64 "
                    "hexadecimal digits, a URL such as https://example.com/a.jpg, or a domain such as example.com"
                )
            keys.append(key)
    if not keys:
        raise UsageError(f"license.refuse: {file} contains no entry")
    return keys


def _key_of_entry(entry: str) -> bytes | None:
    """Return the hash under which an entry is stored, or None if the entry isn't valid."""
    if (match := _SHA256.fullmatch(entry)) is not None:
        return bytes.fromhex(match[1])
    if "://" in entry:
        url = _plain_url(entry)
        return None if url is None else _key("url", url[1])
    host = _plain_host(entry)
    return _key("domain", host) if host is not None and _DOMAIN.fullmatch(host) else None


def _keys_of_url(text: str) -> Iterator[bytes]:
    """Yield the hashes that would refuse a URL: its own, and those of its domain and the domains that contain it."""
    url = _plain_url(text)
    if url is None:
        return
    host, plain = url
    yield _key("url", plain)
    while host:
        yield _key("domain", host)
        host = host.partition(".")[2]


def _plain_url(text: str) -> tuple[str, str] | None:
    """Return a URL's host and the form in which two URLs of the same object are equal. None if it isn't a URL.

    The form has no fragment, user, default port, or percent escapes, a host in lower case, and `http` for `https`.
    """
    try:
        parts = urlsplit(text.strip())
        port = parts.port
    except ValueError:
        return None
    host = _plain_host(parts.hostname or "")
    if not parts.scheme or not host:
        return None
    scheme = "http" if parts.scheme == "https" else parts.scheme
    where = host if port in (None, 80, 443) else f"{host}:{port}"
    query = f"?{parts.query}" if parts.query else ""
    return host, f"{scheme}://{where}{unquote(parts.path or '/')}{query}"


def _plain_host(text: str) -> str | None:
    """Return a host in lower case, without a final dot, and in ASCII. None if it can't be a host."""
    host = text.strip().rstrip(".").lower()
    try:
        return host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError:
        return None


def _key(kind: str, text: str) -> bytes:
    return hashlib.sha256(f"{kind} {text}".encode()).digest()
