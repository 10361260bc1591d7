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
from segmint.infra.uris import LOCAL, UriNotAllowedError, relative_to, scheme
from segmint.operators.rows import Row

MOST_READS = 4
"""Maximum number of reads of an image whose bytes would be rejected. Two identical reads in a row are enough."""

T = TypeVar("T")


class ImageReader:
    """Reader of objects up to `max_bytes`. The catalog at `catalog_uri` determines which URIs its rows may use."""

    def __init__(self, storage: Storage, catalog_uri: str, max_bytes: int) -> None:
        self._storage = storage
        self._catalog_uri = catalog_uri
        self._max_bytes = max_bytes

    def read(self, row: Row) -> bytes:
        """Return the object's bytes.

        Raises `RejectedError` only for a URI that isn't allowed, or if the store's response is about this object: that
        it doesn't exist, that it can't be returned, or its size. Raises `StorageFaultError` for everything else.
        """
        try:
            return self._storage.read(relative_to(self._catalog_uri, row["uri"]), max_bytes=self._max_bytes)
        except UriNotAllowedError as error:
            raise RejectedError(Reason.URI_NOT_ALLOWED, str(error)) from None
        except NotFoundError:
            raise RejectedError(Reason.NOT_FOUND, "the store answers, and there is no such object") from None
        except ObjectTooLargeError:
            limit = f"{self._max_bytes:,}"
            raise RejectedError(Reason.TOO_LARGE, f"over the limit ingest.max_bytes of {limit} bytes") from None
        except UnreadableObjectError:
            detail = "reading it fails again and again, while its store answers"
            raise RejectedError(Reason.UNREADABLE_OBJECT, detail) from None

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
        if scheme(relative_to(self._catalog_uri, row["uri"])) == LOCAL:
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
