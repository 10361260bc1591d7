"""Reader of catalog rows' images that separates verdicts on objects from storage faults."""

import hashlib
from collections.abc import Callable
from typing import TypeVar

from segmint.catalogs.reasons import Reason, RejectedError
from segmint.infra.storage.errors import (
    NotFoundError,
    ObjectTooLargeError,
    StorageFaultError,
    UnreadableObjectError,
)
from segmint.infra.storage.storage import Storage
from segmint.infra.storage.stores import check_size
from segmint.infra.tars import starts_file
from segmint.infra.uris import (
    LOCAL,
    TAR_BLOCK,
    TarMember,
    UriNotAllowedError,
    redact,
    relative_to,
    scheme,
    split_member,
)
from segmint.operators.rows import Row

MOST_READS = 4
"""Maximum number of reads of an image whose bytes, or whose header in a tar, would be rejected. Two identical reads in
a row are enough."""

T = TypeVar("T")


class ImageReader:
    """Reader of objects, and of files in tars, up to `max_bytes`.

    The catalog at `catalog_uri` determines which URIs its rows may use.
    """

    def __init__(self, storage: Storage, catalog_uri: str, max_bytes: int) -> None:
        self.storage = storage
        self.catalog_uri = catalog_uri
        self.max_bytes = max_bytes

    def read(self, row: Row) -> bytes:
        """Return the object's bytes. A file in a tar takes one request, too.

        Raises `RejectedError` only for a URI that isn't allowed, or if the store's response is about this object: that
        it doesn't exist, that it can't be returned, its size, or that the tar has no such file. Raises
        `StorageFaultError` for everything else.
        """
        try:
            uri = relative_to(self.catalog_uri, row["uri"])
            member = split_member(uri)
            if member is None:
                return self.storage.read(uri, max_bytes=self.max_bytes)
            return self._read_member(member)
        except UriNotAllowedError as error:
            raise RejectedError(Reason.URI_NOT_ALLOWED, str(error)) from None
        except NotFoundError:
            raise RejectedError(Reason.NOT_FOUND, "the store answers, and there is no such object") from None
        except ObjectTooLargeError:
            limit = f"{self.max_bytes:,}"
            raise RejectedError(Reason.TOO_LARGE, f"over the limit ingest.max_bytes of {limit} bytes") from None
        except UnreadableObjectError:
            detail = "reading it fails again and again, while its store answers"
            raise RejectedError(Reason.UNREADABLE_OBJECT, detail) from None

    def _read_member(self, member: TarMember) -> bytes:
        """Return the bytes of a file in a tar.

        A tar that was replaced by another one has other bytes there. To notice this, the request includes the header.
        """
        check_size(member.uri, member.size, self.max_bytes)
        start, stop = member.offset - TAR_BLOCK, member.offset + member.size
        last: bytes | None = None
        for _ in range(MOST_READS):
            data = self.storage.read_part(member.tar, start, stop)
            if len(data) == stop - start and starts_file(data[:TAR_BLOCK], member.size):
                return data[TAR_BLOCK:]
            if data == last or scheme(member.tar) == LOCAL:
                detail = f"its tar has no file of {member.size:,} bytes at byte {member.offset:,}"
                raise RejectedError(Reason.NOT_FOUND, detail)
            last = data
        raise StorageFaultError(f"reading {redact(member.uri)} returns different bytes each time")

    def use(self, row: Row, function: Callable[[bytes], T], refusal: type[RejectedError] = RejectedError) -> T:
        """Return `function(data)` for the object's bytes. If it raises a `refusal`, make sure that the bytes are right.

        To do so, read the object again until two reads in a row are identical, and call `function` again if the bytes
        changed. Raises the same errors as `read`, and `StorageFaultError` if all `MOST_READS` reads return different
        bytes.
        """
        data = self.read(row)
        for _ in range(MOST_READS - 1):
            try:
                return function(data)
            except refusal:
                if self.is_sure_of(data, row):
                    raise
                again = self.read(row)
                if again == data:
                    raise
                data = again
        raise StorageFaultError(f"reading {row['uri']} returns different bytes each time")

    def is_sure_of(self, data: bytes, row: Row) -> bool:
        """Return whether the bytes are certainly right: they come from a local file, or they match the catalog's hash.

        Otherwise, they may be incomplete. If a store or cache truncates a response and its Content-Length matches, the
        response looks whole.
        """
        if scheme(relative_to(self.catalog_uri, row["uri"])) == LOCAL:
            return True
        return row["sha256"] is not None and hashlib.sha256(data).hexdigest() == row["sha256"].lower()


def checked_digest(data: bytes, expected: str | None) -> str:
    """Return the SHA-256 of the bytes. Raise `RejectedError` if the catalog expects a different one."""
    digest = hashlib.sha256(data).hexdigest()
    if expected is not None and expected.lower() != digest:
        raise RejectedError(
            Reason.HASH_MISMATCH, f"the catalog says SHA-256 {expected.lower()}, the object has {digest}"
        )
    return digest
