"""A JPEG without its end marker is decoded if no pixel is missing, and kinds of JPEG that aren't decoded say so."""

import struct

import numpy as np
import pytest
from PIL import Image

from segmint.catalogs.findings import Reason, RejectedError
from segmint.operators.prepare.ingest import ingest
from segmint.operators.prepare.ingest_config import IngestConfig
from segmint.operators.prepare.read_image import strict_samples
from tests.support.bad_images import encode, jpeg, photograph

CONFIG = IngestConfig()
SMALL = photograph().resize((96, 72))


def marked(data: bytes, marker: int) -> list[int]:
    """Return the positions of a marker after the segments before the first scan."""
    start = data.index(b"\xff\xc0" if b"\xff\xc0" in data else b"\xff\xc2")
    return [place for place in range(start, len(data) - 1) if data[place] == 0xFF and data[place + 1] == marker]


def separated(image: Image.Image) -> bytes:
    """A sequential JPEG with a scan for each of three components that are equal: those of a gray JPEG."""
    gray = encode(image.convert("L"), "JPEG", quality=90)
    frame, scan = gray.index(b"\xff\xc0"), gray.index(b"\xff\xda")
    height, width = struct.unpack(">HH", gray[frame + 5 : frame + 9])
    header = b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, height, width, 3)
    header += b"".join(bytes([component, 0x11, 0]) for component in (1, 2, 3))
    tables = gray[:frame] + header + gray[frame + 13 : scan]
    scans = [gray[scan : scan + 5] + bytes([component]) + gray[scan + 6 : -2] for component in (1, 2, 3)]
    return tables + b"".join(scans) + b"\xff\xd9"


@pytest.mark.parametrize(
    "data",
    [
        encode(SMALL, "JPEG"),
        encode(SMALL, "JPEG", progressive=True),
        encode(SMALL, "JPEG", restart_marker_blocks=4),
        encode(SMALL, "JPEG", progressive=True, restart_marker_rows=1),
        separated(SMALL),
    ],
    ids=["baseline", "progressive", "restarts", "progressive, restarts", "a scan per component"],
)
def test_only_the_end_marker_may_be_missing(data: bytes) -> None:
    """Also between two scans, and before a restart, where decoders fill in the rest without a warning."""
    whole = strict_samples(data, "RGB")
    assert whole is not None
    for missing in (1, 2):
        assert np.array_equal(strict_samples(data[:-missing], "RGB"), whole)
    small = strict_samples(data, "RGB", min_height=36, min_width=48, min_factor=1)
    assert np.array_equal(strict_samples(data[:-2], "RGB", min_height=36, min_width=48, min_factor=1), small)
    ends = {*range(len(data) - 9, len(data) - 2), *range(700, len(data) - 2, 97)}
    for marker in (0xC4, 0xDA, *range(0xD0, 0xD8)):
        for place in marked(data, marker):
            ends |= {place, place + 1, place + 2}
    for end in ends:
        with pytest.raises(RejectedError) as verdict:
            ingest(data[:end], CONFIG)
        assert verdict.value.reason is Reason.TRUNCATED, end


def test_a_photograph_without_its_end_is_the_photograph() -> None:
    assert np.array_equal(ingest(jpeg()[:-2], CONFIG).image, ingest(jpeg(), CONFIG).image)
    gray_cmyk = encode(SMALL.convert("CMYK"), "JPEG")
    assert np.array_equal(ingest(gray_cmyk[:-2], CONFIG).image, ingest(gray_cmyk, CONFIG).image)


def test_nothing_is_appended_to_arithmetic_coding() -> None:
    """Its decoder takes any missing data for zeros."""
    data = encode(SMALL, "JPEG")[:-2].replace(b"\xff\xc0", b"\xff\xc9", 1)
    with pytest.raises(RejectedError):
        ingest(data, CONFIG)


def test_kinds_of_jpeg_that_are_not_decoded_are_unsupported() -> None:
    data = encode(SMALL, "JPEG")
    frame = data.index(b"\xff\xc0")
    for offset, value in ((1, 0xC5), (1, 0xCF), (1, 0xF7), (4, 12), (4, 16), (9, 2), (9, 5)):
        changed = data[: frame + offset] + bytes([value]) + data[frame + offset + 1 :]
        with pytest.raises(RejectedError) as verdict:
            ingest(changed, CONFIG)
        assert verdict.value.reason is Reason.UNSUPPORTED_FORMAT
