"""Makes rare kinds of images deadly, in every Python process that has this folder on its PYTHONPATH.

Decoders do crash, hang and eat memory on crafted files, but no file does so for every version of every decoder. So
two of Pillow's real ones do what an image says; the product itself knows nothing of it.

- That of run-length bitmaps does what the bitmap's first palette entry says. Only foreign files are bitmaps.
- That of JPEGs does what the width of the image says, for a few odd widths. A photograph that came as PNG is a JPEG
  only once it is released. With SEGMINT_TEST_ALL_JPEGS_DEADLY set, each JPEG ends its process.
"""

import ctypes
import os
import resource
from typing import Any

from PIL import BmpImagePlugin, Image, ImageFile, JpegImagePlugin  # noqa: F401 - the first registers its decoder

CRASH, HANG, EXIT, ALLOCATE = 1, 2, 3, 4

JPEG_WIDTHS = {131: CRASH, 132: HANG, 133: EXIT, 134: ALLOCATE}


def do(deed: int) -> None:
    """End a process, or block it forever."""
    if deed == CRASH:
        ctypes.string_at(0)
    if deed == HANG:
        while True:
            pass
    if deed == EXIT:
        os._exit(3)
    if deed == ALLOCATE:
        hoard = []
        while True:
            hoard.append(bytearray(64 << 20))
    raise ValueError(f"no deed {deed}")


class _Deadly(ImageFile.PyDecoder):
    _pulls_fd = True

    def decode(self, buffer: bytes) -> tuple[int, int]:
        self.fd.seek(54)
        do(self.fd.read(1)[0])
        raise AssertionError("alive")


def _open_jpeg(fp: Any = None, filename: Any = None) -> Any:
    image = JpegImagePlugin.jpeg_factory(fp, filename)
    deed = EXIT if os.environ.get("SEGMINT_TEST_ALL_JPEGS_DEADLY") else JPEG_WIDTHS.get(image.width)
    if deed == ALLOCATE:  # the machine is to survive it: this process may take a quarter of a gigabyte more
        with open("/proc/self/status") as status:
            data = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData:"))
        resource.setrlimit(resource.RLIMIT_DATA, (data + (256 << 20), resource.RLIM_INFINITY))
    if deed is not None:
        do(deed)
    return image


Image.register_decoder("bmp_rle", _Deadly)
Image.register_open("JPEG", _open_jpeg, JpegImagePlugin._accept)  # noqa: SLF001 - as Pillow registers it
