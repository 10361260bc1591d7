"""Storms: policies for a `FaultyProxy` that spoil many requests, the same ones in every run.

What happens to a request depends on the seed, its method, its object and how often that was asked for, never on the
time or on what other threads ask meanwhile.
"""

import random
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from tests.support.faulty_proxy import FaultyProxy

MOST_IN_A_ROW = 3
"""Requests for one object that are spoiled one after the other, so that a storm is always one that can be overcome."""


@dataclass(frozen=True)
class StormRule:
    """Which requests are spoiled, and how.

    `method` and `target` are regular expressions, `target` for an object's key with its query, the bucket left out. Of
    the requests that match, a `share` is spoiled; where `first` is given, that share of the first so many for each
    object.
    """

    fault: bytes
    method: str = "GET|PUT|HEAD"
    target: str = ""
    share: float = 1.0
    first: int | None = None


class Storm:
    """A policy made of rules; the first that hits a request decides. Counts what it did."""

    def __init__(self, *rules: StormRule, seed: int = 0) -> None:
        self.hits: Counter[StormRule] = Counter()
        self.asked: Counter[str] = Counter()
        self._rules = rules
        self._seed = seed
        self._lock = threading.Lock()
        self._in_a_row: Counter[str] = Counter()

    def __call__(self, method: str, target: str) -> bytes:
        # Names that are new in each run would get other faults in each run.
        key = re.sub("^/[^/?]+/?", "", target)
        if "/.tmp-" in key:
            return b""  # the probe has writers race for one name: who is hit would depend on the time
        name = f"{method} {re.sub('[0-9a-f]{32}', '*', key)}"
        with self._lock:
            self.asked[name] += 1
            for number, rule in enumerate(self._rules):
                if self._in_a_row[name] < MOST_IN_A_ROW and self._hits(number, rule, method, name):
                    self.hits[rule] += 1
                    self._in_a_row[name] += 1
                    return rule.fault
            self._in_a_row[name] = 0
        return b""

    def _hits(self, number: int, rule: StormRule, method: str, name: str) -> bool:
        times = self.asked[name]
        if not re.fullmatch(rule.method, method) or not re.search(rule.target, name.partition(" ")[2]):
            return False
        if rule.first is not None and times > rule.first:
            return False
        return random.Random(f"{self._seed} {number} {name} {times}").random() < rule.share


class Outage:
    """Takes a proxy down, once, for so many seconds (None: for good), at the `after`-th request that matches.

    `policy` holds for that request and all others.
    """

    def __init__(
        self,
        proxy: FaultyProxy,
        seconds: float | None,
        after: int,
        method: str = ".*",
        target: str = "",
        policy: Callable[[str, str], bytes] = lambda method, target: b"",
    ) -> None:
        self.happened = False
        self._proxy = proxy
        self._seconds = seconds
        self._left = after
        self._matches = (method, target)
        self._policy = policy
        self._lock = threading.Lock()

    def __call__(self, method: str, target: str) -> bytes:
        if re.fullmatch(self._matches[0], method) and re.search(self._matches[1], target):
            with self._lock:
                self._left -= 1
                now = self._left == 0
            if now:
                self.happened = True
                self._proxy.go_down()
                if self._seconds is not None:
                    self._proxy.be_out_for(self._seconds)
        return self._policy(method, target)
