"""Open an image of a known container: its header is read, and no pixel decoded."""

import io
from functools import cache

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from segmint.catalogs.reasons import Reason, RejectedError

# Opened by class, not by `Image.open`: the container is known, and a JPEG with more images after the first (MPO) stays
# a JPEG.
_READERS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
}


def open_image(data: bytes, kind: str) -> ImageFile.ImageFile:
    """Read the image's header. If that needs more bytes than there are, the image is truncated, whatever the result."""
    stream = _Stream(data)
    try:
        return _reader(kind)(stream)
    finally:
        if stream.ran_out:
            detail = f"the {kind} ends after {len(data)} bytes, inside its header"
            raise RejectedError(Reason.TRUNCATED, detail) from None


@cache
def _reader(kind: str) -> type[ImageFile.ImageFile]:
    if kind != "HEIC":
        return _READERS[kind]
    from pi_heif.as_plugin import HeifImageFile  # 5 MB of libraries, which few datasets need

    reader: type[ImageFile.ImageFile] = HeifImageFile
    return reader


class _Stream(io.BytesIO):
    """Bytes that record whether a reader asked for more than there are."""

    ran_out = False

    def read(self, size: int | None = -1, /) -> bytes:
        piece = super().read(size)
        self.ran_out |= size is not None and size > len(piece)
        return piece
