"""How segment actors share the cores of one machine when the model computes on a CPU.

An actor with one thread uses a core best: the threads of one process wait for Python's lock and for one another. So
each core has an actor, as far as memory allows, and the actors share the remaining cores as threads.
"""

import os
from pathlib import Path

_GIB = 2**30

BASE_MEMORY = 3 * _GIB // 2
"""Bytes of an actor besides its model: images, embeddings and chunks of prompts."""

PER_WEIGHT_BYTE = 2
"""Bytes of an actor per byte of the checkpoint: the weights, and the working memory of the larger encoders."""

SHARE_OF_MEMORY = 0.5
"""The share of a machine's memory for all segment actors; Ray, the other stages and everything else get the rest."""


def actors_that_fit(cores: int, weights_bytes: int, memory: int | None = None) -> int:
    """Return the number of segment actors of a machine with so many cores, at least 1 and at most one per core.

    `weights_bytes` is the checkpoint's size, `memory` the machine's in bytes (default: this machine's).
    """
    room = int(SHARE_OF_MEMORY * (memory_here() if memory is None else memory))
    return max(1, min(cores, room // (BASE_MEMORY + PER_WEIGHT_BYTE * weights_bytes)))


def threads_of_an_actor(cores: int, weights_bytes: int, memory: int | None = None) -> int:
    """Return the number of torch's threads in each of these actors, at least 1."""
    return max(1, cores // actors_that_fit(cores, weights_bytes, memory))


def memory_here() -> int:
    """Return the bytes of memory that this process may use: the machine's, or its container's limit (cgroup v2)."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return machine
    return min(machine, int(limit)) if limit.isdigit() else machine
