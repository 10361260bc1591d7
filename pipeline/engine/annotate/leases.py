"""Leases of images to annotators, so that two people don't start the same image.

Leases only avoid duplicate work. Submissions are safe without them.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

LEASE_S = 900.0
"""Seconds after which a lease expires if the annotator sends no request for the image."""

Slot = tuple[int, int]
"""An image's id and an assignment."""


@dataclass(frozen=True)
class _Lease:
    annotator: str
    until: float


class Leases:
    """Leases of assignments, held by annotators. Thread-safe. `clock` returns seconds."""

    def __init__(self, seconds: float = LEASE_S, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._held: dict[Slot, _Lease] = {}

    def take(self, slot: Slot, annotator: str) -> bool:
        """Lease an assignment to an annotator, or renew the lease. Return True if the annotator now holds it."""
        with self._lock:
            if self._holder(slot) not in (None, annotator):
                return False
            self._held[slot] = _Lease(annotator, self._clock() + self.seconds)
            return True

    def holder(self, slot: Slot) -> str | None:
        """Return the annotator who holds an assignment's lease, or None."""
        with self._lock:
            return self._holder(slot)

    def renew(self, image: int, annotator: str) -> None:
        """Renew an annotator's leases of an image."""
        with self._lock:
            for assignment in (0, 1):
                if self._holder((image, assignment)) == annotator:
                    self._held[image, assignment] = _Lease(annotator, self._clock() + self.seconds)

    def release(self, image: int, annotator: str) -> None:
        """End an annotator's leases of an image."""
        with self._lock:
            for assignment in (0, 1):
                if self._holder((image, assignment)) == annotator:
                    del self._held[image, assignment]

    def of(self, annotator: str) -> list[Slot]:
        """Return an annotator's leased assignments, oldest lease first."""
        with self._lock:
            now = self._clock()
            mine = [
                (lease.until, slot)
                for slot, lease in self._held.items()
                if lease.annotator == annotator and lease.until > now
            ]
        return [slot for _, slot in sorted(mine)]

    def _holder(self, slot: Slot) -> str | None:
        lease = self._held.get(slot)
        if lease is None:
            return None
        if lease.until <= self._clock():
            del self._held[slot]
            return None
        return lease.annotator
