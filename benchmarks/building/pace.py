"""Pace of the actors that sleep instead of computing, and the log of their images."""

import os
import time
from pathlib import Path

IMAGE_S = "SEGMINT_STUB_IMAGE_S"
"""Environment variable that sets how many seconds an image takes in a segment actor; the default is 0."""

PACE = "SEGMINT_STUB_PACE"
"""Environment variable that names a file with the seconds that an image takes in a segment actor. It may change during
a build."""

EVENTS = "SEGMINT_STUB_EVENTS"
"""Environment variable that names a log file. Each start of a segment actor and each image adds a line with its time,
its kind, and the process."""


def image_s() -> float:
    """Return how many seconds an image takes now."""
    if path := os.environ.get(PACE):
        return float(Path(path).read_text())
    return float(os.environ.get(IMAGE_S, "0"))


def note(kind: str) -> None:
    """Add a line to the log file, if there is one."""
    if path := os.environ.get(EVENTS):
        with Path(path).open("a") as file:
            file.write(f"{time.time()} {kind} {os.getpid()}\n")
