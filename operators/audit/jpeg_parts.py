"""Parser of a JPEG file's size and of everything in it besides the image.

It walks the markers itself, because decoders stop at the end of the image and skip unknown parts.
"""

from dataclasses import dataclass

_START = b"\xff\xd8"
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_APP0, _APP15, _COMMENT = 0xE0, 0xEF, 0xFE
_SCAN, _END, _FILL = 0xDA, 0xD9, 0xFF
_BARE = frozenset(range(0xD0, 0xD8)) | {0x01}
_KNOWN = {
    b"Exif\0": "EXIF",
    b"http://ns.adobe.com/xap/1.0/\0": "XMP",
    b"http://ns.adobe.com/xmp/extension/\0": "XMP",
    b"ICC_PROFILE\0": "an ICC profile",
    b"Photoshop 3.0\0": "Photoshop data",
    b"MPF\0": "more pictures",
    b"JFXX\0": "a thumbnail",
}
_PLAIN_JFIF = 14  # bytes of a JFIF header without a thumbnail


@dataclass(frozen=True)
class JpegParts:
    """Contents of a JPEG file: `width` and `height` in pixels, and the names of its other parts, in order."""

    width: int
    height: int
    metadata: tuple[str, ...]


def jpeg_parts(data: bytes) -> JpegParts:
    """Walk a whole JPEG file; anything but the image and a JFIF header without a thumbnail is metadata.

    Raises ValueError if the bytes are not a JPEG or end before the image does.
    """
    if not data.startswith(_START):
        raise ValueError("it does not begin like a JPEG")
    size: tuple[int, int] | None = None
    metadata: list[str] = []
    position = 2
    while True:
        marker, position = _next_marker(data, position)
        if marker == _END:
            break
        if marker in _BARE:
            continue
        stop = position + int.from_bytes(data[position : position + 2], "big")
        if stop < position + 2 or stop > len(data):
            raise ValueError(f"it ends inside of the segment at byte {position}")
        payload = data[position + 2 : stop]
        if marker in _FRAMES and len(payload) >= 5:
            size = int.from_bytes(payload[3:5], "big"), int.from_bytes(payload[1:3], "big")
        elif _APP0 <= marker <= _APP15 or marker == _COMMENT:
            metadata.extend(_metadata(marker, payload))
        position = _end_of_scan(data, stop) if marker == _SCAN else stop
    if size is None:
        raise ValueError("it has no frame")
    if position < len(data):
        metadata.append(f"{len(data) - position} bytes after the picture's end")
    return JpegParts(*size, tuple(metadata))


def frame_size(head: bytes) -> tuple[int, int] | None:
    """Return width and height in pixels from the first bytes of a JPEG file; None if its frame comes later.

    Raises ValueError if the bytes are not a JPEG or the image data begins without a frame.
    """
    if not head.startswith(_START):
        raise ValueError("it does not begin like a JPEG")
    position = 2
    while position + 9 < len(head):
        marker, position = _next_marker(head, position)
        if marker in _BARE:
            continue
        if marker in {_SCAN, _END}:
            raise ValueError("it has no frame")
        if marker in _FRAMES:
            frame = head[position + 3 : position + 7]
            return (int.from_bytes(frame[2:], "big"), int.from_bytes(frame[:2], "big")) if len(frame) == 4 else None
        position += max(2, int.from_bytes(head[position : position + 2], "big"))
    return None


def _next_marker(data: bytes, position: int) -> tuple[int, int]:
    """Return the marker at `position` and the position after it."""
    if position >= len(data):
        raise ValueError("it ends before the picture does")
    if data[position] != _FILL:
        raise ValueError(f"there is no marker at byte {position}")
    while position < len(data) and data[position] == _FILL:
        position += 1
    if position >= len(data):
        raise ValueError("it ends before the picture does")
    return data[position], position + 1


def _end_of_scan(data: bytes, position: int) -> int:
    """Return the position of the next marker after entropy-coded data, which includes stuffed zeros and restarts."""
    while True:
        position = data.find(b"\xff", position)
        if position < 0 or position + 1 >= len(data):
            raise ValueError("it ends before the picture does")
        if data[position + 1] != 0 and data[position + 1] not in _BARE:
            return position
        position += 2


def _metadata(marker: int, payload: bytes) -> list[str]:
    if marker == _COMMENT:
        return ["a comment"]
    if marker == _APP0 and payload.startswith(b"JFIF\0"):
        return [] if len(payload) == _PLAIN_JFIF else ["a thumbnail"]
    known = [name for beginning, name in _KNOWN.items() if payload.startswith(beginning)]
    return known or [f"APP{marker - _APP0} data"]
