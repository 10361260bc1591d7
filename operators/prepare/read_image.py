"""Reads the images of catalog rows from their stores, and tells a verdict on an object from trouble of the world."""

import hashlib

from segmint.catalogs.reasons import Reason, RejectedError
from segmint.infra.storage.errors import (
    AccessRefusedError,
    NotFoundError,
    ObjectTooLargeError,
    StorageFaultError,
    UnavailableError,
)
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import LOCAL, UriNotAllowedError, relative_to, scheme
from segmint.operators.rows import Row

ROUNDS = 2
"""Rounds of attempts that fail, the store answering after each, before an object counts as unreadable: an outage may
end between an attempt and the look at the store."""


class ImageReader:
    """Reads objects of up to `max_bytes`; the catalog at `catalog_uri` decides which URIs its rows may name."""

    def __init__(self, storage: Storage, catalog_uri: str, max_bytes: int) -> None:
        self._storage = storage
        self._catalog_uri = catalog_uri
        self._max_bytes = max_bytes

    def read(self, row: Row) -> bytes:
        """The object's bytes. Raises `RejectedError`, or `StorageFaultError` for a store in trouble."""
        try:
            return self._read_object(relative_to(self._catalog_uri, row["uri"]))
        except UriNotAllowedError as error:
            raise RejectedError(Reason.URI_NOT_ALLOWED, str(error)) from None
        except NotFoundError:
            raise RejectedError(Reason.NOT_FOUND, "the store answers, and there is no such object") from None
        except ObjectTooLargeError:
            limit = f"{self._max_bytes:,}"
            raise RejectedError(Reason.TOO_LARGE, f"over the limit ingest.max_bytes of {limit} bytes") from None

    def _read_object(self, uri: str) -> bytes:
        for _ in range(ROUNDS):
            try:
                return self._storage.read(uri, max_bytes=self._max_bytes)
            except (AccessRefusedError, UnavailableError):
                raise  # about the credentials or the store, whatever else the store answers
            except StorageFaultError:
                if not self._storage.healthy(uri):
                    raise
        raise RejectedError(Reason.UNREADABLE_OBJECT, "reading it fails again and again, while its store answers")

    def is_sure_of(self, data: bytes, row: Row) -> bool:
        """Whether bytes that were read are known to be the object's: those of a local file, or of the catalog's hash.

        What a store or a cache before it announces too short, and sends so, looks like a whole object.
        """
        if scheme(relative_to(self._catalog_uri, row["uri"])) == LOCAL:
            return True
        return row["sha256"] is not None and hashlib.sha256(data).hexdigest() == row["sha256"].lower()


def checked_digest(data: bytes, expected: str | None) -> str:
    """SHA-256 of the bytes that were read; raises `RejectedError` when the catalog expects another."""
    digest = hashlib.sha256(data).hexdigest()
    if expected is not None and expected.lower() != digest:
        raise RejectedError(
            Reason.HASH_MISMATCH, f"the catalog says SHA-256 {expected.lower()}, the object has {digest}"
        )
    return digest
