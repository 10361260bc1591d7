"""Azure Blob Storage, through Microsoft's library: conditional puts, paginated listings, versions and snapshots."""

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC
from pathlib import Path
from typing import Any

from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import AccessRefusedError
from segmint.infra.storage.stores import (
    ObjectInfo,
    ObjectVersion,
    OnSkip,
    check_length,
    check_size,
    endless_error,
    warn_of_skipped,
)
from segmint.infra.uris import parent, redact, split_bucket

OPTIONS = ("account_name", "endpoint_url", "anon")


class AzureStore:
    """Blobs in Azure containers. The account comes from the URI (`abfss://container@account.dfs.…`) or the options."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options
        self._accounts: dict[str, Any] = {}

    def read(self, uri: str, max_bytes: int | None) -> bytes:
        """Read the whole blob. The client downloads up to 32 MiB before it knows the blob's size."""
        stream = self._blob(uri).download_blob()
        check_size(uri, stream.size, max_bytes)
        data: bytes = stream.readall()
        check_length(len(data), stream.size)
        return data

    def read_range(self, uri: str, start: int, stop: int, first: ObjectVersion) -> tuple[bytes, ObjectVersion]:
        """Read the bytes [start, stop) with `If-Match`."""
        from azure.core import MatchConditions

        condition: dict[str, Any] = {}
        if first.etag:
            condition = {"etag": first.etag, "match_condition": MatchConditions.IfNotModified}
        stream = self._blob(uri).download_blob(start, stop - start, **condition)
        return stream.readall(), ObjectVersion(etag=stream.properties.etag)

    def create(self, uri: str, data: bytes) -> None:
        """Create a blob in one put with `If-None-Match: *`. If the blob exists, Azure returns `BlobAlreadyExists`."""
        self._blob(uri).upload_blob(data)

    def create_file(self, uri: str, path: Path) -> None:
        """Create a blob from a file in one put with `If-None-Match: *`."""
        with path.open("rb") as file:
            self._blob(uri).upload_blob(file)

    def put(self, uri: str, data: bytes) -> None:
        """Write a blob in one put. The blob becomes visible only when it's complete."""
        self._blob(uri).upload_blob(data, overwrite=True)

    def put_file(self, uri: str, path: Path) -> None:
        """Write a blob from a file in one put."""
        with path.open("rb") as file:
            self._blob(uri).upload_blob(file, overwrite=True)

    def walk(
        self, uri: str, recursive: bool, on_skip: OnSkip = warn_of_skipped, beginning: str = ""
    ) -> Iterator[ObjectInfo]:
        """Yield the blobs below a prefix, one page at a time. Blobs that represent folders are skipped."""
        container, key = self._container(uri)
        prefix = key and f"{key.rstrip('/')}/"
        pages = container.list_blobs if recursive else container.walk_blobs
        for entry in _advancing(uri, pages(prefix + beginning, include=["metadata"])):
            name = entry.name[len(prefix) :]
            if name and not name.endswith("/") and "hdi_isfolder" not in (entry.metadata or {}):
                yield ObjectInfo(name, int(entry.size), entry.last_modified.astimezone(UTC))

    def version(self, uri: str) -> ObjectVersion:
        """Return the blob's size in bytes and ETag."""
        from azure.core.exceptions import ResourceNotFoundError

        try:
            properties = self._blob(uri).get_blob_properties()
        except ResourceNotFoundError:
            if next(self.walk(uri, recursive=True), None) is None:
                raise
            properties = None
        if properties is None or "hdi_isfolder" in (properties.metadata or {}):
            raise IsADirectoryError(errno.EISDIR, "is a folder", uri)
        return ObjectVersion(int(properties.size), properties.etag)

    def delete(self, uri: str) -> None:
        """Delete the blob and its snapshots, but not its older versions; `purge` deletes those as well."""
        self._blob(uri).delete_blob("include")

    def purge(self, uri: str) -> None:
        """Delete the blob, its snapshots, and its older versions.

        With soft delete, Azure keeps the blob, and any versions that an earlier call deleted. In that case, this method
        raises `UsageError`.
        """
        from azure.core.exceptions import ResourceNotFoundError

        with suppress(ResourceNotFoundError):
            self.delete(uri)
        container, key = self._container(uri)
        for entry in [entry for entry in self.entries(container, key) if entry.name == key]:
            if entry.deleted:
                wait = "turn it off, and wait until deleted blobs have expired"
                raise UsageError(f"soft delete keeps {redact(uri)}: {wait}")
            with suppress(ResourceNotFoundError):  # another command has deleted it
                container.get_blob_client(key, entry.snapshot).delete_blob(version_id=entry.version_id)

    def versioned(self, uri: str) -> set[str]:
        """Return the names below a prefix that have snapshots, older versions, or deleted blobs."""
        container, key = self._container(uri)
        prefix = key and f"{key.rstrip('/')}/"
        found = (each for each in self.entries(container, prefix) if each.version_id or each.snapshot or each.deleted)
        return {each.name[len(prefix) :] for each in found if not each.is_current_version}

    def ping(self, uri: str) -> None:
        """List one entry of the parent prefix."""
        container, key = self._container(parent(uri))
        next(iter(container.list_blobs(key, results_per_page=1)), None)

    def entries(self, container: Any, prefix: str) -> Iterator[Any]:
        return _advancing(prefix, container.list_blobs(prefix, include=["snapshots", "versions", "deleted"]))

    def _blob(self, uri: str) -> Any:
        container, key = self._container(uri)
        if not key:
            raise FileNotFoundError(f"{uri} names a container, not an object")
        return container.get_blob_client(key)

    def _container(self, uri: str) -> tuple[Any, str]:
        name, key = split_bucket(uri)
        container, _, host = name.partition("@")
        if host not in self._accounts:
            self._accounts[host] = _connect(host.partition(".")[0], self._options)
        return self._accounts[host].get_container_client(container), key


def _advancing(uri: str, listed: Any) -> Iterator[Any]:
    """Yield the entries of a listing. Raise `StorageFaultError` if its pages don't advance, so that it always ends."""
    seen: set[str] = set()
    pages = listed.by_page()
    for page in pages:
        yield from page
        token = pages.continuation_token
        if token and token in seen:
            raise endless_error(uri)
        seen.add(token)


def _connect(account: str, options: Mapping[str, Any]) -> Any:
    """Connect with the credentials from the environment. Turn off the library's retries, and don't follow redirects."""
    from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential
    from azure.identity import DefaultAzureCredential
    from azure.storage.blob import BlobServiceClient

    configured = os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
    url = f"https://{account}.blob.core.windows.net" if account else options.get("endpoint_url")
    account = account or options.get("account_name") or configured or ""
    if not account:
        raise AccessRefusedError("no storage account: set the option account_name, or AZURE_STORAGE_ACCOUNT_NAME")
    credential: Any = None if options.get("anon") else DefaultAzureCredential()
    if credential and configured in (None, account):  # an account key or SAS token is valid for one account
        if key := os.environ.get("AZURE_STORAGE_ACCOUNT_KEY"):
            credential = AzureNamedKeyCredential(account, key)
        elif token := os.environ.get("AZURE_STORAGE_SAS_TOKEN"):
            credential = AzureSasCredential(token)
    return BlobServiceClient(
        url or f"https://{account}.blob.core.windows.net",
        credential,
        retry_total=0,  # the library's retries would multiply with ours
        permit_redirects=False,
        max_single_put_size=5000 << 20,  # Azure's limit; two writers of a larger file could mix their blocks
        max_chunk_get_size=32 << 20,
    )
