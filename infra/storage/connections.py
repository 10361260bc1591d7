"""Connections to stores: one instance per scheme and set of options, among them Azure and those of fsspec.

Store instances of this process, one per scheme and set of options. Threads share them, but forked children don't.
"""

import errno
import importlib
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import AccessRefusedError, StorageFaultError, describe
from segmint.infra.storage.stores import (
    NO_TIME,
    LocalStore,
    ObjectInfo,
    ObjectVersion,
    OnSkip,
    Store,
    check_length,
    check_size,
    endless_error,
    warn_of_skipped,
)
from segmint.infra.uris import AZURE, LOCAL, parent, redact, scheme, split_bucket

_SECRET_OPTION = re.compile(
    r"(?i)^key$|^user(name)?$|^pwd$|secret|token|passw|credential|authorization|access_?key|account_key|signature|"
    r"connection_string"
)

_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs"} | dict.fromkeys(AZURE, "segmint[azure]")

# All threads, and all `Storage` instances with the same options, share a file system. Connections and event loops don't
# survive a fork, so the key contains the process ID.
_stores: dict[tuple[int, str, str], Store] = {}
_stores_lock = threading.Lock()


def _renew_lock() -> None:
    global _stores_lock
    _stores_lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_renew_lock)


def connect(protocol: str, options: Mapping[str, Any]) -> Store:
    """Return the store for a scheme and its options. The first call in a process creates it."""
    key = (os.getpid(), protocol, json.dumps(options, sort_keys=True, default=str))
    with _stores_lock:
        store = _stores.get(key)
        if store is None:
            store = _stores[key] = _make_store(protocol, dict(options))
    return store


def _make_store(protocol: str, options: dict[str, Any]) -> Store:
    if protocol == LOCAL:
        return LocalStore()
    if protocol == "s3":
        from segmint.infra.storage.s3 import S3Store, make_filesystem

        return S3Store(make_filesystem(options))
    missing = missing_package(protocol)
    if missing is not None:
        raise UsageError(missing)
    if protocol in AZURE:
        return AzureStore(options)
    import fsspec

    try:
        return FsspecStore(fsspec.filesystem(protocol, use_listings_cache=False, skip_instance_cache=True, **options))
    except Exception as error:  # libraries that look up credentials or load native code may raise anything
        raise StorageFaultError(f"cannot connect to {protocol}://: {describe(error)}") from error


def missing_package(protocol: str) -> str | None:
    """Explain why this machine can't read URIs of this scheme and what to install.

    If it can read them, return None.
    """
    if protocol in (LOCAL, "s3"):
        return None
    try:
        if protocol in AZURE:
            importlib.import_module("azure.identity")
            importlib.import_module("azure.storage.blob")
            return None
        import fsspec

        fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:  # ValueError: fsspec knows this scheme only if the package is installed
        return f"{protocol}:// needs a package that is not installed: install {_PACKAGES[protocol]} ({error})"
    return None


def check_options(prefix: str, values: Mapping[str, Any]) -> None:
    """Raise `UsageError` if an option contains a credential, or if S3 or Azure doesn't support its key."""
    protocol = scheme(prefix)
    _refuse_credentials(prefix, values)
    from segmint.infra.storage import s3

    known = s3.OPTIONS if protocol == "s3" else OPTIONS if protocol in AZURE else values
    unknown = sorted(values.keys() - set(known))
    if unknown:
        raise UsageError(
            f"unknown storage option {', '.join(unknown)} of {prefix!r}: expected {', '.join(sorted(known))}"
        )


def _refuse_credentials(prefix: str, values: Mapping[str, Any]) -> None:
    """Raise `UsageError` if an option, or a part of one at any depth, is or contains a credential."""
    waiting: list[tuple[object, Any]] = list(values.items())
    looked_at: set[int] = set()  # aliases in YAML can make a mapping contain itself
    while waiting:
        key, value = waiting.pop()
        if _SECRET_OPTION.search(str(key)):
            raise UsageError(
                f"storage option {key!r} of {redact(prefix)!r} is a credential: remove it; credentials "
                "come from the standard chain (environment, `profile`, instance or pod role)"
            )
        if isinstance(value, str) and redact(value) != value:
            raise UsageError(f"storage option {key!r} of {redact(prefix)!r} contains a credential: remove it")
        if id(value) in looked_at:
            continue
        if isinstance(value, Mapping):
            looked_at.add(id(value))
            waiting += value.items()
        elif isinstance(value, list | tuple):
            looked_at.add(id(value))
            waiting += [(key, part) for part in value]


