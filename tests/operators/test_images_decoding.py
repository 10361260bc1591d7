"""JPEGs that anybody may have made are decoded in a child, within limits; those that segmint wrote in the process."""

import os
from collections.abc import Iterator

import numpy as np
import pytest

from segmint.catalogs.findings import FindingLocation
from segmint.operators import images
from segmint.operators.audit.rows import audit_jpeg
from segmint.operators.images import PIXELS_HERE, JpegDecoder, OverLimitError, UndecodableError, decode_jpeg, is_plain
from segmint.operators.prepare.release import ReleaseConfig, release
from segmint.operators.similar.near import jpeg_hashes
from tests.support import child_workers
from tests.support.bad_images import encode, photograph
from tests.support.bombs import jpeg_saying

GIGAPIXELS = jpeg_saying(65_500, 65_500)
TOO_LARGE = "65500 x 65500 is 4,290,250,000 pixels; at most 250,000,000 are decoded"


@pytest.fixture(scope="module")
def decoders() -> Iterator[dict[bool, JpegDecoder]]:
    """A decoder for a dataset in segmint's format (True), and one for other data (False)."""
    with JpegDecoder(own=True, processes=1) as own, JpegDecoder(own=False, processes=1) as foreign:
        yield {True: own, False: foreign}


def released() -> bytes:
    return release(np.asarray(photograph()), ReleaseConfig(short_side=200)).jpeg


def progressive() -> bytes:
    return encode(photograph(), "JPEG", progressive=True)


def said_to_be(width: int, height: int) -> bytes:
    data = bytearray(released())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(data)


def test_what_segmint_writes_is_plain_and_nothing_else() -> None:
    own = released()
    assert is_plain(own)
    assert is_plain(encode(photograph().convert("L"), "JPEG"))
    assert is_plain(said_to_be(8000, PIXELS_HERE // 8000))
    assert not is_plain(said_to_be(8000, PIXELS_HERE // 8000 + 1))
    assert not is_plain(said_to_be(0, 100))
    assert not is_plain(progressive())
    assert not is_plain(encode(photograph().convert("CMYK"), "JPEG"))
    frame = own.index(b"\xff\xc0")
    hidden = b"\xff\x00" + (2 + 19).to_bytes(2, "big") + own[frame : frame + 19]  # a frame that only some decoders see
    assert not is_plain(own[:frame] + hidden + own[frame:])
    assert not is_plain(own[:frame] + own[frame : frame + 19] + own[frame:])  # two frames
    scan = own.index(b"\xff\xda")
    assert not is_plain(own[: scan + 4] + b"\x01" + own[scan + 5 :])  # a scan of one of three components
    assert not any(is_plain(own[:end]) for end in (0, 2, frame, frame + 7, scan + 3))
    assert not is_plain(b"\x89PNG" + own)


@pytest.mark.usefixtures("processes")
def test_only_plain_ones_of_a_dataset_are_decoded_here(decoders: dict[bool, JpegDecoder]) -> None:
    for own, jpeg, here in ((True, released(), True), (True, progressive(), False), (False, released(), False)):
        assert (decoders[own].run(child_workers.pid, jpeg) == os.getpid()) is here


@pytest.mark.usefixtures("processes")
def test_the_result_is_the_same_here_and_there(decoders: dict[bool, JpegDecoder]) -> None:
    here, there = (decoders[own].run(decode_jpeg, released()) for own in (True, False))
    np.testing.assert_array_equal(here, there)
    assert len({decoders[own].run(jpeg_hashes, released()).tobytes() for own in (True, False)}) == 1


@pytest.mark.usefixtures("processes")
def test_a_picture_of_gigapixels_is_not_decoded(decoders: dict[bool, JpegDecoder]) -> None:
    for decoder in decoders.values():
        with pytest.raises(UndecodableError, match=TOO_LARGE):
            decoder.run(jpeg_hashes, GIGAPIXELS)
    row = {"id": 1, "width": 65500, "height": 65500}
    (finding,) = audit_jpeg(GIGAPIXELS, row, FindingLocation("shards/x.tar"), decoders[True])
    assert (finding.code, finding.found) == ("bad_jpeg", TOO_LARGE)


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(
    ("order", "told"),
    [
        (b"crash", "died, twice"),
        (b"allocate 4294967296", "needs more memory"),
        (b"reject no picture", "no picture"),
        (b"bug in a decoder", "in a decoder"),
    ],
)
def test_what_a_decoder_does_to_its_process_is_said(order: bytes, told: str, decoders: dict[bool, JpegDecoder]) -> None:
    with pytest.raises(UndecodableError, match=told):
        decoders[True].run(child_workers.obey, order)
    assert decoders[True].run(child_workers.obey, b"and go on") == b"and go on"


@pytest.mark.usefixtures("processes")
def test_a_picture_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "TIMEOUT_S", 3.0)
    with JpegDecoder(own=True, processes=1) as decoder:
        with pytest.raises(OverLimitError, match=r"not decoded within 3 seconds"):
            decoder.run(child_workers.obey, b"sleep 60")
        assert decoder.run(child_workers.obey, b"next") == b"next"
    with pytest.raises(RuntimeError, match="closed"):
        decoder.run(child_workers.obey, b"late")
