"""Outages, as the driver of a build sees them: which of its stores do not answer, and waiting for these.

Workers wait by themselves (`segmint.infra.storage.outages`), and what they log stands on their machines: the driver
looks at the stores whenever nothing moves, and says what the run waits for.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from segmint.infra.errors import UnfinishedError
from segmint.infra.log import get_logger
from segmint.infra.storage.errors import StorageFaultError
from segmint.infra.storage.outages import TELL_EVERY_S, pauses
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import UriNotAllowedError, relative_to, store_name

MOST_STORES = 16
"""Of a window's images, to be looked at: the first that it names."""


class Outages:
    """The stores that a build needs: the catalog's, `others` by any of their URIs, and those of its window's images."""

    def __init__(self, storage: Storage, catalog: str, others: Iterable[str], timeout_s: float) -> None:
        self._storage = storage
        self._catalog = catalog
        self._always = {store_name(uri): uri for uri in (catalog, *others)}
        self._timeout_s = timeout_s
        self._examples = self._always
        self._told = -TELL_EVERY_S

    def expect(self, uris: Iterable[str]) -> None:
        """Takes in the URIs of a window's images, as the catalog writes them."""
        examples = dict(self._always)
        for entry in uris:
            try:
                uri = relative_to(self._catalog, entry)
            except UriNotAllowedError:
                continue  # a verdict, when its row comes to it
            if len(examples) < MOST_STORES:
                examples.setdefault(store_name(uri), uri)
        self._examples = examples

    def silent(self) -> list[str]:
        """The stores that do not answer now; says so, once a minute. Takes ten seconds at most for each try."""
        names, uris = list(self._examples), list(self._examples.values())
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
        """Waits until all stores answer, after a window that left shards; returns whether there was one that did not.

        Raises `UnfinishedError` when one has not answered for the time-out.
        """
        if not self.silent():
            return False
        end = time.monotonic() + self._timeout_s
        looks = pauses()
        while found := self.silent():
            left = end - time.monotonic()
            if left <= 0:
                raise UnfinishedError(
                    f"no answer from {', '.join(found)} for outage_timeout_s = {self._timeout_s:g} seconds; "
                    f"{len(missing)} shards are missing. Check the store, its endpoint and the network: nothing is "
                    "lost, and the same command goes on with what is missing"
                )
            time.sleep(min(next(looks), left))
        get_logger("build").info("all stores answer again")
        return True


@contextmanager
def resumable() -> Iterator[None]:
    """Says, of a fault of a store that ends a run, that nothing is lost: `UnfinishedError`."""
    try:
        yield
    except StorageFaultError as fault:
        raise UnfinishedError(f"{fault}\nNothing is lost: once that is mended, the same command goes on") from fault
