"""File extensions that count as images, for scans and for folders of masks."""

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
"""In lowercase. Only reading a file shows whether it really is an image."""
