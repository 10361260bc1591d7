"""Functions that identify the image of a dataset from a file name."""

import re
from pathlib import PurePosixPath

_IMAGE = re.compile(r"(?:^|[^A-Za-z0-9])sa_(\d+)\.\w+$")
_MOST_DIGITS = 18


def image_number(path: str) -> int | None:
    """Extract the id from a path or URL that ends in `sa_<id>.jpg`, even if a tool added a prefix, or return None."""
    match = _IMAGE.search(path)
    return None if match is None or len(match[1]) > _MOST_DIGITS else int(match[1])


def name_and_stem(path: str) -> tuple[str, str]:
    """Return the last part of a path or URL, with and without its file name ending."""
    name = PurePosixPath(path.replace("\\", "/")).name
    return name, PurePosixPath(name).stem
