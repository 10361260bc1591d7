"""Parser of a JPEG file's size from its first bytes, and names of metadata that a released JPEG doesn't contain."""

_START = b"\xff\xd8"
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SCAN, _END, _FILL = 0xDA, 0xD9, 0xFF
_COMMENT = 0xFE
_APPLICATIONS = range(0xE0, 0xF0)
_PROFILE = b"ICC_PROFILE\0"
_BARE = frozenset(range(0xD0, 0xD8)) | {0x01}
_KNOWN = {
    b"Exif\0": "EXIF",
    b"http://ns.adobe.com/xap/1.0/\0": "XMP",
    b"http://ns.adobe.com/xmp/extension/\0": "XMP",
    _PROFILE: "an ICC profile",
    b"Photoshop 3.0\0": "Photoshop data",
    b"MPF\0": "more pictures",
    b"JFXX\0": "a thumbnail",
    b"\xff\xfe": "a comment",
}


def metadata_names(data: bytes) -> list[str]:
    """Return the names of the kinds of metadata that a JPEG contains, recognized by their first bytes."""
    return sorted({name for beginning, name in _KNOWN.items() if beginning in data})


def metadata_name(marker: int, contents: bytes) -> str | None:
    """Return the name of the metadata in a JPEG's segment, or None if the segment contains none.

    `contents` begins behind the segment's length. Color profiles and the plain headers of JFIF and Adobe aren't named.
    """
    if marker == _COMMENT:
        return "a comment"
    if marker not in _APPLICATIONS or contents.startswith((_PROFILE, b"Adobe")):
        return None
    if contents.startswith(b"JFIF\0"):
        return "a thumbnail" if any(contents[12:14]) else None
    for beginning, name in _KNOWN.items():
        if contents.startswith(beginning):
            return name
    return f"data in APP{marker - _APPLICATIONS[0]}"


def frame_size(head: bytes) -> tuple[int, int] | None:
    """Return the (width, height) in pixels from the first bytes of a JPEG, or None if its frame header comes later.

    Raises ValueError if the bytes aren't a JPEG, or if the image data begins without a frame.
    """
    if not head.startswith(_START):
        raise ValueError("it does not begin like a JPEG")
    position = 2
    while position + 9 < len(head):
        if head[position] != _FILL:
            raise ValueError(f"there is no marker at byte {position}")
        while head[position] == _FILL:
            position += 1
            if position == len(head):
                raise ValueError("it ends before the picture does")
        marker, position = head[position], position + 1
        if marker in _BARE:
            continue
        if marker in {_SCAN, _END}:
            raise ValueError("it has no frame")
        if marker in _FRAMES:
            frame = head[position + 3 : position + 7]
            return (int.from_bytes(frame[2:], "big"), int.from_bytes(frame[:2], "big")) if len(frame) == 4 else None
        position += max(2, int.from_bytes(head[position : position + 2], "big"))
    return None
