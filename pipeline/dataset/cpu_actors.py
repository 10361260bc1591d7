"""How the cores of one machine are shared among segment actors, where the model computes on a CPU.

An actor with one thread makes the most of a core: the threads of one process wait for Python's lock and for one
another. So each core has an actor, as far as the memory goes, and actors have the threads that are then left.
"""

import os
from pathlib import Path

_GIB = 2**30

BASE_MEMORY = 3 * _GIB // 2
"""Bytes that an actor takes beside its model: images, embeddings and chunks of prompts."""

PER_WEIGHT_BYTE = 2
"""Bytes of an actor for each of the checkpoint's: the weights, and what the larger encoders compute with."""

SHARE_OF_MEMORY = 0.5
"""What all segment actors may take of a machine; the rest is for Ray, the other stages and everything else."""


def actors_that_fit(cores: int, weights_bytes: int, memory: int | None = None) -> int:
    """Segment actors of a machine with so many cores, at least 1 and at most one a core.

    `weights_bytes` is the checkpoint's size, `memory` the machine's in bytes (default: this machine's).
    """
    room = int(SHARE_OF_MEMORY * (memory_here() if memory is None else memory))
    return max(1, min(cores, room // (BASE_MEMORY + PER_WEIGHT_BYTE * weights_bytes)))


def threads_of_an_actor(cores: int, weights_bytes: int, memory: int | None = None) -> int:
    """torch's threads in each of these actors, at least 1."""
    return max(1, cores // actors_that_fit(cores, weights_bytes, memory))


def memory_here() -> int:
    """Bytes of memory that this process may use: the machine's, or its container's limit (cgroup v2)."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return machine
    return min(machine, int(limit)) if limit.isdigit() else machine
