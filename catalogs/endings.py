"""The endings of file names that count as images, for a scan and for masks of a folder."""

IMAGE_ENDINGS = (
    ".jpg",
    ".jpeg",
    ".png",
    ".tif",
    ".tiff",
    ".webp",
    ".bmp",
    ".heic",
    ".heif",
    ".avif",
    ".jp2",
    ".gif",
)
"""In lower case. Whether a file really is an image turns out when it is read."""
