"""Which part of a dataset a process reads: its rank in a distributed run."""

import os
from dataclasses import dataclass
from typing import Any

from torch import distributed
from torch.utils.data import get_worker_info

from segmint.infra.errors import UsageError


@dataclass(frozen=True)
class ReaderPosition:
    """One of `parts` readers that share a dataset, from 0."""

    part: int
    parts: int


def current_rank() -> ReaderPosition:
    """Return the rank of `torch.distributed` if it is initialized, else that of `RANK` and `WORLD_SIZE`, else 0 of 1.

    Raises `UsageError` for variables that are no rank, also for a size without a rank: all would read the same.
    """
    if distributed.is_available() and distributed.is_initialized():
        return ReaderPosition(distributed.get_rank(), distributed.get_world_size())
    ranks = os.environ.get("WORLD_SIZE", "1")
    rank = os.environ.get("RANK", "0" if ranks == "1" else "(not set)")
    if not (rank.isdecimal() and ranks.isdecimal() and int(rank) < int(ranks)):
        raise UsageError(
            f"RANK={rank} and WORLD_SIZE={ranks} in the environment: expected a rank from 0 below the size"
        )
    return ReaderPosition(int(rank), int(ranks))


class RankHere:
    """The rank of the process that asks. Pickled it takes the rank along, for a `DataLoader`'s spawned workers.

    They cannot find it out. Any other process can, and must: what a launcher sends to its ranks is of no rank.
    """

    def __init__(self) -> None:
        self._sent: tuple[int, ReaderPosition] | None = None  # to the process of this id

    def find(self) -> ReaderPosition:
        """Return the rank; raises as `current_rank` does."""
        if self._sent is not None and self._sent[0] == os.getpid() and get_worker_info() is not None:
            return self._sent[1]
        return current_rank()

    def __getstate__(self) -> dict[str, Any]:
        return {"rank": self.find()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._sent = os.getpid(), state["rank"]
