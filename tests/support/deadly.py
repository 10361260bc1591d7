"""A photograph that ends the process that decodes it."""

from pathlib import Path

_OPTED_OUT = Path(__file__).parent / "heic" / "opted_out.heic"
_CRASHES = 179  # a byte of the metadata's place, on which libheif 1.23 ends by SIGSEGV


def deadly_heic() -> bytes:
    """Return a HEIC of which one byte is changed."""
    data = bytearray(_OPTED_OUT.read_bytes())
    data[_CRASHES] = 255
    return bytes(data)
