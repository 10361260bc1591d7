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
"""Extensions in lowercase. A file with such an extension may still turn out not to be an image."""
