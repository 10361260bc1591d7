"""Decode a photograph that somebody names: a HEIC in a child process, since a damaged one can end its decoder.

libheif, as pi-heif 1.4 brings it, crashes on a metadata box with one wrong byte. The other decoders crashed on none of
tens of thousands of changed files, and decode here.
"""

import os
import threading
from multiprocessing.util import Finalize

import numpy as np
from numpy.typing import NDArray

from segmint.operators.child import Children, Worker
from segmint.operators.prepare.containers import recognize
from segmint.operators.prepare.ingest import ingest
from segmint.operators.prepare.ingest_config import ANY_SIZE

Pixels = NDArray[np.uint8]

_MEMORY = 4 << 30  # bytes that a photograph may take in the child (Linux)

_lock = threading.Lock()
_children: dict[int, Children[Pixels]] = {}  # by process: a fork has none yet


def decode_photograph(data: bytes) -> Pixels:
    """Return a photograph's pixels, (H, W, 3) uint8 RGB, in sRGB, upright and opaque. Thread-safe.

    Raises what `ingest` raises, with `killed_worker`, `timed_out` and `out_of_memory` for a HEIC whose decoder died,
    and `ChildFaultError` if no child can start. The child starts with the first HEIC, and ends with this process.
    """
    if recognize(data, ANY_SIZE.decoded) != "HEIC":
        return _decode(data)
    return _started().run(data)


def _started() -> Children[Pixels]:
    with _lock:
        if os.getpid() not in _children:
            children = Children(_decoder, timeout_s=ANY_SIZE.timeout_s, memory_limit=_MEMORY)
            Finalize(None, children.close, exitpriority=0)  # unlike `atexit`, also in a process of multiprocessing
            _children[os.getpid()] = children
        return _children[os.getpid()]


def _decoder() -> Worker[Pixels]:
    return _decode


def _decode(data: bytes) -> Pixels:
    return ingest(data, ANY_SIZE).image
