"""Store instances of this process, one per scheme and set of options. Threads share them, but forked children don't."""

import importlib
import json
import os
import re
import threading
from collections.abc import Mapping
from typing import Any

from segmint.infra.errors import UsageError
from segmint.infra.storage.error_kinds import describe
from segmint.infra.storage.errors import StorageFaultError
from segmint.infra.storage.stores import LocalStore, Store
from segmint.infra.uris import AZURE, LOCAL, redact, scheme

_SECRET_OPTION = re.compile(
    r"(?i)^key$|^user(name)?$|secret|token|passw|credential|access_?key|account_key|signature|connection_string"
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
        from segmint.infra.storage.azure import AzureStore

        return AzureStore(options)
    import fsspec

    from segmint.infra.storage.fsspec_store import FsspecStore

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
    for key, value in values.items():
        if _SECRET_OPTION.search(key):
            raise UsageError(
                f"storage option {key!r} of {redact(prefix)!r} is a credential: remove it; credentials "
                "come from the standard chain (environment, `profile`, instance or pod role)"
            )
        if isinstance(value, str) and redact(value) != value:
            raise UsageError(f"storage option {key!r} of {redact(prefix)!r} contains a credential: remove it")
    from segmint.infra.storage import azure, s3

    known = s3.OPTIONS if protocol == "s3" else azure.OPTIONS if protocol in AZURE else values
    unknown = sorted(values.keys() - set(known))
    if unknown:
        raise UsageError(
            f"unknown storage option {', '.join(unknown)} of {prefix!r}: expected {', '.join(sorted(known))}"
        )
