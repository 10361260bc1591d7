"""Number of segment actors, and threads per actor, that share one machine's cores on a CPU.

An actor with one thread uses a core best, because the threads of one process wait for Python's lock and for each other.
So each core gets an actor as far as memory allows, and the actors share the remaining cores as threads.
"""

import os
from pathlib import Path

_GIB = 2**30

BASE_MEMORY = 3 * _GIB // 2
"""Bytes per actor besides its model: images, embeddings, and chunks of prompts."""

PER_WEIGHT_BYTE = 2
"""Bytes per actor for each byte of the checkpoint: the weights, and the working memory of the larger encoders."""

SHARE_OF_MEMORY = 0.5
"""Share of a machine's memory for all segment actors. The rest is for Ray, the other stages, and other processes."""


def actors_that_fit(cores: int, weights_bytes: int, memory: int | None = None) -> int:
    """Return the number of segment actors for a machine with `cores` cores: at least 1, at most one per core.

    `weights_bytes` is the size of the checkpoint. `memory` is the machine's memory in bytes (default: this machine's).
    """
    room = int(SHARE_OF_MEMORY * (memory_here() if memory is None else memory))
    return max(1, min(cores, room // (BASE_MEMORY + PER_WEIGHT_BYTE * weights_bytes)))


def threads_of_an_actor(cores: int, weights_bytes: int, memory: int | None = None) -> int:
    """Return the number of torch threads in each of these actors, at least 1."""
    return max(1, cores // actors_that_fit(cores, weights_bytes, memory))


def memory_here() -> int:
    """Return the bytes of memory that this process may use: the machine's, or its container's limit (cgroup v2)."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return machine
    return min(machine, int(limit)) if limit.isdigit() else machine
