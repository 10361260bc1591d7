"""Outages in a build's driver: finds stores that do not answer, and waits for them.

Workers wait by themselves (`segmint.infra.storage.outages`), but log on their own machines: so the driver checks the
stores whenever nothing moves, and says what the run waits for.
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
from segmint.infra.wording import counted

MOST_STORES = 16
"""The most stores that are checked: the first ones of a window's images."""


class Outages:
    """The stores that a build needs: those of the catalog, of the URIs in `others`, and of its window's images."""

    def __init__(self, storage: Storage, catalog: str, others: Iterable[str], timeout_s: float) -> None:
        self._storage = storage
        self._catalog = catalog
        self._always = {store_name(uri): uri for uri in (catalog, *others)}
        self._timeout_s = timeout_s
        self._examples = self._always
        self._told = -TELL_EVERY_S

    def expect(self, uris: Iterable[str]) -> None:
        """Add the URIs of a window's images, as the catalog writes them."""
        examples = dict(self._always)
        for entry in uris:
            try:
                uri = relative_to(self._catalog, entry)
                name = store_name(uri)
            except UriNotAllowedError:
                continue  # its row gets a verdict later
            if len(examples) < MOST_STORES:
                examples.setdefault(name, uri)
        self._examples = examples

    def silent(self) -> list[str]:
        """Return the stores that do not answer now, and log them once a minute; each try takes at most ten seconds."""
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
        """Wait until all stores answer, after a window that left shards; return whether one did not answer.

        Raises `UnfinishedError` if one does not answer within the time-out.
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
                    f"{counted(len(missing), 'shard')} missing. Check the store, its endpoint and the network: "
                    "nothing is lost, and the same command goes on with what is missing"
                )
            time.sleep(min(next(looks), left))
        get_logger("build").info("all stores answer again")
        return True


@contextmanager
def resumable() -> Iterator[None]:
    """Turn a store's fault that ends a run into an `UnfinishedError`, which says that nothing is lost."""
    try:
        yield
    except StorageFaultError as fault:
        raise UnfinishedError(f"{fault}\nNothing is lost: once that is fixed, the same command goes on") from fault