class FsspecStore:
    """Store for any other fsspec file system, such as Google Cloud Storage.

    Only one of several writers may create an object, so this class uses `pipe_file(mode="create")`. fsspec's default
    implementation of that call checks first and writes later, which is a race, so this class refuses it. If a store
    overrides it, `segmint.infra.storage.location` tests the override with concurrent writers.
    """

    def __init__(self, filesystem: Any) -> None:
        self._fs = filesystem

    def read(self, uri: str, max_bytes: int | None) -> bytes:
        """Read the whole object."""
        size = self.version(uri).size
        check_size(uri, size or 0, max_bytes)
        data: bytes = self._fs.cat_file(self._path(uri))
        check_size(uri, len(data), max_bytes)
        if size is not None:
            check_length(len(data), size)
        return data

    def read_range(self, uri: str, start: int, stop: int, first: ObjectVersion) -> tuple[bytes, ObjectVersion]:
        """Read the bytes [start, stop).

        fsspec has no conditional reads. Therefore, if `first` is known, this looks at the version after the read.
        """
        data: bytes = self._fs.cat_file(self._path(uri), start=start, end=stop)
        return data, ObjectVersion() if first == ObjectVersion() else self.version(uri)

    def create(self, uri: str, data: bytes) -> None:
        """Create an object with a conditional write. Raises `UsageError` if the store only checks before it writes."""
        if not self._claims_exclusive_create():
            raise UsageError(
                f"the store of {redact(uri)} ({type(self._fs).__name__}) cannot put an object only if it is "
                "absent: choose a local folder, an S3 bucket, Google Cloud Storage or Azure"
            )
        self._fs.pipe_file(self._path(uri), data, mode="create")

    def create_file(self, uri: str, path: Path) -> None:
        """Create an object from a local file with a conditional write, like `create`.

        The file is read into memory, because few implementations support conditional uploads of files.
        """
        self.create(uri, path.read_bytes())

    def put(self, uri: str, data: bytes) -> None:
        """Write the whole object."""
        self._fs.makedirs(self._fs._parent(self._path(uri)), exist_ok=True)
        self._fs.pipe_file(self._path(uri), data)

    def put_file(self, uri: str, path: Path) -> None:
        """Upload a local file."""
        self._fs.makedirs(self._fs._parent(self._path(uri)), exist_ok=True)
        self._fs.put_file(str(path), self._path(uri))

    def walk(
        self, uri: str, recursive: bool, on_skip: OnSkip = warn_of_skipped, beginning: str = ""
    ) -> Iterator[ObjectInfo]:
        """Yield the objects below a folder."""
        root = self._path(uri).rstrip("/") + "/"
        try:
            found = self._fs.find(root, detail=True, maxdepth=None if recursive else 1)
        except FileNotFoundError:
            return
        for path in sorted(found):
            if path.startswith(root + beginning) and not path.endswith("/"):
                yield ObjectInfo(path[len(root) :], int(found[path]["size"] or 0), _modified(found[path]))

    def version(self, uri: str) -> ObjectVersion:
        """Return the object's size in bytes, ETag or generation, and time of modification."""
        info = self._fs.info(self._path(uri))
        if info["type"] != "file":
            raise IsADirectoryError(errno.EISDIR, "is a folder", uri)
        etag = info.get("generation") or info.get("etag") or info.get("ETag")
        return ObjectVersion(info["size"], etag and str(etag), _modified(info))

    def delete(self, uri: str) -> None:
        """Delete the object if it exists."""
        with suppress(FileNotFoundError):
            self._fs.rm_file(self._path(uri))

    def purge(self, uri: str) -> None:
        """Raise `UsageError`, because fsspec can't delete older versions."""
        raise UsageError(
            f"older versions of {redact(uri)} cannot be removed through {type(self._fs).__name__}: "
            "remove them with the store's tools"
        )

    def versioned(self, uri: str, beginning: str = "") -> set[str]:
        """Raise `UsageError`, because fsspec can't list older versions."""
        raise UsageError(
            f"older versions of the objects in {redact(uri)} can't be listed through {type(self._fs).__name__}: "
            "look for them with the store's tools"
        )

    def ping(self, uri: str) -> None:
        """Request information about the parent folder. The answer that it doesn't exist also counts as a response."""
        with suppress(FileNotFoundError):
            self._fs.info(self._path(parent(uri)))

    def _path(self, uri: str) -> str:
        return str(self._fs._strip_protocol(uri))

    def _claims_exclusive_create(self) -> bool:
        from fsspec.asyn import AsyncFileSystem
        from fsspec.spec import AbstractFileSystem

        kind = type(self._fs)
        if isinstance(self._fs, AsyncFileSystem):
            return kind._pipe_file is not AsyncFileSystem._pipe_file
        return kind.pipe_file is not AbstractFileSystem.pipe_file


def _modified(info: dict[str, Any]) -> datetime:
    """Return an object's modification time in UTC, or `NO_TIME` if there is none.

    Times without a time zone are assumed to be in UTC.
    """
    for key in ("LastModified", "last_modified", "mtime", "updated", "created"):
        value = info.get(key)
        with suppress(ValueError, OverflowError, OSError):
            if isinstance(value, str):
                value = datetime.fromisoformat(value)
            if isinstance(value, datetime):
                return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
            if isinstance(value, int | float):
                return datetime.fromtimestamp(value, UTC)
    return NO_TIME


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

    def versioned(self, uri: str, beginning: str = "") -> set[str]:
        """Return the names below a prefix that have snapshots, older versions, or deleted blobs."""
        container, key = self._container(uri)
        prefix = key and f"{key.rstrip('/')}/"
        entries = self.entries(container, prefix + beginning)
        found = (each for each in entries if each.version_id or each.snapshot or each.deleted)
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
