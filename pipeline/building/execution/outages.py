"""Handling of outages in a build's driver, which detects stores that don't respond and waits for them.

Workers wait for their stores by themselves (`segmint.infra.storage.outages`), but they only log on their own machines.
So that the user knows why a run waits, the driver also checks the stores whenever there is no progress, and logs the
stores that don't respond.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from segmint.infra.errors import SegmintError, UnfinishedError
from segmint.infra.log import get_logger
from segmint.infra.storage.errors import StorageFaultError
from segmint.infra.storage.outages import TELL_EVERY_S, pauses
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import UriNotAllowedError, relative_to, store_name
from segmint.infra.wording import counted

MOST_STORES = 16
"""Maximum number of stores to check. The first stores in a sample of the window's images are used."""

SAMPLE_ROWS = 64
"""Number of rows whose URIs are read to find a window's stores."""


class Outages:
    """Stores that contain the catalog, the URIs in `others`, and the window's images.

    A build depends on all of them.
    """

    def __init__(self, storage: Storage, catalog: str, others: Iterable[str], timeout_s: float) -> None:
        self._storage = storage
        self._catalog = catalog
        self._always = {store_name(uri): uri for uri in (catalog, *others)}
        self._timeout_s = timeout_s
        self.examples = self._always
        self._uris: Callable[[], Iterable[str]] | None = None  # not read yet
        self._told = -TELL_EVERY_S

    def expect(self, uris: Callable[[], Iterable[str]]) -> None:
        """Set the function that reads URIs of a window's images as written in the catalog. The first check calls it.

        While the function raises a storage fault, only the other stores are checked.
        """
        self.examples, self._uris = self._always, uris

    def read_examples(self) -> None:
        uris = self._uris
        if uris is None:
            return
        examples = dict(self._always)
        try:
            entries = uris()
        except (SegmintError, OSError):
            return  # the dataset's own store may be unavailable
        for entry in entries:
            try:
                uri = relative_to(self._catalog, entry)
                name = store_name(uri)
            except UriNotAllowedError:
                continue  # the build rejects this row later
            if len(examples) < MOST_STORES:
                examples.setdefault(name, uri)
        if self._uris is uris:  # another thread may have begun the next window
            self.examples, self._uris = examples, None

    def silent(self) -> list[str]:
        """Return the stores that don't respond, and log them once a minute. Each check takes at most ten seconds."""
        self.read_examples()
        names, uris = list(self.examples), list(self.examples.values())
        with ThreadPoolExecutor(len(uris), thread_name_prefix="outages") as pool:
            answers = list(pool.map(self._storage.answers, uris))
        found = [name for name, answer in zip(names, answers, strict=True) if not answer]
        if found and time.monotonic() - self._told >= TELL_EVERY_S:
            self._told = time.monotonic()
            get_logger("build").warning(
                "waiting for stores that do not answer", stores=found, at_most_s=round(self._timeout_s)
            )
        return found

    def wait_out(self, missing: Sequence[int]) -> bool:
        """Wait until all stores respond, and return whether any store was silent at first.

        Call this after a window with missing shards. Raises `UnfinishedError` if a store doesn't respond within the
        timeout.
        """
        if not self.silent():
            return False
        end = time.monotonic() + self._timeout_s
        looks = pauses()
        while found := self.silent():
            left = end - time.monotonic()
            if left <= 0:
                raise UnfinishedError(
                    f"no response from {', '.join(found)} for outage_timeout_s = {self._timeout_s:g} seconds; "
                    f"{counted(len(missing), 'shard')} missing. Nothing is lost. Check the store, endpoint, and "
                    "network, then run the same command again to resume"
                )
            time.sleep(min(next(looks), left))
        get_logger("build").info("all stores answer again")
        return True


@contextmanager
def resumable() -> Iterator[None]:
    """Convert a storage fault that ends a run to an `UnfinishedError`, which tells the user that nothing is lost."""
    try:
        yield
    except StorageFaultError as fault:
        raise UnfinishedError(f"{fault}\nNothing is lost. Fix the cause, then run the same command again") from fault
