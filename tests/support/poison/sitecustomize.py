"""Makes one rare kind of bitmap deadly, in every Python process that has this folder on its PYTHONPATH.

Decoders do crash, hang and eat memory on crafted files, but no file does so for every version of every decoder. So a
real Pillow decoder, that of run-length bitmaps, is replaced by one that does what the bitmap's first palette entry
says; the product itself knows nothing of it.
"""

import ctypes
import os
import time

from PIL import BmpImagePlugin, Image, ImageFile  # noqa: F401 - the first registers the decoder

CRASH, HANG, EXIT, ALLOCATE = 1, 2, 3, 4


class _Deadly(ImageFile.PyDecoder):
    _pulls_fd = True

    def decode(self, buffer: bytes) -> tuple[int, int]:
        self.fd.seek(54)
        deed = self.fd.read(1)[0]
        if deed == CRASH:
            ctypes.string_at(0)
        if deed == HANG:
            while True:
                time.sleep(1)
        if deed == EXIT:
            os._exit(3)
        if deed == ALLOCATE:
            hoard = []
            while True:
                hoard.append(bytearray(64 << 20))
        raise ValueError(f"no deed {deed}")


Image.register_decoder("bmp_rle", _Deadly)
