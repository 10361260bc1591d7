"""Which part of a dataset this process reads: its rank in a distributed run."""

import os
from dataclasses import dataclass

from torch import distributed

from segmint.infra.errors import UsageError


@dataclass(frozen=True)
class ReaderPosition:
    """One of `parts` readers that share a dataset, from 0."""

    part: int
    parts: int


def current_rank() -> ReaderPosition:
    """Return the rank of `torch.distributed` if it is initialized, else that of `RANK` and `WORLD_SIZE`, else 0 of 1.

    Raises `UsageError` for variables that are no rank.
    """
    if distributed.is_available() and distributed.is_initialized():
        return ReaderPosition(distributed.get_rank(), distributed.get_world_size())
    rank, ranks = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdecimal() and ranks.isdecimal() and int(rank) < int(ranks)):
        raise UsageError(
            f"RANK={rank} and WORLD_SIZE={ranks} in the environment: expected a rank from 0 below the size"
        )
    return ReaderPosition(int(rank), int(ranks))
