"""Decoder for photographs that users pass in. HEICs are decoded in a child process, because they can crash the decoder.

A single wrong byte in a metadata box crashes libheif as shipped with pi-heif 1.4. All other formats are decoded in this
process, because their decoders never crashed in tests with tens of thousands of mutated files.
"""

import os
import threading
from multiprocessing.util import Finalize

from segmint.operators.child import Children, Worker
from segmint.operators.images import Pixels
from segmint.operators.prepare.containers import recognize
from segmint.operators.prepare.ingest import ingest
from segmint.operators.prepare.ingest_config import ANY_SIZE

_MEMORY = 4 << 30  # bytes that a photograph may use in the child (Linux)

_lock = threading.Lock()
_children: dict[int, Children[Pixels]] = {}  # keyed by process id, because a forked process needs its own children


def decode_photograph(data: bytes) -> Pixels:
    """Decode a photograph to (H, W, 3) uint8 RGB, in sRGB, upright, and opaque. Thread-safe.

    The child starts with the first HEIC and ends with this process. Raises the same errors as `ingest`. If the HEIC
    decoder dies, the reason is `killed_worker`, `timed_out`, or `out_of_memory`. Raises `ChildFaultError` if no child
    can start.
    """
    if recognize(data, ANY_SIZE.decoded) != "HEIC":
        return _decode(data)
    return _started().run(data)


def _started() -> Children[Pixels]:
    with _lock:
        if os.getpid() not in _children:
            children = Children(_decoder, timeout_s=ANY_SIZE.timeout_s, memory_limit=_MEMORY)
            Finalize(None, children.close, exitpriority=0)  # unlike `atexit`, also works in a multiprocessing child
            _children[os.getpid()] = children
        return _children[os.getpid()]


def _decoder() -> Worker[Pixels]:
    return _decode


def _decode(data: bytes) -> Pixels:
    return ingest(data, ANY_SIZE).image
