"""Strict decoder of JPEGs, and a check whether a JPEG without its end marker contains all coefficients of its image."""

import itertools
import re
from typing import Any

import numpy as np
import simplejpeg

from segmint.catalogs.reasons import Reason, RejectedError
from segmint.operators.images import Pixels
from segmint.operators.opt_out.containers import MOST_PARTS

# libjpeg's warnings about damaged scan data, which other decoders hide by filling in gray.
_HAS_NO_END = "Premature end of JPEG file"
_ENDS_EARLY = (_HAS_NO_END, "Corrupt JPEG data: premature end of data segment")
_IS_DAMAGED = "Corrupt JPEG data"

_END_MARKER = b"\xff\xd9"
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")  # of segments and the end, but not those inside scans
_HUFFMAN_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
_SCAN = 0xDA
_COEFFICIENTS = 64


def strict_samples(data: bytes, color: str, **scale: int) -> Pixels | None:
    """Decode a JPEG. Return None if it is intact but unusual, such as with odd sampling factors or unknown markers.

    A JPEG that lacks only its end marker is decoded. Raises `RejectedError` (`truncated`, `corrupt`).
    """
    try:
        return _decode(data, color, scale)
    except ValueError as error:
        message = str(error)
    if message.startswith(_HAS_NO_END) and _has_all_scans(data):
        try:
            return _decode(data + _END_MARKER, color, scale)
        except ValueError:
            pass  # the last scan ends early
    if message.startswith(_ENDS_EARLY):
        raise RejectedError(Reason.TRUNCATED, f"the JPEG's data ends early: {message}")
    if message.startswith(_IS_DAMAGED):
        raise RejectedError(Reason.CORRUPT, f"the JPEG's data is damaged: {message}")
    return None


def _decode(data: bytes, color: str, scale: dict[str, Any]) -> Pixels:
    return np.asarray(simplejpeg.decode_jpeg(data, color, strict=True, **scale))


def _has_all_scans(data: bytes) -> bool:
    """Return whether the scans that begin in a JPEG cover each coefficient of each component down to its last bit.

    If the end marker is missing between two scans, decoders fill in the other components or the finer bits without a
    warning. Arithmetic coding doesn't notice missing data in the last scan either, so the answer is False.
    """
    missing: set[tuple[int, int]] = set()  # components and their coefficients without a scan down to bit 0
    has_frame = False
    position = 2
    for _ in range(MOST_PARTS):
        found = _MARKER.search(data, position)
        if found is None:
            return has_frame and not missing
        marker, start = data[found.start() + 1], found.end()
        length = int.from_bytes(data[start : start + 2])
        body = data[start + 2 : start + length]
        position = start + length
        if marker in _HUFFMAN_FRAMES:
            has_frame = True
            missing.update(itertools.product(body[6::3], range(_COEFFICIENTS)))
        elif marker == _SCAN and len(body) == 4 + 2 * body[0]:
            first, last, bits = body[-3:]  # ITU-T T.81, G.1.1.1
            if bits & 15 == 0:
                missing.difference_update(itertools.product(body[1:-3:2], range(first, last + 1)))
    return False
