"""Numbers of segment actors and of threads per actor on a machine that computes masks on its CPU.

Threads of one process wait for Python's lock and for each other, so single-threaded actors use the cores best. If there
is enough memory, each core therefore gets an actor. Otherwise, fewer actors run several threads each.
"""

from segmint.infra.device import memory_here

_GIB = 2**30

BASE_MEMORY = 3 * _GIB // 2
"""Bytes that an actor needs in addition to its model, for images, embeddings, and chunks of prompts."""

PER_WEIGHT_BYTE = 2
"""Bytes of memory per byte of the checkpoint: the weights, and the working memory of larger encoders."""

SHARE_OF_MEMORY = 0.5
"""Fraction of a machine's memory for all segment actors. The rest is for Ray, the other stages, and other processes."""


def actors_that_fit(cores: int, weights_bytes: int, memory: int | None = None) -> int:
    """Return the number of segment actors for a machine with `cores` cores: at least 1, and at most one per core.

    `weights_bytes` is the size of the checkpoint. `memory` is the machine's memory in bytes (default: this machine's).
    """
    room = int(SHARE_OF_MEMORY * (memory_here() if memory is None else memory))
    return max(1, min(cores, room // (BASE_MEMORY + PER_WEIGHT_BYTE * weights_bytes)))


def threads_of_an_actor(cores: int, weights_bytes: int, memory: int | None = None) -> int:
    """Return the number of torch threads per segment actor, at least 1."""
    return max(1, cores // actors_that_fit(cores, weights_bytes, memory))
