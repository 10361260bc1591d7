"""Reads the files that TensorBoard reads."""

import struct
from collections.abc import Iterator
from pathlib import Path


def tensorboard_points(path: Path) -> Iterator[tuple[tuple[str, int], float]]:
    """The values in a file, by tag and step: records of length, two checksums, and an event."""
    from tensorboardX.proto.event_pb2 import Event

    data = path.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        for value in event.summary.value:
            yield (value.tag, event.step), value.simple_value
        data = data[16 + length :]
